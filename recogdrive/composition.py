"""Gin files and bindings -> one checked, self-contained configuration."""

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import gin
from gin import config_parser

from recogdrive.experiment import ConfigurationError, Experiment, config_root
from recogdrive.suggestions import did_you_mean

_INCLUDE = re.compile(r"""^include\s+(['"])(?P<path>.+?)\1\s*(#.*)?$""")


@dataclass(frozen=True)
class Composition:
    """A configuration ready to run.

    Attributes:
      experiment: Its registry entry; None when it was composed from gin files alone.
      text: Every statement, includes expanded: running it alone gives the same run.
    """

    experiment: Experiment | None
    text: str

    @property
    def name(self) -> str:
        """The experiment's name, or "custom"."""
        return "custom" if self.experiment is None else self.experiment.name

    def resolved(self) -> str:
        """What gin holds after parsing, in gin's own order."""
        return gin.config_str()


class _Binding(NamedTuple):
    """One `selector.argument = value` or `MACRO = value` line."""

    scope: str
    selector: str
    argument: str
    origin: str
    macros: tuple[str, ...]
    references: tuple[str, ...]
    is_plain_macro: bool

    @property
    def key(self) -> str:
        scoped = f"{self.scope}/{self.selector}" if self.scope else self.selector
        return f"{scoped}.{self.argument}" if self.argument else scoped


class _Used(NamedTuple):
    """Stands for a macro or a reference while a value is parsed."""

    name: str


@dataclass
class _Recorder(config_parser.ParserDelegate):
    """Notes the names a value mentions, resolving none."""

    macros: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Used:
        self.references.append(scoped_configurable_name)
        return _Used(scoped_configurable_name)

    def macro(self, macro_name: str) -> _Used:
        self.macros.append(macro_name)
        return _Used(macro_name)


def compose(experiment: Experiment | None, gin_files: Sequence[str], bindings: Sequence[str]) -> Composition:
    """Expands, checks and loads a configuration into gin.

    Later statements win: the experiment's file, then `gin_files` in order, then `bindings`.

    Args:
      experiment: Whose gin file comes first; None to use `gin_files` alone.
      gin_files: Paths, looked up in `config_root()` first and then in the working folder.
      bindings: Statements as in a gin file, such as `BATCH_SIZE=32`.

    Raises:
      ConfigurationError: A file is missing, a statement does not parse, a name is unknown (the nearest is suggested),
        a binding overrides a macro that no file defines, or hides one that a file uses in its place.
    """
    parts = _parts(experiment, gin_files)
    defined = [b for origin, text in parts for b in _bindings(text, origin)]
    overrides = [b for binding in bindings for b in _bindings(binding, f"--gin_bindings {binding!r}")]
    _check_overrides(overrides, defined)
    _check_names(defined + overrides)
    text = _joined(parts, bindings)
    gin.clear_config()
    try:
        gin.parse_config(text)
    except (ValueError, SyntaxError) as error:
        raise ConfigurationError(f"Gin refuses the configuration: {error}") from error
    return Composition(experiment, text)


def composed_text(experiment: Experiment | None, gin_files: Sequence[str], bindings: Sequence[str]) -> str:
    """The text that `compose` would give, without importing or checking what it names: answers at once.

    Raises:
      ConfigurationError: A file is missing.
    """
    return _joined(_parts(experiment, gin_files), bindings)


def _parts(experiment: Experiment | None, gin_files: Sequence[str]) -> list[tuple[str, str]]:
    """Origin and expanded text of each file, in order."""
    if experiment is None and not gin_files:
        raise ConfigurationError("Nothing to run: pass --experiment=NAME (--list shows them) or --gin_file=FILE.")
    return [(str(path), _expand(path)) for path in _files(experiment, gin_files)]


def _joined(parts: Sequence[tuple[str, str]], bindings: Sequence[str]) -> str:
    every = [*parts, ("--gin_bindings", "\n".join(bindings))] if bindings else parts
    return "\n".join(f"# {'-' * 8} {origin}\n{body.strip()}\n" for origin, body in every)


def _files(experiment: Experiment | None, gin_files: Sequence[str]) -> Iterator[Path]:
    if experiment is not None:
        yield experiment.gin_file
    for name in gin_files:
        yield _locate(name, named_by="--gin_file")


def _locate(name: str, named_by: str) -> Path:
    """Finds a gin file; the product's own folder comes before a `gin/` that happens to lie in the working folder."""
    for candidate in (config_root() / name, Path(name)):
        if candidate.is_file():
            return candidate
    known = [str(p.relative_to(config_root())) for folder in ("gin", "experiments") for p in _gin_files(folder)]
    raise ConfigurationError(f"{named_by} names {name}, and there is no such file.{did_you_mean(name, known)}")


def _gin_files(folder: str) -> list[Path]:
    return sorted((config_root() / folder).rglob("*.gin"))


def _expand(path: Path, open_files: tuple[Path, ...] = ()) -> str:
    """Text of a gin file with every include replaced by what it includes."""
    if path in open_files:
        raise ConfigurationError(f"Includes go in a circle: {' -> '.join(map(str, (*open_files, path)))}.")
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigurationError(f"Cannot read {path}: {error.strerror}.") from error
    expanded = []
    for line in lines:
        include = _INCLUDE.match(line)
        if include is None:
            expanded.append(line)
        else:
            expanded.append(_expand(_locate(include["path"], named_by=str(path)), (*open_files, path)))
    return "\n".join(expanded)


def _bindings(text: str, origin: str) -> Iterator[_Binding]:
    """Bindings of a text without includes; modules named by its import statements are imported on the way."""
    recorder = _Recorder()
    parser = config_parser.ConfigParser(text, recorder)
    try:
        for statement in parser:
            if isinstance(statement, config_parser.ImportStatement):
                _import(statement.module, origin)
            elif isinstance(statement, config_parser.BindingStatement):
                yield _Binding(
                    statement.scope,
                    statement.selector,
                    statement.arg_name,
                    origin,
                    tuple(recorder.macros),
                    tuple(recorder.references),
                    isinstance(statement.value, _Used) and bool(recorder.macros),
                )
            recorder.macros.clear()
            recorder.references.clear()
    except SyntaxError as error:
        raise ConfigurationError(
            f"{origin}: {(error.msg or 'not a gin statement').splitlines()[-1].strip()} "
            f"({(error.text or text).strip()!r}). "
            "Write NAME=value or Component.parameter=value, with strings in quotes."
        ) from error


def _import(module: str, origin: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{origin} imports {module}, which cannot be imported: {error}.") from error


def _check_overrides(overrides: Sequence[_Binding], defined: Sequence[_Binding]) -> None:
    """Refuses overrides that gin would accept and then ignore, or that would make another one be ignored."""
    macros = {b.key for b in defined if not b.argument}
    reached_by_macro = {b.key: b.macros[0] for b in defined if b.is_plain_macro and b.argument}
    for binding in overrides:
        if not binding.argument and binding.key not in macros:
            raise ConfigurationError(
                f"{binding.origin} sets a macro that no file of this experiment defines."
                f"{did_you_mean(binding.key, macros)}"
            )
        if binding.key in reached_by_macro:
            macro = reached_by_macro[binding.key]
            raise ConfigurationError(
                f"{binding.origin} would hide the macro {macro}, which this experiment sets {binding.key} by; "
                f"set {macro}=... instead."
            )


def _check_names(bindings: Sequence[_Binding]) -> None:
    """Refuses macros that are used and not defined, and unknown components and parameters."""
    registry = gin.config._REGISTRY
    known = sorted({selector.split(".")[-1] for selector, _ in registry.items() if not selector.startswith("gin.")})
    macros = {b.key for b in bindings if not b.argument}
    for binding in bindings:
        for macro in binding.macros:
            if macro not in macros:
                raise ConfigurationError(
                    f"{binding.origin}: {binding.key} uses the macro %{macro}, which nothing defines."
                    f"{did_you_mean(macro, macros)}"
                )
        for reference in (*binding.references, *([binding.selector] if binding.argument else [])):
            name = reference.split("/")[-1]
            if not registry.matching_selectors(name):
                raise ConfigurationError(
                    f"{binding.origin}: there is no component {name!r} ({binding.key}).{did_you_mean(name, known)}"
                )
        if binding.argument:
            _check_parameter(binding, registry.get_match(binding.selector).wrapped)


def _check_parameter(binding: _Binding, component: object) -> None:
    parameters = inspect.signature(component).parameters
    if binding.argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    raise ConfigurationError(
        f"{binding.origin}: {binding.selector} has no parameter {binding.argument!r}."
        f"{did_you_mean(binding.argument, parameters)}"
    )
