"""The package's algorithms, with their styles in figures and tables, for commands without torch.

A user's own method declares a `STYLE` in its class. The records of its jobs contain it, so commands
that read records neither run nor parse a user's file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.jobs.facts import DECLARATIONS

INK = "#1b1f24"
PAPER = "#ffffff"
_MAX_LETTERS = 10_000  # of an own method's description in a record


@dataclass(frozen=True)
class Style:
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
    dash: str | tuple[float, tuple[float, ...]]
    hollow: bool = False

    @property
    def mark(self) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot`` for the marker and its colours."""
        if self.hollow:
            return {"marker": self.marker, "mfc": PAPER, "mec": self.colour, "mew": 1.3}
        return {"marker": self.marker, "mfc": self.colour, "mec": INK, "mew": 0.7}


@dataclass(frozen=True)
class Method:
    """Facts of an algorithm that can be read without its class.

    Attributes:
        file: Name of the file with the class: in ``method/``, or the user's.
        style: None for a user's class that declares none.
        hparams: Hyperparameters that not every algorithm has, including inherited ones.
    """

    file: str
    style: Style | None
    hparams: tuple[str, ...] = ()


# The algorithms of this package, in the order of table rows.
SHIPPED = {
    "CARFT": Method("carft.py", Style(1, "#D55E00", "o", "solid"), hparams=("kl_weight",)),
    "CLIPFineTune": Method("baselines.py", Style(2, "#0072B2", "D", (0, (4, 1.5)))),
    "CLIPLinearProbe": Method("baselines.py", Style(3, "#009E73", "^", (0, (6, 1.5, 1, 1.5)))),
    "CLIPZeroShot": Method("baselines.py", Style(4, "#808080", "s", (0, (1, 1.2)))),
    "CLIPood": Method("clipood.py", Style(5, "#3A9AB8", "*", (0, (6, 3))), hparams=("margin",)),
    "CLIPWiSEFT": Method("baselines.py", Style(6, "#AA4499", "X", (0, (2, 1)))),
    "CLIPLPFT": Method(
        "baselines.py", Style(7, "#117733", "v", (0, (8, 2))), hparams=("lp_lr", "lp_steps")
    ),
    "CLIPL2SP": Method("baselines.py", Style(8, "#332288", "P", (0, (3, 1, 1, 1)))),
    "CLIPFeatureDistillation": Method(
        "baselines.py", Style(9, "#7A5C00", "<", (0, (5, 1, 1, 1, 1, 1)))
    ),
    "LDIFS": Method("baselines.py", Style(10, "#661100", ">", (0, (1, 2.5)))),
    "LipsumFT": Method("baselines.py", Style(11, "#CC6677", "d", (0, (10, 1)))),
    "CLIPMIRO": Method("baselines.py", Style(12, "#1b1f24", "p", (0, (2, 2)))),
    "FLYP": Method(
        "flyp.py",
        Style(13, "#882255", "h", (0, (8, 1, 2, 1)), hollow=True),
        hparams=("flyp_targets",),
    ),
    "CaRot": Method(
        "flyp.py",
        Style(14, "#B5468F", "H", (0, (1, 1, 4, 1)), hollow=True),
        hparams=("carot_distillation", "carot_interval", "carot_orthogonality", "flyp_targets"),
    ),
    "CLIPLoRA": Method("baselines.py", Style(15, "#4B6A1B", "8", (0, (7, 1, 3, 1)))),
    "FDAlign": Method(
        "fd_align.py", Style(16, "#6A51A3", "h", (0, (6, 1, 1, 1, 1, 1))), hparams=("kl_weight",)
    ),
    "StarFT": Method(
        "starft.py",
        Style(17, "#1F6F78", "d", (0, (3, 1, 3, 1, 1, 1)), hollow=True),
        hparams=("kl_weight", "starft_rows"),
    ),
}
ALGORITHMS = tuple(SHIPPED)
# The algorithms that do not train.
UNTRAINED = ("CLIPZeroShot",)


def find_own_methods(
    recorded_by_algorithm: Mapping[str, Mapping[str, Any]],
) -> dict[str, Method]:
    """Return the user's methods that are described by their records, by name.

    Args:
        recorded_by_algorithm: The hyperparameters and facts of a job of each algorithm.
    """
    methods: dict[str, Method] = {}
    for name, recorded in recorded_by_algorithm.items():
        declarations = recorded.get(DECLARATIONS)
        if isinstance(declarations, Mapping) and len(str(declarations)) <= _MAX_LETTERS:
            from pydantic import TypeAdapter, ValidationError

            content = {"file": recorded.get("method_file"), **declarations}
            with contextlib.suppress(ValidationError):
                methods[name] = TypeAdapter(Method).validate_python(content)
    return methods


def get_owners(hparam: str, own_methods: Mapping[str, Method]) -> set[str]:
    """Return the algorithms that have a hyperparameter; empty for one that all of them have."""
    methods = {**own_methods, **SHIPPED}
    return {name for name, method in methods.items() if hparam in method.hparams}
