"""Which NumPy is refused at import."""

import subprocess
import sys

import pytest

from recogdrive.numerics import require_supported_numpy


@pytest.mark.parametrize("version", ["1.23.5", "1.26.3", "1.9.10", "0.26.4"])
def test_an_old_numpy_is_refused_with_the_reason_and_the_remedy(version):
    with pytest.raises(ImportError, match=rf"needs NumPy 1.26.4 or newer, found {version}.*inverses.*pip install"):
        require_supported_numpy(version)


@pytest.mark.parametrize("version", ["1.26.4", "1.26.10", "2.0.0rc1", "2.4.6", "10.0.0", "1.27.0.dev0+git20240101"])
def test_a_newer_numpy_is_accepted(version):
    require_supported_numpy(version)


def test_importing_the_package_under_an_old_numpy_fails():
    program = "import numpy; numpy.__version__ = '1.23.4'; import recogdrive"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "ImportError: recogdrive needs NumPy 1.26.4 or newer, found 1.23.4" in result.stderr
