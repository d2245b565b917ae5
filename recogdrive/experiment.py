"""Experiments by name: what they are, where they start from, which files they are made of.

Nothing here imports torch or jax, so that listing experiments answers at once.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from recogdrive.suggestions import did_you_mean

_PACKAGE = Path(__file__).resolve().parent


class ConfigurationError(ValueError):
    """What was asked for does not fit together; the message says what, and what to do."""


@dataclass(frozen=True)
class Reference:
    """A published result that an experiment is measured against.

    Attributes:
      pdms: PDM score in percent.
      split: Where it was measured.
      source: Who published it.
    """

    pdms: float
    split: str
    source: str


@dataclass(frozen=True)
class Experiment:
    """One entry of the registry; its configuration is `experiments/<name>.gin`.

    Attributes:
      name: `<size>_<stage>[_<option>]`; those that run on a laptop are `debug_*`, `mini_*` and `quickstart`.
      description: One sentence.
      starts_from: Name of the experiment whose weights this one starts from.
      parent_macro: Macro that names their folder.
      reads: Name of the experiment whose output this one reads as data, where it starts from no weights.
      reference: Published score, where there is one.
      missing: What this version of the product lacks to run it; None for experiments that run.
    """

    name: str
    description: str
    starts_from: str | None = None
    parent_macro: str = "PARENT"
    reads: str | None = None
    reference: Reference | None = None
    missing: str | None = None

    @property
    def gin_file(self) -> Path:
        """The experiment's configuration."""
        return config_root() / "experiments" / f"{self.name}.gin"

    def require_runnable(self) -> None:
        """Refuses an experiment that this version cannot run.

        Raises:
          ConfigurationError: Says what is missing.
        """
        if self.missing is not None:
            raise ConfigurationError(f"Experiment {self.name} cannot run in this version: it needs {self.missing}.")


def config_root() -> Path:
    """Folder that holds `gin/` and `experiments/`: inside an installed package, else the checkout."""
    packaged = _PACKAGE / "_configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent


def load_registry() -> Mapping[str, Experiment]:
    """Reads `experiments/registry.py` of `config_root()`; name -> experiment, in the order written there.

    Raises:
      ConfigurationError: Two entries share a name, or one builds on an unknown experiment.
    """
    path = config_root() / "experiments" / "registry.py"
    spec = importlib.util.spec_from_file_location("recogdrive_experiments_registry", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    registry: dict[str, Experiment] = {}
    for experiment in module.EXPERIMENTS:
        if experiment.name in registry:
            raise ConfigurationError(f"{path} registers {experiment.name} twice.")
        registry[experiment.name] = experiment
    for experiment in registry.values():
        for name in (experiment.starts_from, experiment.reads):
            if name is not None and name not in registry:
                raise ConfigurationError(f"{experiment.name} builds on {name}, which {path} lacks.")
    return registry


def find_experiment(name: str) -> Experiment:
    """Looks an experiment up.

    Raises:
      ConfigurationError: There is none of that name; the message names the nearest ones.
    """
    registry = load_registry()
    if name not in registry:
        raise ConfigurationError(
            f"There is no experiment {name!r}.{did_you_mean(name, registry)} --list shows all {len(registry)}."
        )
    return registry[name]


def lineage(experiment: Experiment) -> list[Experiment]:
    """The experiment and those it builds on, the first to be run first."""
    registry = load_registry()
    chain = [experiment]
    while (before := chain[0].starts_from or chain[0].reads) is not None:
        chain.insert(0, registry[before])
    return chain


def format_registry(registry: Mapping[str, Experiment]) -> str:
    """The table that `--list` prints."""
    lines = [
        f"{len(registry)} experiments; run one with: python -m recogdrive.main --experiment=NAME --workdir=DIR",
        "",
    ]
    width = max(map(len, registry))
    for heading, runnable in [("Ready to run", True), ("Known, and not in this version", False)]:
        chosen = [e for e in registry.values() if (e.missing is None) is runnable]
        if not chosen:
            continue
        lines.append(heading)
        for e in chosen:
            notes = [f"starts from {e.starts_from}"] if e.starts_from else []
            notes += [f"reads {e.reads}"] if e.reads else []
            if e.reference:
                notes.append(f"reference {e.reference.pdms} PDMS on {e.reference.split}")
            lines.append(f"  {e.name:<{width}}  {e.description}")
            if notes:
                lines.append(f"  {'':<{width}}  {'; '.join(notes)}")
            if e.missing:
                lines.append(f"  {'':<{width}}  needs {e.missing}")
        lines.append("")
    return "\n".join(lines).rstrip()
