"""The errors for what a user can mend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator


class UsageError(ValueError):
    """What a user asked for cannot be done; the message lists every reason.

    The scripts print it without a traceback and exit with status 2.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        heading = "1 problem" if count == 1 else f"{count} problems"
        super().__init__(
            f"error: {heading}, nothing was run\n" + "\n".join(f"- {p}" for p in self.problems)
        )

    def __reduce__(self) -> tuple[type[UsageError], tuple[list[str]]]:
        # Copies, as a worker process sends them, are built from the problems, not from the text.
        return type(self), (self.problems,)


class Failure(RuntimeError):
    """Something failed that was asked for rightly; the message says why, and what to do.

    The scripts print it without a traceback and exit with status 1: trying again may help.
    """


@contextlib.contextmanager
def refusing(begun: bool = False) -> Iterator[None]:
    """Make errors for the user out of a plugin's: of its data sets, algorithms and launchers.

    A plugin marks the classes of those that need no traceback by the attribute `for_the_user`, and
    by `may_pass` those that are no fault of the arguments. Nor are any once something has `begun`.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if getattr(error, "for_the_user", False) is not True:
            raise
        if begun or getattr(error, "may_pass", False) is True:
            raise Failure(str(error)) from error
        raise UsageError([str(error)]) from error
