"""Which algorithms of ours there are, and how figures and tables show them. No torch.

Each method declares its `STYLE` in its own file. Commands that only read records need names and
styles, and importing a method would load torch, so the styles are read from the source text.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

INK = "#1b1f24"
PAPER = "#ffffff"
METHODS = Path(__file__).parents[1] / "method"  # the folder of their files


class Style(NamedTuple):
    """How an algorithm is shown: its row in tables, and its colour, marker and dash in figures.

    All are different from those of the others. Colour is never the only distinction, and bars have
    names. ``dash``: as matplotlib takes it; ``hollow``: whether the marker is.
    """

    row: float
    colour: str
    marker: str
    dash: Any
    hollow: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """Keywords for ``Axes.plot``: the marker, and the colours of its face and edge."""
        if self.hollow:
            return {"marker": self.marker, "mfc": PAPER, "mec": self.colour, "mew": 1.3}
        return {"marker": self.marker, "mfc": self.colour, "mec": INK, "mew": 0.7}


class DeclaredAlgorithm(NamedTuple):
    """An algorithm of ours: the file of its class, and its style, None if that cannot be read.

    ``bases``: names of the classes that its own is derived from; ``hparams``: those that it
    declares by name, not those that it has in common with others.
    """

    file: Path
    style: Style | None
    bases: tuple[str, ...] = ()
    hparams: frozenset[str] = frozenset()


def find_algorithms(file: Path) -> Iterator[tuple[str, DeclaredAlgorithm]]:
    """Name and algorithm of each class with a STYLE in a Python file, which is not run."""
    source = file.read_bytes()
    if b"STYLE" not in source:  # as in most files; parsing takes long
        return

    for node in find_public_classes(ast.parse(source)):
        assigned: dict[str, ast.expr | None] = {}
        for statement in node.body:
            if isinstance(statement, ast.Assign):
                assigned[ast.unparse(statement.targets[0])] = statement.value
            elif (
                isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "HPARAMS"
            ):
                assigned["HPARAMS"] = statement.value
        if "STYLE" in assigned:
            bases = tuple(map(ast.unparse, node.bases))
            hparams = frozenset(_names(assigned.get("HPARAMS")))
            yield node.name, DeclaredAlgorithm(file, _style(assigned["STYLE"]), bases, hparams)


def _names(declarations: ast.expr | None) -> Iterator[str]:
    """The names of hyperparameters such as ``positive("lr", ...)`` in source text."""
    for declaration in getattr(declarations, "elts", ()):
        first = next(iter(getattr(declaration, "args", ())), None)
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


def get_owners(hparam: str, algorithms: Mapping[str, DeclaredAlgorithm]) -> set[str]:
    """The algorithms that declare a hyperparameter or inherit it; none of a common one."""
    owners = {name for name, declared in algorithms.items() if hparam in declared.hparams}
    while heirs := {
        name
        for name, declared in algorithms.items()
        if name not in owners and not owners.isdisjoint(declared.bases)
    }:
        owners |= heirs
    return owners


def find_public_classes(source: ast.Module) -> list[ast.ClassDef]:
    """The class statements at the top level of a file whose names have no underscore in front."""
    classes = [node for node in source.body if isinstance(node, ast.ClassDef)]
    return [node for node in classes if not node.name.startswith("_")]


def _style(call: ast.expr | None) -> Style | None:
    """The style of ``Style(...)`` in source text; None if its arguments are no literals."""
    if not isinstance(call, ast.Call):
        return None
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        keywords = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
        return Style(*arguments, **keywords)
    except (ValueError, TypeError):
        return None


def sort_by_row(algorithms: Mapping[str, DeclaredAlgorithm]) -> dict[str, DeclaredAlgorithm]:
    """The algorithms in the order of the tables' rows, those without a style last."""

    def row(item: tuple[str, DeclaredAlgorithm]) -> float:
        return item[1].style.row if item[1].style else math.inf

    return dict(sorted(algorithms.items(), key=row))


# Name -> algorithm of this package's algorithms, in the order of their rows.
SHIPPED = sort_by_row(dict(item for file in METHODS.glob("*.py") for item in find_algorithms(file)))
# In the order of the rows of tables.
ALGORITHMS = tuple(SHIPPED)
