"""A launch file: which experiments run, with which settings, after which others."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recogdrive.composition import composed_text
from recogdrive.experiment import ConfigurationError, find_experiment
from recogdrive.launch.slots import KINDS
from recogdrive.suggestions import did_you_mean

LOGS_FOLDER = "logs"
"""Where the output of runs lies in the folder of a launch."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_MACRO_OR_BINDING = re.compile(r"[A-Za-z_][\w./]*")
_MACRO = re.compile(r"[A-Z][A-Z0-9_]*")
_MACRO_LINE = re.compile(r"^([A-Z][A-Z0-9_]*) *=", re.MULTILINE)
_FOLDER_OF = re.compile(r"\{run:([^{}]*)\}")
_SHARED_KEYS = ("gin_files", "bindings", "env")
_FILE_KEYS = ("workdir", "slots", "command", "experiments", *_SHARED_KEYS)
_RUN_KEYS = ("name", "experiment", "workdir", "after", "on", *_SHARED_KEYS)


@dataclass(frozen=True)
class Run:
    """One run of an experiment.

    Attributes:
      name: How this launch calls it.
      experiment: Name in the registry; None where `gin_files` say everything.
      workdir: Its folder.
      gin_files: Read after the experiment's own file.
      bindings: Gin statements, read last.
      after: Runs that have to be finished before.
      on: Kind of slot it may take ("cpu", "gpu", "tpu"); None for any.
      env: Variables of its own, over those of the slot.
    """

    name: str
    experiment: str | None
    workdir: Path
    gin_files: tuple[str, ...] = ()
    bindings: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    on: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    def arguments(self) -> list[str]:
        """Flags of `python -m recogdrive.main`."""
        return [
            *([f"--experiment={self.experiment}"] if self.experiment else []),
            f"--workdir={self.workdir}",
            *(f"--gin_file={name}" for name in self.gin_files),
            *(f"--gin_bindings={statement}" for statement in self.bindings),
        ]

    def configuration(self) -> str:
        """Text that the run would keep as its `config.gin`.

        Raises:
          ConfigurationError: The experiment or a file does not exist.
        """
        experiment = None if self.experiment is None else find_experiment(self.experiment)
        if experiment is not None:
            experiment.require_runnable()
        return composed_text(experiment, self.gin_files, self.bindings)

    def check_macros(self) -> list[str]:
        """Refuses a binding of a macro that no file defines, as the run would, but before any run starts.

        Returns:
          The macros there are.

        Raises:
          ConfigurationError: Names the binding and the nearest macros.
        """
        macros = _MACRO_LINE.findall(replace(self, bindings=()).configuration())
        for statement in self.bindings:
            name = statement.split("=")[0].strip()
            if _MACRO.fullmatch(name) and name not in macros:
                raise ConfigurationError(f"{self.name}: no file of it defines {name!r}.{did_you_mean(name, macros)}")
        return macros


@dataclass(frozen=True)
class Plan:
    """What a launch file says.

    Attributes:
      root: Folder of the launch: logs, summary, and the run folders that name no place of their own.
      runs: In the order of the file.
      slots: As written; empty to be given on the command line.
      command: What a run is started by; empty for this Python's `-m recogdrive.main`.
    """

    root: Path
    runs: tuple[Run, ...]
    slots: tuple[str, ...] = ()
    command: tuple[str, ...] = ()


def read_toml(path: Path) -> dict[str, Any]:
    """Content of a TOML file.

    Raises:
      ConfigurationError: It cannot be read.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no TOML: {error}.") from error


def read_plan(path: Path) -> Plan:
    """Reads and checks a launch file; docs/launching.md says what stands in one.

    Raises:
      ConfigurationError: It cannot be read, a key or a name is unknown, two runs share a name or a folder, runs wait
        for each other in a circle, or an experiment cannot run.
    """
    content = read_toml(path)
    check_keys(content, _FILE_KEYS, str(path))
    root = Path(read_text(content, "workdir", f"runs/{path.stem}", str(path)))
    tables = content.get("experiments")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ConfigurationError(f"{path} lists no experiments; each is a table that begins with [[experiments]].")
    runs = tuple(_read_run(table, content, root, f"{path}, experiment {i + 1}") for i, table in enumerate(tables))
    runs = _with_folders(runs, path)
    _check_names(runs, path)
    _check_order(runs, path)
    for run in runs:
        run.check_macros()
    slots = tuple(read_texts(content, "slots", str(path)))
    return Plan(root, runs, slots, tuple(read_texts(content, "command", str(path))))


def _read_run(table: Mapping[str, Any], shared: Mapping[str, Any], root: Path, where: str) -> Run:
    check_keys(table, _RUN_KEYS, where)
    experiment = read_text(table, "experiment", None, where)
    name = read_text(table, "name", experiment, where)
    if name is None or not _NAME.fullmatch(name) or name == LOGS_FOLDER:
        raise ConfigurationError(
            f"{where}: name={name!r} must be letters, digits, '_', '.' and '-', and not {LOGS_FOLDER}."
        )
    on = read_text(table, "on", None, where)
    if on is not None and on not in KINDS:
        raise ConfigurationError(f"{where}: on={on!r} must be a kind of slot: {', '.join(KINDS)}.")
    return Run(
        name=name,
        experiment=experiment,
        workdir=Path(read_text(table, "workdir", str(root / name), where)),
        gin_files=(*read_texts(shared, "gin_files", where), *read_texts(table, "gin_files", where)),
        bindings=(*read_bindings(shared, where), *read_bindings(table, where)),
        after=tuple(read_texts(table, "after", where)),
        on=on,
        env={**read_env(shared, where), **read_env(table, where)},
    )


def read_bindings(table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Gin statements of a table's `bindings`: a list of statements, or a table of names and plain values.

    Raises:
      ConfigurationError: It is neither, or a value has no form in gin.
    """
    bindings = table.get("bindings", {})
    if isinstance(bindings, dict):
        named = with_dots(bindings)
        return tuple(f"{_checked(name, where)}={gin_value(value, where)}" for name, value in named.items())
    return tuple(read_texts(table, "bindings", where))


def with_dots(table: Mapping[str, Any]) -> dict[str, Any]:
    """Macros and bindings by name: `Trainer.seed = 1` is a table in a table to TOML."""
    named: dict[str, Any] = {}
    for name, value in table.items():
        inner = isinstance(value, dict) and "." not in name and not _MACRO.fullmatch(name)
        named |= {f"{name}.{parameter}": v for parameter, v in value.items()} if inner else {name: value}
    return named


def gin_value(value: Any, where: str) -> str:
    """A TOML value as gin reads it: 32, 0.001, True, "text", [1, 2].

    Raises:
      ConfigurationError: It is a date or the like.
    """
    if isinstance(value, list):
        return "[" + ", ".join(gin_value(item, where) for item in value) + "]"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{gin_value(key, where)}: {gin_value(item, where)}" for key, item in value.items()) + "}"
        )
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # In double quotes, which a shell's single quotes can hold.
    if isinstance(value, (bool, int, float)):
        return repr(value)
    raise ConfigurationError(f"{where}: {value!r} has no form in gin; write the statement as a text in a list.")


def read_env(table: Mapping[str, Any], where: str) -> dict[str, str]:
    """Variables of a table's `env`.

    Raises:
      ConfigurationError: It is no table of texts and numbers.
    """
    env = table.get("env", {})
    if not isinstance(env, dict) or not all(isinstance(v, (str, int, float)) for v in env.values()):
        raise ConfigurationError(f"{where}: env must be a table of variables, such as env = {{ XLA_FLAGS = '...' }}.")
    return {name: str(value) for name, value in env.items()}


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuses a key that nothing reads.

    Raises:
      ConfigurationError: Names it and the nearest known ones.
    """
    for key in table:
        if key not in known:
            raise ConfigurationError(f"{where} has an unknown key {key!r}.{did_you_mean(key, known)}")


def _checked(name: str, where: str) -> str:
    if not _MACRO_OR_BINDING.fullmatch(name):
        raise ConfigurationError(f"{where}: {name!r} is no macro (BATCH_SIZE) and no binding ('Trainer.seed').")
    return name


def read_text(table: Mapping[str, Any], key: str, default: str | None, where: str) -> str | None:
    """The text under a key.

    Raises:
      ConfigurationError: It is something else.
    """
    value = table.get(key, default)
    if value is not None and not isinstance(value, str):
        raise ConfigurationError(f"{where}: {key}={value!r} must be a text.")
    return value


def read_texts(table: Mapping[str, Any], key: str, where: str) -> list[str]:
    """The list of texts under a key; empty where there is none.

    Raises:
      ConfigurationError: It is something else.
    """
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigurationError(f"{where}: {key}={value!r} must be a list of texts.")
    return value


def _with_folders(runs: Sequence[Run], path: Path) -> tuple[Run, ...]:
    """Puts folders of runs where `{run:NAME}` stands; who reads another's folder waits for it."""
    folders = {run.name: run.workdir for run in runs}
    filled = []
    for run in runs:
        mentioned = []

        def folder(match: re.Match[str], run: Run = run, mentioned: list[str] = mentioned) -> str:
            name = match[1]
            if name not in folders:
                raise ConfigurationError(f"{path}: {run.name} reads {match[0]}.{did_you_mean(name, folders)}")
            mentioned.append(name)
            return str(folders[name])

        bindings = tuple(_FOLDER_OF.sub(folder, statement) for statement in run.bindings)
        env = {name: _FOLDER_OF.sub(folder, value) for name, value in run.env.items()}
        after = tuple(dict.fromkeys([*run.after, *mentioned]))
        filled.append(replace(run, bindings=bindings, env=env, after=after))
    return tuple(filled)


def _check_names(runs: Sequence[Run], path: Path) -> None:
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            raise ConfigurationError(f"{path}: two experiments are called {run.name!r}; give each a name.")
        for other in runs:
            if other is not run and other.workdir.resolve() == run.workdir.resolve():
                raise ConfigurationError(f"{path}: {run.name} and {other.name} share the folder {run.workdir}.")
        for name in run.after:
            if name not in names:
                raise ConfigurationError(f"{path}: {run.name} comes after {name!r}.{did_you_mean(name, names)}")


def _check_order(runs: Sequence[Run], path: Path) -> None:
    waiting = {run.name: set(run.after) for run in runs}
    while waiting:
        ready = [name for name, before in waiting.items() if not before & waiting.keys()]
        if not ready:
            raise ConfigurationError(f"{path}: these wait for each other in a circle: {', '.join(waiting)}.")
        for name in ready:
            del waiting[name]
