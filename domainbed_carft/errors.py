"""What this package raises and warns with: problems are objects, sentences are made of them.

Loads the standard library only.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

# A value in a message is cut off after so many characters.
LONGEST_VALUE = 200

NO_SPACE_ERRORS = (errno.ENOSPC, errno.EDQUOT)


class _Nothing(enum.Enum):
    NOTHING = "nothing"


# The value of a problem that has none to show, as where a key is missing.
NOTHING = _Nothing.NOTHING


@dataclass(frozen=True)
class Place:
    """A place in a file: its name, the line (0: unknown), and the keys that lead to a value.

    ``path`` is ``("overrides", 0, "hparams", "lr")`` for ``overrides[0].hparams.lr``.
    """

    name: str
    line: int = 0
    path: tuple[str | int, ...] = ()

    def __str__(self) -> str:
        parts = [self.name]
        if self.line:
            parts.append(f":{self.line}")

        keys = (f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path)
        if self.path:
            parts += [": ", "".join(keys).lstrip(".")]
        return "".join(parts)


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: subject, the value that came, what was expected, what to do.

    ``subject`` is a name such as ``lr`` or ``--steps``, or a whole clause if there is no ``value``.
    ``message`` is printed for subject, value and expectation where they do not make a sentence.
    """

    subject: str = ""
    value: Any = NOTHING
    expected: str = ""
    remedy: str = ""
    place: Place | None = None
    message: str = ""

    def sentence(self) -> str:
        """``lr is 'fast', expected a number > 0; REMEDY``, after the place in the file, if any."""
        text = self.message or self._clause()
        if self.remedy:
            text += f"; {self.remedy}"
        return f"{self.place}: {text}" if self.place else text

    def at(self, place: Place) -> Problem:
        """This problem, at a place in a file."""
        return dataclasses.replace(self, place=place)

    def with_subject(self, subject: str) -> Problem:
        """This problem, as one of ``subject``; its ``message`` stays."""
        return dataclasses.replace(self, subject=subject)

    def __str__(self) -> str:
        return self.sentence()

    def _clause(self) -> str:
        clause = self.subject
        if self.value is not NOTHING:
            # The path of a place may name the subject already.
            is_named = self.place is not None and self.subject in self.place.path
            name = "" if is_named else self.subject
            clause = f"{name} is {_short(self.value)}" if name else f"got {_short(self.value)}"

        return f"{clause}, expected {self.expected}" if self.expected else clause


def _short(value: object) -> str:
    from domainbed_carft.text import shortened  # here, where an installation may be damaged

    written = shortened(value)
    return written if len(written) <= LONGEST_VALUE else f"{written[:LONGEST_VALUE]}..."


class CarftError(ValueError):
    """A request to this package cannot be carried out; its ``problems`` say why, and what to do.

    A text is one problem with that message. The error prints as the sentence of its problem, or as
    a headline and one line for each of several.
    """

    def __init__(self, *problems: str | Problem) -> None:
        super().__init__(*problems)
        self.problems = tuple(map(as_problem, problems))

    def __str__(self) -> str:
        sentences = [problem.sentence() for problem in self.problems]
        if len(sentences) < 2:
            return "".join(sentences)
        headline = f"{len(sentences)} problems, nothing was done"
        return "\n".join([headline, *(f"- {sentence}" for sentence in sentences)])

    def __reduce__(self) -> Any:
        # Subclasses are made from other arguments than problems.
        return _unpickled, (type(self), self.problems), self.__dict__


class UnreadableError(CarftError):
    """Pictures that were asked for are there, but none can be read; `carft` exits with 3."""


class PassingError(CarftError):
    """A fault of a disk or a network, not of the request: retrying may help."""


class EndedJob(PassingError, SystemExit):
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


def problems_of(function: Callable[..., object], *arguments: object) -> list[Problem]:
    """The problems of the CarftError that ``function(*arguments)`` raises; empty if it does not."""
    try:
        function(*arguments)
    except CarftError as error:
        return list(error.problems)
    return []


def raise_for(problems: Iterable[str | Problem]) -> None:
    """Raise a CarftError of these problems, each once, if there are any."""
    distinct = {str(problem): problem for problem in problems}
    if distinct:
        raise CarftError(*distinct.values())


def is_no_space(error: BaseException) -> bool:
    """Whether an error, or what it was raised for, is of a full disk or an exhausted quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NO_SPACE_ERRORS:
            return True
        # torch's writer raises one of its own while that of the disk is handled.
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


def brief(error: BaseException) -> str:
    """Another package's error, in one line of at most some 200 letters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


def imported(module: str, install: str) -> Any:
    """The module of this name; CarftError, with what to pip install, if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CarftError(
            f"{module} cannot be imported ({error}); run pip install {install} in this environment"
        ) from error


def _unpickled(error_class: type[CarftError], problems: tuple[Problem, ...]) -> CarftError:
    error = error_class.__new__(error_class)
    CarftError.__init__(error, *problems)
    return error


def as_problem(problem: str | Problem) -> Problem:
    """A problem as it is, or one with this message."""
    return problem if isinstance(problem, Problem) else Problem(message=str(problem))
