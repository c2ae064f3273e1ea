"""What a check found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OK = "ok"
NOTE = "note"  # a job starts, but something may surprise its user
PROBLEM = "problem"  # no job starts, or its results do not count
SKIPPED = "skipped"  # not tried


@dataclass(frozen=True)
class Finding:
    """The result of looking at one thing: ``state`` is OK, NOTE, PROBLEM or SKIPPED."""

    name: str
    state: str
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {
            "name": self.name,
            "state": self.state,
            "found": self.detail,
            "remedy": self.remedy,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, str]) -> Finding:
        """The finding that `as_dict` made ``fields`` of."""
        return cls(
            name=fields["name"],
            state=fields["state"],
            detail=fields["found"],
            remedy=fields["remedy"],
        )
