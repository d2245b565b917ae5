"""What a TPU VM is told about itself and its neighbours."""

import functools
import http
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

_TIMEOUT_S = 5
_TRIES = 4
_BETWEEN_TRIES_S = 0.5
_DEVICES = ("/dev/accel0", "/dev/vfio/0")


@functools.cache
def tpu_metadata(key: str) -> str | None:
    """An attribute of this TPU VM, such as `agent-worker-number`; None on a machine without TPU or without such a key.

    Args:
      key: Below `instance/attributes/`.
    """
    if not any(Path(device).exists() for device in _DEVICES):
        return None
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{key}", headers={"Metadata-Flavor": "Google"}
    )
    for _ in range(_TRIES):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.NOT_FOUND:
                return None
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(_BETWEEN_TRIES_S)
    return None
