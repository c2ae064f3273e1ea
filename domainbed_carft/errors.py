"""Errors and warnings of this package, and the wording of their messages.

Imports only the standard library.
"""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_VALUE_LENGTH = 200  # characters of a value in a message
MAX_ERROR_LENGTH = 200  # characters of another package's message

NO_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")


@dataclass(frozen=True)
class HparamProblem:
    """An invalid value of a hyperparameter, kept apart from the key or file that sets it."""

    name: str
    value: Any
    expected: str = ""  # the valid values, such as "a number > 0"
    message: str = ""  # a complete sentence, used instead of ``expected``
    valid_names: Sequence[str] = ()  # if there is no hyperparameter of this name
    is_local: bool = False  # True if a file is missing that other machines can have

    def __str__(self) -> str:
        return self.message or invalid(self.name, self.value, self.expected)

    def message_after_key(self) -> str:
        """Return the message to print after a key that already names the hyperparameter."""
        return self.message or invalid("", self.value, self.expected)


class CarftError(ValueError):
    """A request that this package cannot carry out.

    Prints as its only problem, or as a headline and one line per problem, then the details. Each is
    one line: a line break in a name that it contains is printed as an escape.

    Attributes:
        problems: sentences, each with what is wrong and what to do about it.
        details: lines that follow the problems, such as a list of files.
    """

    # Because of this attribute, torch raises the error of a loader process again as
    # CarftError(message=...). The message is a traceback, which ends in the line of the error.
    message = "of a loader process"

    def __init__(self, *problems: str, details: Iterable[str] = (), message: str = "") -> None:
        if message:
            last_line = message.rstrip().rpartition("\n")[2]
            problems = (re.sub(r"^[\w.]+: ", "", last_line),)
        super().__init__(*problems)
        self.problems = problems
        self.details = list(details)

    def __str__(self) -> str:
        # Not at the top: this module must load even if the installation is damaged.
        from domainbed_carft.escaping import printable

        lines = list(self.problems)
        if len(lines) > 1:
            headline = f"{len(lines)} problems, nothing was done"
            lines = [headline, *(f"- {problem}" for problem in lines)]
        return "\n".join(map(printable, [*lines, *self.details]))

    def __reduce__(self) -> Any:
        # Subclasses are made from other arguments than problems, so their __init__ is skipped.
        return type(self).__new__, (type(self), *self.problems), self.__dict__


class UnreadableError(CarftError):
    """The requested images exist, but none can be read; `carft` exits with 3."""


class TransientError(CarftError):
    """A failure of a disk or a network, not of the request: a retry can succeed."""


class JobExit(TransientError, SystemExit):
    """End a script of another checkout with a message on stderr, status 1 and no traceback.

    For what a user has to fix before the job can run. Other callers can catch it as a CarftError.
    """

    @property
    def code(self) -> str:  # type: ignore[override]
        """Text that Python prints when this error ends the process."""
        return f"domainbed-carft: {self}"


def get_job_error(is_checkout: bool) -> type[CarftError]:
    """Return the error for what a user has to fix before a job of the host can run.

    In a checkout it ends the script with the message, because its `train` would print a traceback.
    """
    return JobExit if is_checkout else CarftError


class CarftWarning(UserWarning):
    """This package could not do its part; the program that uses it continues."""


def invalid(name: str, value: object, expected: str) -> str:
    """Return ``lr is 'fast', expected a number > 0``, or ``got 'fast', expected ...``."""
    # Not at the top: this module must load even if the installation is damaged.
    from domainbed_carft.wording import shorten

    written = shorten(value)
    if len(written) > MAX_VALUE_LENGTH:
        written = f"{written[:MAX_VALUE_LENGTH]}..."
    return f"{f'{name} is' if name else 'got'} {written}, expected {expected}"


def collect_problems(function: Callable[..., object], *arguments: object) -> list[str]:
    """Call a function and return the problems of its CarftError, if it raises one."""
    try:
        function(*arguments)
    except CarftError as error:
        return list(error.problems)
    return []


def raise_for(problems: Iterable[str]) -> None:
    """Raise a CarftError with the distinct problems, if there are any."""
    distinct = dict.fromkeys(problems)
    if distinct:
        raise CarftError(*distinct)


def is_disk_full(error: BaseException) -> bool:
    """Return True if an error, or a cause of it, is a full disk or an exhausted quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NO_SPACE_ERRORS:
            return True
        # torch's writer raises another error while it handles the disk's.
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if a GPU, or this process, ran out of memory."""
    if isinstance(error, RuntimeError):
        return any(words in str(error).lower() for words in _OUT_OF_MEMORY)
    return isinstance(error, MemoryError)


def brief(error: BaseException) -> str:
    """Return another package's error as one short line."""
    message = " ".join(str(error).split())[:MAX_ERROR_LENGTH]
    return f"{type(error).__name__}: {message}".rstrip(": ")


def get_module(module: str, install: str) -> Any:
    """Import a module; if that fails, raise CarftError with the pip command to run."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CarftError(
            f"{module} cannot be imported ({error}); run pip install {install} in this environment"
        ) from error
