"""The rooms and their floors, read from every import: those in functions and for types, too."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from domainbed_carft import plugin, process_variables
from domainbed_carft.plugin import hooked_modules

REPO = Path(__file__).parents[1]
PACKAGE = "domainbed_carft"
HARNESS = "third_party/domainbed"

# Each may use all below it; rooms of one floor do not know each other.
FLOORS = (
    ("process_variables",),
    ("text", "questions", "machine", "version", "lazy"),
    ("errors",),
    ("files", "paths", "arguments"),
    ("data", "jobs"),
    ("pictures",),
    ("clips", "suites"),
    ("method", "launchers", "results"),
    ("sweep", "runs", "plugin"),
    ("report", "doctor"),
    ("preflight", "checks"),
    ("cli",),
    ("__main__",),
)
FLOOR_NUMBERS = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# What the harness may stand on; it reaches the algorithms only as any host does.
GROUND = (
    "data",
    "jobs",
    "results",
    "files",
    "text",
    "questions",
    "errors",
    "machine",
    "pictures",
    "process_variables",
)

# They name process variables: the table itself, and what every interpreter start loads.
NAMING_VARIABLES = {f"{PACKAGE}.process_variables", f"{PACKAGE}.plugin"}

# The one module that talks to a GPU, and what others would talk to it by.
DEVICES = f"{PACKAGE}.machine.devices"
GPU_ATTRIBUTES = {"cuda", "is_cuda", "accelerator", "hip", "mps", "xpu"}

# The one class name that stands for two things: DomainBed's scripts name theirs so, too.
SHARED_CLASS_NAMES = {"Job"}

# Named in CONTRIBUTING, and no part of the source tree.
FILES_OF_JOBS = {"sweep.json"}


def sources(folder: str) -> dict[str, Path]:
    """Module name -> file, for all modules below a folder of the source tree."""
    modules = {}
    for path in sorted((REPO / folder).rglob("*.py")):
        parts = path.relative_to((REPO / folder).parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


MODULES = sources(PACKAGE)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file."""
    return [*ast.walk(parsed(path))]


@pytest.fixture(scope="module", autouse=True)
def freed_nodes() -> Iterator[None]:
    """Lets go of what was parsed after the last test."""
    yield
    for function in (parsed, nodes, imports):
        function.cache_clear()


@functools.cache
def imports(path: Path) -> set[str]:
    """Full names in all import statements of a file; of a name in a module both."""
    names = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
            names.add(str(node.module))
    return names


def imported_modules(path: Path) -> set[str]:
    """The modules of the package that a file imports; of a module and one in it the latter."""
    names = imports(path) & MODULES.keys()
    return {name for name in names if not any(inner.startswith(f"{name}.") for inner in names)}


def room_of(module: str) -> str:
    """The room that a module is in, "" for the package itself."""
    return [*module.split("."), ""][1]


def goes_down(module: str, imported: str) -> bool:
    """Whether the one may import the other: of its own room, or of one on a lower floor."""
    room = room_of(module)
    imported_room = room_of(imported)
    if room == imported_room or "" in (room, imported_room):
        return True
    return FLOOR_NUMBERS[imported_room] < FLOOR_NUMBERS[room]


def test_imports_go_only_to_lower_floors() -> None:
    assert {room_of(module) for module in MODULES} == {"", *FLOOR_NUMBERS}

    wrong = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in imported_modules(path)
        if not goes_down(module, imported)
    ]
    assert not wrong


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {module: imported_modules(path) - {module} for module, path in MODULES.items()}

    while graph:
        leaves = {module for module, imported in graph.items() if not imported & graph.keys()}
        assert leaves, f"circular imports among {sorted(graph)}"
        graph = {module: graph[module] for module in graph.keys() - leaves}


def test_the_start_hook_loads_few_modules() -> None:
    module = MODULES[f"{PACKAGE}.plugin"]
    top_packages = {name.split(".")[0] for name in imports(module)}
    assert top_packages <= {*sys.stdlib_module_names, PACKAGE}

    assert not [node.module for node in parsed(module).body if isinstance(node, ast.ImportFrom)]
    assert plugin.SWITCH == hooked_modules.SWITCH == process_variables.DISABLE.name


def named_variables(path: Path) -> set[str]:
    """The process variables of ours that a file names in its texts, except in docstrings."""
    docstrings = {
        id(node.value)
        for node in nodes(path)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    texts = [
        node.value
        for node in nodes(path)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    ]
    return {*re.findall(r"DOMAINBED_[A-Z][A-Z_]*", " ".join(texts))}


def test_process_variables_are_named_in_their_table_only() -> None:
    modules = {**MODULES, **sources(HARNESS)}
    naming = {module: named_variables(path) for module, path in modules.items()}
    naming = {module: names for module, names in naming.items() if names}

    assert naming.keys() == NAMING_VARIABLES
    in_table = [variable.name for variable in process_variables.ALL]
    assert set().union(*naming.values()) == {*in_table}
    assert len(in_table) == len({*in_table})


def gpu_expressions(path: Path) -> list[str]:
    """The expressions by which a file asks for a GPU itself, and the texts that name its type."""
    expressions = []
    for node in nodes(path):
        is_call = isinstance(node, ast.Attribute) and node.attr in GPU_ATTRIBUTES
        is_name = isinstance(node, ast.Constant) and node.value in GPU_ATTRIBUTES
        if is_call or is_name:
            expressions.append(ast.unparse(node))
    return expressions


def test_one_module_talks_to_the_gpu() -> None:
    modules = {**MODULES, **sources(HARNESS)}
    found = {module: gpu_expressions(path) for module, path in modules.items()}
    found = {module: expressions for module, expressions in found.items() if expressions}

    assert {"torch.cuda", "torch.accelerator"} <= {*found.pop(DEVICES)}
    # Which CUDA torch was built for is printed, as upstream does.
    assert found == {"domainbed.scripts.train": ["torch.version.cuda"]}


def public_class_names(path: Path) -> list[str]:
    """The names of the classes in a file, except those that begin with an underscore."""
    names = [node.name for node in nodes(path) if isinstance(node, ast.ClassDef)]
    return [name for name in names if not name.startswith("_")]


def test_a_class_name_stands_for_one_thing() -> None:
    files_by_name: dict[str, list[Path]] = {}
    for path in (*MODULES.values(), *sources(HARNESS).values()):
        for name in public_class_names(path):
            files_by_name.setdefault(name, []).append(path.relative_to(REPO))

    shared = {name: paths for name, paths in files_by_name.items() if len(paths) > 1}
    assert shared.keys() == SHARED_CLASS_NAMES, shared


def test_the_harness_imports_only_the_lowest_rooms() -> None:
    ground = [f"{PACKAGE}.{name}" for name in GROUND]
    wrong = [
        f"{path.name} imports {name}"
        for path in sources(HARNESS).values()
        for name in imported_modules(path)
        if name != PACKAGE and not any(f"{name}.".startswith(f"{allowed}.") for allowed in ground)
    ]
    assert not wrong


def test_only_the_method_and_the_runs_import_a_domainbed_by_name() -> None:
    """At their top: others ask for it where they run it."""
    rooms = {
        room_of(module)
        for module, path in MODULES.items()
        for node in parsed(path).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and re.match(r"(from|import) domainbed\b", ast.unparse(node))
    }
    assert rooms <= {"method", "runs"}


def test_contributing_lists_every_room() -> None:
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = text.split("```")[1].partition("third_party")[0]

    folders = re.findall(r"^  (\w+)/", tree, flags=re.MULTILINE)
    (single_files,) = re.findall(r"^  (\w+(?:, \w+)+)$", tree, flags=re.MULTILINE)

    assert {*folders, *single_files.split(", ")} == FLOOR_NUMBERS.keys() - {"__main__"}


def test_the_files_in_the_tables_of_contributing_exist() -> None:
    lines = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    tables = "\n".join(line for line in lines if line.startswith("|"))

    named = set(re.findall(r"`([\w./-]+(?:/|\.py|\.json|\.md))`", tables)) - FILES_OF_JOBS
    places = (REPO, REPO / PACKAGE, REPO / HARNESS)
    missing = [name for name in named if not any((place / name).exists() for place in places)]

    assert len(named) > 40
    assert not missing
