"""What this package raises and warns with."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any


class CarftError(ValueError):
    """A request to this package cannot be carried out; the message says what is expected."""


class UnreadableError(CarftError):
    """Pictures that were asked for are there, but none can be read; `carft` exits with 3."""


class PassingError(CarftError):
    """A fault of a disk or a network, not of the request: retrying may help."""


class EndedJob(PassingError, SystemExit):
    """Ends a script of a foreign checkout: the message on its stderr, status 1, no traceback.

    For what a user has to mend before the job can run. Any other caller may catch it as a
    CarftError.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = f"domainbed-carft: {message}"


def brief(error: Exception) -> str:
    """Another package's error, in one line of at most some 200 letters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


class CarftWarning(UserWarning):
    """This package could not do its part and stepped aside; its host continues."""


def imported(module: str, install: str) -> Any:
    """The module of this name; CarftError, with what to pip install, if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CarftError(
            f"{module} cannot be imported ({error}); run pip install {install} in this environment"
        ) from error


def refusals(ask: Callable[..., object], *arguments: object) -> list[str]:
    """The sentence of the CarftError that ``ask`` raises of these arguments, if it does."""
    try:
        ask(*arguments)
    except CarftError as error:
        return [str(error)]
    return []


def raise_for(sentences: Iterable[str]) -> None:
    """Raise a CarftError of these sentences, one per line, if there are any."""
    if distinct := list(dict.fromkeys(sentences)):
        count = f"{len(distinct)} problem{'s' if len(distinct) > 1 else ''}, nothing was done"
        raise CarftError("\n".join([count, *(f"- {sentence}" for sentence in distinct)]))
