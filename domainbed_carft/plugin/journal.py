"""A record of changes to foreign objects, from which each can be taken back."""

from __future__ import annotations

from typing import Any

_ABSENT = object()


class Journal:
    """Sets attributes, adds to lists and tables, and remembers what was there before.

    Undoing leaves alone what somebody else has changed again since.
    """

    def __init__(self) -> None:
        self._attributes: list[tuple[Any, str, Any, Any]] = []
        self._items: list[tuple[list[Any], Any]] = []
        self._entries: list[tuple[dict[str, Any], str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set the attribute `name` of `owner`, a module or a class, to `value`."""
        old = vars(owner).get(name, _ABSENT)
        if old is not value:
            setattr(owner, name, value)
            self._attributes.append((owner, name, old, value))

    def append(self, items: list[Any], item: Any) -> None:
        """Append `item` to `items`, unless it is there."""
        if item not in items:
            items.append(item)
            self._items.append((items, item))

    def put(self, table: dict[str, Any], key: str, value: Any) -> None:
        """Add `value` to `table` under `key`, unless the key is taken."""
        if key not in table:
            table[key] = value
            self._entries.append((table, key, value))

    def owns(self, owner: Any, name: str) -> bool:
        """Whether the attribute `name` of `owner` is now what this journal made it."""
        current = vars(owner).get(name, _ABSENT)
        return any(
            entry_owner is owner and entry_name == name and value is current
            for entry_owner, entry_name, _, value in self._attributes
        )

    def undo(self) -> None:
        """Take all changes back, the last one first, and forget them."""
        while self._attributes:
            owner, name, old, value = self._attributes.pop()
            if vars(owner).get(name, _ABSENT) is not value:
                continue
            if old is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, old)
        while self._items:
            items, item = self._items.pop()
            if item in items:
                items.remove(item)
        while self._entries:
            table, key, value = self._entries.pop()
            if table.get(key) is value:
                del table[key]
