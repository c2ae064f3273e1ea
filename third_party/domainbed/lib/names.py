"""Errors about names, which always say what the valid names are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
