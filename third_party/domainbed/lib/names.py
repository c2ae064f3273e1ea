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


def not_included(dataset: str) -> str:
    """Say what to use instead of a data set that upstream has and we do not."""
    wilds = " and the package wilds" if dataset.startswith("WILDS") else ""
    return (
        f"Dataset {dataset} is not included. Use a checkout of facebookresearch/DomainBed{wilds}; "
        "or put the pictures into folders environment/class, and give their folder as the data set."
    )
