"""Changes of foreign modules, classes, lists and tables that can be undone."""

from __future__ import annotations

import contextlib
from typing import Any

# What an attribute was that did not exist.
_ABSENT = object()


class Journal:
    """Makes changes, and undoes them in reverse order.

    Undoing leaves alone whatever somebody else has changed since.
    """

    def __init__(self) -> None:
        self._values: list[object] = []
        self._undoing = contextlib.ExitStack()

    def set_attribute(self, owner: Any, name: str, value: object) -> None:
        """Set the attribute ``name`` of ``owner``, a module or a class, to ``value``."""
        previous = vars(owner).get(name, _ABSENT)
        if previous is value:
            return

        setattr(owner, name, value)
        self._values.append(value)
        self._undoing.callback(_restore_attribute, owner, name, value, previous)

    def add_to_list(self, names: list[str], name: str) -> None:
        """Append ``name`` to ``names``, unless it is there; AttributeError for a tuple, say."""
        if name not in names:
            names.append(name)
            self._undoing.callback(_remove_from_list, names, name)

    def add_to_table(self, table: dict[str, Any], name: str, value: object) -> None:
        """Put ``value`` into ``table``, unless the table has something by that ``name``."""
        if name not in table:
            table[name] = value
            self._undoing.callback(_remove_from_table, table, name, value)

    def has_set(self, owner: Any, name: str) -> bool:
        """Whether the attribute ``name`` of ``owner`` is a value that this journal has set."""
        current = vars(owner).get(name)
        return any(current is value for value in self._values)

    def undo(self) -> None:
        """Undo all changes, the last one first, and forget them."""
        self._undoing.close()
        self._values.clear()


def _restore_attribute(owner: Any, name: str, value: object, previous: object) -> None:
    if vars(owner).get(name) is not value:
        return
    if previous is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, previous)


def _remove_from_list(names: list[str], name: str) -> None:
    if name in names:
        names.remove(name)


def _remove_from_table(table: dict[str, Any], name: str, value: object) -> None:
    if table.get(name) is value:
        del table[name]


# Every change that this process has made to a host.
JOURNAL = Journal()
