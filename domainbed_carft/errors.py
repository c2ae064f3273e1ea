"""What this package raises and warns with, and the sentences that say what is wrong.

Loads the standard library only.
"""

from __future__ import annotations

import errno
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

# A value in a message is cut off after so many characters.
MAX_VALUE_LENGTH = 200

NO_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")


@dataclass(frozen=True)
class HparamProblem:
    """What is wrong with the value of a hyperparameter, for those who know where it is set.

    ``expected``: what the value should be; or ``message``: a sentence that says what is wrong.
    """

    name: str
    value: Any
    expected: str = ""
    message: str = ""

    def __str__(self) -> str:
        return self.message or invalid(self.name, self.value, self.expected)

    def message_after_key(self) -> str:
        """The message to print behind the key of the value, which names it already."""
        return self.message or invalid("", self.value, self.expected)


class CarftError(ValueError):
    """A request to this package cannot be carried out; its ``problems`` say why, and what to do.

    Each problem is a sentence. The error prints as its only one, or as a headline and one line for
    each of several.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        if len(self.problems) < 2:
            return "".join(self.problems)
        headline = f"{len(self.problems)} problems, nothing was done"
        return "\n".join([headline, *(f"- {problem}" for problem in self.problems)])

    def __reduce__(self) -> Any:
        # Subclasses are made from other arguments than problems, so their __init__ is left out.
        return type(self).__new__, (type(self), *self.problems), self.__dict__


class UnreadableError(CarftError):
    """Images that were asked for are there, but none can be read; `carft` exits with 3."""


class TransientError(CarftError):
    """A fault of a disk or a network, not of the request: retrying may help."""


class JobExit(TransientError, SystemExit):
    """Ends a script of a foreign checkout: the message on its stderr, status 1, no traceback.

    For what a user has to mend before the job can run. Any other caller may catch it as a
    CarftError.
    """

    @property
    def code(self) -> str:  # type: ignore[override]
        """What Python prints when this error ends the process."""
        return f"domainbed-carft: {self}"


class CarftWarning(UserWarning):
    """This package could not do its part and stepped aside; its host continues."""


def invalid(name: str, value: object, expected: str) -> str:
    """``lr is 'fast', expected a number > 0``; without a name ``got 'fast', expected ...``."""
    from domainbed_carft.text import shorten  # here, where an installation may be damaged

    written = shorten(value)
    if len(written) > MAX_VALUE_LENGTH:
        written = f"{written[:MAX_VALUE_LENGTH]}..."
    return f"{f'{name} is' if name else 'got'} {written}, expected {expected}"


def collect_problems(function: Callable[..., object], *arguments: object) -> list[str]:
    """The problems of the CarftError that ``function(*arguments)`` raises; empty if it does not."""
    try:
        function(*arguments)
    except CarftError as error:
        return list(error.problems)
    return []


def raise_for(problems: Iterable[str]) -> None:
    """Raise a CarftError of these problems, each once, if there are any."""
    distinct = dict.fromkeys(problems)
    if distinct:
        raise CarftError(*distinct)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what it was raised for, is of a full disk or an exhausted quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NO_SPACE_ERRORS:
            return True
        # torch's writer raises one of its own while that of the disk is handled.
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU, or this process, has too little memory."""
    text = str(error).lower()
    has_words = any(words in text for words in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and has_words)


def brief(error: BaseException) -> str:
    """Another package's error, in one line of at most some 200 letters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


def get_module(module: str, install: str) -> Any:
    """The module of this name; CarftError, with what to pip install, if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CarftError(
            f"{module} cannot be imported ({error}); run pip install {install} in this environment"
        ) from error
