"""The rooms and their floors, read from every import: those in functions and for types, too."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from domainbed_carft import plugin
from domainbed_carft.plugin import hooked_modules as names

REPO = Path(__file__).parents[1]
PACKAGE = "domainbed_carft"

# Each may use all below it; rooms of one floor do not know each other.
FLOORS = (
    ("text", "machine"),
    ("errors",),
    ("files",),
    ("data", "jobs", "clips"),
    ("suites",),
    ("method", "launchers", "results", "pictures"),
    ("sweep", "runs", "plugin"),
    ("report", "doctor"),
    ("cli",),
    ("__main__",),
)
# What the harness may stand on; it reaches the algorithms only as any host does.
GROUND = ("data", "jobs", "files", "text", "errors", "machine", "clips.pictures", "pictures")


def sources(folder: str) -> dict[str, Path]:
    """Module name -> file, for all modules below a folder of the source tree."""
    found = {}
    for path in sorted((REPO / folder).rglob("*.py")):
        parts = path.relative_to((REPO / folder).parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = sources(PACKAGE)


def imports(path: Path) -> set[str]:
    """Full names in all import statements of a file; of a name in a module both."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def ours(path: Path) -> set[str]:
    """The modules of the package that a file imports; of a module and one in it the latter."""
    found = imports(path) & MODULES.keys()
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def test_imports_go_down_only() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    wrong = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in ours(path)
        if room(module) and room(other) not in ("", room(module))
        and floor[room(other)] >= floor[room(module)]
    ]  # fmt: skip
    assert not wrong
    assert {room(name) for name in MODULES} == {"", *floor}


def test_no_circle_of_modules() -> None:
    graph = {module: ours(path) - {module} for module, path in MODULES.items()}
    while free := {module for module, others in graph.items() if not others & graph.keys()}:
        graph = {module: others for module, others in graph.items() if module not in free}
    assert not graph


def test_what_every_interpreter_start_loads_is_small() -> None:
    module = MODULES[f"{PACKAGE}.plugin"]
    assert {name.split(".")[0] for name in imports(module)} <= {*sys.stdlib_module_names, PACKAGE}
    at_top = ast.parse(module.read_text(encoding="utf-8")).body
    assert not [node.module for node in at_top if isinstance(node, ast.ImportFrom)]
    assert plugin.SWITCH == names.SWITCH


def test_the_harness_stands_on_the_ground_only() -> None:
    allowed = [f"{PACKAGE}.{name}" for name in GROUND]
    wrong = [
        f"{path.name} imports {name}"
        for path in sources("third_party/domainbed").values()
        for name in ours(path)
        if name != PACKAGE and not any(f"{name}.".startswith(f"{one}.") for one in allowed)
    ]
    assert not wrong


def test_only_the_method_and_the_plugin_know_a_domainbed() -> None:
    """By name: others ask for it where they run it."""
    at_top = {
        module
        for module, path in MODULES.items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if re.match(r"(from|import) domainbed\b", ast.unparse(node))
    }
    assert {room(module) for module in at_top} <= {"method", "runs"}


def test_no_file_is_too_long_to_be_read_at_once() -> None:
    everything = [*MODULES.values(), *sources("third_party/domainbed").values()]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in everything}
    assert not [f"{path.relative_to(REPO)}: {n} lines" for path, n in lines.items() if n > 300]
