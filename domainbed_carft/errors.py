"""What this package raises and warns with."""

from __future__ import annotations

from collections.abc import Iterable


class CarftError(ValueError):
    """Something asked of this package cannot be done; the message says what would be right."""


class PassingError(CarftError):
    """The same, but of a disk or a network, not of what was asked: trying again may help."""


def brief(error: Exception) -> str:
    """An error of another package's, in one line of some 200 letters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


class CarftWarning(UserWarning):
    """This package could not do its part and stepped aside; what it was added to goes on."""


def raise_for(sentences: Iterable[str]) -> None:
    """Raise a CarftError of these sentences, a line each, if there are any."""
    distinct = list(dict.fromkeys(sentences))
    if distinct:
        count = f"{len(distinct)} problem{'s' if len(distinct) > 1 else ''}, nothing was done"
        raise CarftError("\n".join([count, *(f"- {sentence}" for sentence in distinct)]))
