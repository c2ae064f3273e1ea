"""The error for what a user can mend."""

from __future__ import annotations

from collections.abc import Iterable


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
