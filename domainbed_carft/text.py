"""Names from files as what a terminal, a table's row and a file in UTF-8 can take."""

from __future__ import annotations

import re

# Control characters, what else ends a line or turns its direction, and halves of characters, which
# is also what Python makes of a file's name that is not UTF-8.
_BREAKING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    r"""``text`` with such characters as Python writes them: a newline as ``\n``."""
    return _BREAKING.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
