"""The package's algorithms and their styles in figures and tables, without torch.

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
METHODS = Path(__file__).parents[1] / "method"


class Style(NamedTuple):
    """Row of an algorithm in tables, and its colour, marker and dash in figures.

    Each algorithm has its own. Colour is never the only distinction.

    Attributes:
        row: Sort key of the row in tables.
        colour: Colour of lines, markers and bars, for matplotlib.
        marker: Marker of points, for matplotlib.
        dash: Line style, for matplotlib.
        hollow: True if the marker is not filled.
    """

    row: float
    colour: str
    marker: str
    dash: Any
    hollow: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot`` for the marker and its colours."""
        if self.hollow:
            return {"marker": self.marker, "mfc": PAPER, "mec": self.colour, "mew": 1.3}
        return {"marker": self.marker, "mfc": self.colour, "mec": INK, "mew": 0.7}


class DeclaredAlgorithm(NamedTuple):
    """An algorithm as declared by the source text of its class."""

    file: Path
    style: Style | None  # None if it cannot be read without running the file
    bases: tuple[str, ...] = ()  # names of the base classes
    hparams: frozenset[str] = frozenset()  # names declared by this class, without inherited ones


def find_algorithms(file: Path) -> Iterator[tuple[str, DeclaredAlgorithm]]:
    """Iterate over name and algorithm of each class with a STYLE in a file, without running it."""
    source = file.read_bytes()
    if b"STYLE" not in source:  # parsing is slow, and most files have no style
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
            hparams = frozenset(_declared_names(assigned.get("HPARAMS")))
            yield (
                node.name,
                DeclaredAlgorithm(file, _parse_style(assigned["STYLE"]), bases, hparams),
            )


def _declared_names(declarations: ast.expr | None) -> Iterator[str]:
    """Iterate over the names of hyperparameters such as ``positive("lr", ...)`` in source text."""
    for declaration in getattr(declarations, "elts", ()):
        first = next(iter(getattr(declaration, "args", ())), None)
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


def get_owners(hparam: str, algorithms: Mapping[str, DeclaredAlgorithm]) -> set[str]:
    """Return the algorithms that declare or inherit a hyperparameter; empty for a common one."""
    owners = {name for name, declared in algorithms.items() if hparam in declared.hparams}
    while heirs := {
        name
        for name, declared in algorithms.items()
        if name not in owners and not owners.isdisjoint(declared.bases)
    }:
        owners |= heirs
    return owners


def find_public_classes(source: ast.Module) -> list[ast.ClassDef]:
    """Return the class statements at the top level of a file, except private ones."""
    classes = [node for node in source.body if isinstance(node, ast.ClassDef)]
    return [node for node in classes if not node.name.startswith("_")]


def _parse_style(call: ast.expr | None) -> Style | None:
    """Evaluate ``Style(...)`` in source text; return None unless all arguments are literals."""
    if not isinstance(call, ast.Call):
        return None
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        keywords = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
        return Style(*arguments, **keywords)
    except (ValueError, TypeError):
        return None


def sort_by_row(algorithms: Mapping[str, DeclaredAlgorithm]) -> dict[str, DeclaredAlgorithm]:
    """Sort algorithms as rows of tables, with algorithms without a style last."""

    def row(item: tuple[str, DeclaredAlgorithm]) -> float:
        return item[1].style.row if item[1].style else math.inf

    return dict(sorted(algorithms.items(), key=row))


# Name -> algorithm, for the algorithms of this package in the order of table rows.
SHIPPED = sort_by_row(dict(item for file in METHODS.glob("*.py") for item in find_algorithms(file)))
ALGORITHMS = tuple(SHIPPED)
