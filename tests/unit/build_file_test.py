"""BUILD: every module in exactly one target, and every target's deps are what its modules import."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("recogdrive", "experiments", "tests", "benchmarks")
RULES = ("py_library", "py_binary", "py_test")
# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "absl": "absl_py",
    "gin": "gin_config",
    "orbax": "orbax_checkpoint",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "torch": "torch",
}


@functools.cache
def targets():
    """name -> keyword arguments of every rule in BUILD that this test knows."""
    found = {}
    for node in ast.parse((ROOT / "BUILD").read_text()).body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) in RULES:
            arguments = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            assert arguments["name"] not in found, f"two targets are called {arguments['name']}"
            found[arguments["name"]] = arguments | {"rule": call.func.id}
    return found


@functools.cache
def modules():
    return sorted(str(p.relative_to(ROOT)) for folder in SOURCE_FOLDERS for p in (ROOT / folder).rglob("*.py"))


def imported_names(path):
    """Modules a file imports, anywhere in it, as dotted names; `from a import b` counts as a.b and as a."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def owners():
    return {source: name for name, target in targets().items() for source in target["srcs"]}


def module_file(dotted):
    """File of the repository that a dotted import reaches, if any: a module, a package, or a name within one."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        stem = "/".join(parts[:end])
        for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
            if (ROOT / candidate).is_file():
                return candidate
    return None


@functools.cache
def programs_of_tests():
    """Import name -> module of what tests hand to other processes and benchmarks share: found on paths of their own."""
    found = (Path(m) for m in modules() if m.startswith(("tests/", "benchmarks/")))
    return {m.stem: str(m) for m in found if not m.stem.endswith("_test") and m.stem not in ("conftest", "__init__")}


def expected_deps(name, target):
    owner, deps, programs = owners(), set(), programs_of_tests()
    for source in target["srcs"]:
        for dotted in imported_names(source):
            top = dotted.split(".")[0]
            if top in ("recogdrive", "experiments"):
                deps.add(f":{owner[module_file(dotted)]}")
            elif top in programs:
                deps.add(f":{owner[programs[top]]}")
            elif top not in sys.stdlib_module_names:
                deps.add(f"@pip//{DISTRIBUTIONS.get(top, top.lower())}")
    return deps - {f":{name}"}


def test_every_module_belongs_to_exactly_one_target():
    claimed = [source for target in targets().values() for source in target["srcs"]]
    assert sorted(claimed) == sorted(set(claimed)), "a module is in two targets"
    assert sorted(claimed) == modules()


@pytest.mark.parametrize("name", targets())
def test_the_deps_of_a_target_are_what_its_modules_import(name):
    target = targets()[name]
    # pytest's conftest files and the runner are loaded without an import statement.
    implicit = {":test_fixtures", "@pip//pytest"} if target["rule"] == "py_test" else set()
    assert set(target.get("deps", [])) - implicit == expected_deps(name, target) - implicit


def test_packages_are_libraries_the_command_is_a_binary_and_tests_are_tests():
    for name, target in targets().items():
        for source in target["srcs"]:
            if source.endswith("_test.py"):
                assert target["rule"] == "py_test", name
            elif source == "recogdrive/main.py" or source.startswith("benchmarks/"):
                assert target["rule"] == "py_binary", name
            elif target["rule"] != "py_test":
                assert target["rule"] == "py_library", name


def test_a_library_holds_modules_of_one_package_only():
    for name, target in targets().items():
        if target["rule"] == "py_library" and name != "test_fixtures":
            assert len({str(Path(s).parent) for s in target["srcs"]}) == 1, name


def test_libraries_do_not_depend_on_each_other_in_a_circle():
    graph = {n: {d[1:] for d in t.get("deps", []) if d.startswith(":")} for n, t in targets().items()}
    done = set()
    while graph:
        free = {n for n, deps in graph.items() if deps <= done}
        assert free, f"a circle among {sorted(graph)}"
        done |= free
        graph = {n: deps for n, deps in graph.items() if n not in free}
