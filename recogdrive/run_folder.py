"""What every run leaves behind about itself: configuration, versions, device, lineage, outcome."""

import datetime
import difflib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import gin
from absl import logging

from recogdrive.composition import Composition
from recogdrive.experiment import ConfigurationError
from recogdrive.version import __version__

_PACKAGES = ("jax", "jaxlib", "torch", "torchax", "optax", "orbax-checkpoint", "grain", "numpy", "gin-config")

GOODPUT_FILE = "goodput.json"
"""Within a run folder: where the time of each start of training went, oldest first (`training/goodput.py`)."""


class RunFolder:
    """The folder of one run; opening it again continues the run.

    Of several processes all open it, and process 0 alone writes what is said here.

    Attributes:
      path: The folder.

    Raises:
      ConfigurationError: The folder belongs to another experiment, or cannot be written; other processes do not see it.
    """

    def __init__(self, path: Path, composition: Composition, parent: str | None) -> None:
        from recogdrive.hosts import member  # Only a run that has begun pays for jax.

        self.path = path
        self._composition = composition
        self._record: dict[str, Any] = {}
        self._writes = member.is_lead()
        if self._writes:
            self._open(path, composition, parent)
        member.require_shared(path)

    def _open(self, path: Path, composition: Composition, parent: str | None) -> None:
        existing = _read_record(path / "run.json")
        if existing is not None and existing["experiment"] != composition.name:
            raise ConfigurationError(
                f"{path} holds a run of {existing['experiment']}, not of {composition.name}; choose another --workdir."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._keep_config()
            attempts = [] if existing is None else existing["attempts"]
            attempts.append({"started": _now(), "command": " ".join(sys.argv), "status": "running"})
            self._record = self._describe(parent) | {"attempts": attempts}
            self._write_record()
        except OSError as error:
            raise ConfigurationError(f"Cannot write the run folder {path}: {error.strerror}.") from error

    def _keep_config(self) -> None:
        """Writes config.gin; an earlier one that differs is kept under a number and the difference is logged."""
        config = self.path / "config.gin"
        text = self._composition.text
        if config.exists() and config.read_text() != text:
            earlier = config.read_text()
            kept = self.path / f"config.{len(list(self.path.glob('config.*.gin')))}.gin"
            write_text(kept, earlier)
            change = difflib.unified_diff(
                earlier.splitlines(), text.splitlines(), kept.name, config.name, "", "", 0, ""
            )
            logging.warning("Continuing with a changed configuration:\n%s", "\n".join(change))
        write_text(config, text)

    def _describe(self, parent: str | None) -> dict[str, Any]:
        experiment = self._composition.experiment
        return {
            "experiment": self._composition.name,
            "description": "" if experiment is None else experiment.description,
            "starts_from": None if experiment is None else experiment.starts_from,
            "parent": parent,
            "commit": commit_of_checkout(),
            "versions": versions(),
            "device": device(),
        }

    def update(self, **facts: Any) -> None:
        """Adds facts to run.json."""
        if self._writes:
            self._record |= facts
            self._write_record()

    def close(self, status: str) -> None:
        """Ends this attempt: notes how it went and writes the operative configuration, that is, what was called."""
        if not self._writes:
            return
        self._record["attempts"][-1] |= {"finished": _now(), "status": status}
        _add_goodput(self._record["attempts"], self.path / GOODPUT_FILE)
        self._write_record()
        write_text(self.path / "operative_config.gin", gin.operative_config_str())

    def _write_record(self) -> None:
        write_text(self.path / "run.json", json.dumps(self._record, indent=2) + "\n")


def end_attempt(path: Path, status: str) -> None:
    """Notes in run.json how an attempt went whose process could not do so itself; one that did is left as it is.

    Raises:
      OSError: There is no record, or it cannot be written.
    """
    record = json.loads((path / "run.json").read_text())
    attempt = record["attempts"][-1]
    if attempt["status"] == "running":
        attempt |= {"finished": _now(), "status": status}
        _add_goodput(record["attempts"], path / GOODPUT_FILE)
        write_text(path / "run.json", json.dumps(record, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file at once: a reader sees the old text or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers."""
    return {"recogdrive": __version__, "python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in _PACKAGES
    }


def device() -> dict[str, Any]:
    """What jax runs on: platform, kind of device, how many, in how many processes; or why it runs on none."""
    import jax  # Only a run that has begun pays for it.

    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax asserts that one of the platforms asked for was there.
        # Nearly every stage fails next; the doctor is there to say why.
        problem = str(error) or "none of the platforms asked for is there"
        return {"platform": None, "problem": problem, "host": platform.node(), "cpu_cores": os.cpu_count()}
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processes": jax.process_count(),
        "host": platform.node(),
        "cpu_cores": os.cpu_count(),
    }


def commit_of_checkout() -> str | None:
    """Commit of the checkout this package runs from, with "+changes" if files differ from it; None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError) as error:
        logging.warning("Cannot ask git for the commit: %s", error)
        return None


def _read_record(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigurationError(f"{path} is not readable as JSON ({error}); move it away or restore it.") from error


def _add_goodput(attempts: list[dict[str, Any]], file: Path) -> None:
    """Gives every attempt the account of the training that began in it; a killed one could not do so itself."""
    try:
        accounts = json.loads(file.read_text())
    except (OSError, json.JSONDecodeError):
        return  # Nothing was trained, or nobody can say any more.
    for account in accounts:
        begun = [attempt for attempt in attempts if attempt["started"] <= account["started"]]
        if begun:
            begun[-1]["goodput"] = {name: value for name, value in account.items() if name != "started"}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
