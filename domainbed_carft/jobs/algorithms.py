"""The package's algorithms, for commands without torch.

A user's own method declares a `STYLE` in its class. The records of its jobs contain it, so commands
that read records neither run nor parse a user's file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domainbed_carft.jobs.facts import DECLARATIONS
from domainbed_carft.styles import STYLES, Style

_MAX_LETTERS = 10_000  # of an own method's description in a record


@dataclass(frozen=True)
class Method:
    """Facts of an algorithm that can be read without its class.

    Attributes:
        file: name of the file with the class: in ``method/``, or the user's.
        style: None for a user's class that declares none.
        hparams: hyperparameters that not every algorithm has, including inherited ones.
    """

    file: str
    style: Style | None
    hparams: tuple[str, ...] = ()


# The algorithms of this package, in the order of table rows.
SHIPPED = {
    "CARFT": Method("carft.py", STYLES["CARFT"], hparams=("kl_weight",)),
    "CLIPFineTune": Method("baselines.py", STYLES["CLIPFineTune"]),
    "CLIPLinearProbe": Method("baselines.py", STYLES["CLIPLinearProbe"]),
    "CLIPZeroShot": Method("baselines.py", STYLES["CLIPZeroShot"]),
    "CLIPood": Method("clipood.py", STYLES["CLIPood"], hparams=("margin",)),
    "CLIPWiSEFT": Method("baselines.py", STYLES["CLIPWiSEFT"]),
    "CLIPLPFT": Method("baselines.py", STYLES["CLIPLPFT"], hparams=("lp_lr", "lp_steps")),
    "CLIPL2SP": Method("baselines.py", STYLES["CLIPL2SP"]),
    "CLIPFeatureDistillation": Method("baselines.py", STYLES["CLIPFeatureDistillation"]),
    "LDIFS": Method("baselines.py", STYLES["LDIFS"]),
    "LipsumFT": Method("baselines.py", STYLES["LipsumFT"]),
    "CLIPMIRO": Method("baselines.py", STYLES["CLIPMIRO"]),
    "FLYP": Method(
        "flyp.py",
        STYLES["FLYP"],
        hparams=("flyp_targets",),
    ),
    "CaRot": Method(
        "flyp.py",
        STYLES["CaRot"],
        hparams=("carot_distillation", "carot_interval", "carot_orthogonality", "flyp_targets"),
    ),
    "CLIPLoRA": Method("baselines.py", STYLES["CLIPLoRA"]),
    "FDAlign": Method("fd_align.py", STYLES["FDAlign"], hparams=("kl_weight",)),
    "StarFT": Method(
        "starft.py",
        STYLES["StarFT"],
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
        recorded_by_algorithm: the hyperparameters and facts of a job of each algorithm.
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
