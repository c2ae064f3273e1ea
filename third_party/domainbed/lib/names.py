"""Errors about names, which always say what the valid names are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Upstream's data sets at b93c22a that this implementation lacks.
DATASETS_NOT_INCLUDED = (
    *("WILDSCamelyon", "WILDSFMoW"),
    *("SpawriousO2O_easy", "SpawriousO2O_medium", "SpawriousO2O_hard"),
    *("SpawriousM2M_easy", "SpawriousM2M_medium", "SpawriousM2M_hard"),
)

# Upstream's algorithms at b93c22a that this implementation lacks.
ALGORITHMS_NOT_INCLUDED = tuple(
    "ERMPlusPlus Fish IRM GroupDRO Mixup MLDG CORAL MMD DANN CDANN MTL SagNet ARM VREx RSC SD "
    "ANDMask SANDMask IGA SelfReg Fishr TRM IB_ERM IB_IRM CAD CondCAD Transfer CausIRL_CORAL "
    "CausIRL_MMD EQRM RDM ADRMX URM".split()
)

_CHECKOUT = "Use a checkout of facebookresearch/DomainBed"


class UnknownNameError(NotImplementedError):
    """A name that no algorithm or data set has.

    A NotImplementedError, because callers written for upstream's harness catch that.
    """


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> str:
    """Say that `name` is no known `kind`, with the nearest valid names and then all of them."""
    names = list(valid)
    folded = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.5)
    message = f"{kind} not found: {name}."
    if close:
        message += f" Nearest: {', '.join(folded[match] for match in close)}."
    return f"{message} Valid: {', '.join(names) if names else 'none is registered'}."


def dataset_not_included(name: str) -> str:
    """Say what to use instead of a data set that upstream has and we do not."""
    wilds = " and the package wilds" if name.startswith("WILDS") else ""
    return (
        f"Dataset {name} is not included. {_CHECKOUT}{wilds}; or put the pictures into folders "
        "environment/class, and give their folder as the data set."
    )


def algorithm_not_included(name: str, valid: Iterable[str]) -> str:
    """Say what to use instead of an algorithm that upstream has and we do not."""
    return f"Algorithm {name} is not included. {_CHECKOUT}. Here: {', '.join(valid)}."
