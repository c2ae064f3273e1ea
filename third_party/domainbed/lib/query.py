"""A list with methods such as select, group and filter, which return a new list.

Interface of upstream file domainbed/lib/query.py at b93c22a.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import json
import math
import operator
from collections import UserList
from collections.abc import Callable
from typing import Any

import numpy as np

Selector = str | Callable[[Any], Any]


def make_selector_fn(selector: Selector) -> Callable[[Any], Any]:
    """Return a function of an item: dots in the text index nested dicts, commas make a tuple."""
    if callable(selector):
        return selector
    if "," in selector:
        parts = [make_selector_fn(part) for part in selector.split(",")]
        return lambda item: tuple(part(item) for part in parts)
    path = [key.strip() for key in selector.split(".")]
    return lambda item: functools.reduce(operator.getitem, path, item)


def hashable(obj: Any) -> Any:
    """Return `obj` if it is hashable, otherwise its JSON text."""
    try:
        hash(obj)
    except TypeError:
        return json.dumps(obj, sort_keys=True)
    return obj


class Q(UserList[Any]):
    """A list of items, usually of record dicts. `make_selector_fn` describes selectors."""

    def group(self, selector: Selector) -> Q:
        """Return (value, items with that value) pairs, sorted by value."""
        select = make_selector_fn(selector)
        groups: dict[Any, tuple[Any, list[Any]]] = {}
        for item in self.data:
            value = select(item)
            groups.setdefault(hashable(value), (value, []))[1].append(item)
        ascending = sorted(groups.items(), key=lambda group: group[0])
        return Q([(value, Q(items)) for _, (value, items) in ascending])

    def group_map(self, selector: Selector, fn: Callable[..., Any]) -> Q:
        """Return fn(value, items) for each group of `group`."""
        return self.group(selector).map(fn)

    def map(self, fn: Callable[..., Any]) -> Q:
        """Return fn(item) for each item, or fn(*item) if fn takes several arguments."""
        takes_several = len(inspect.signature(fn).parameters) >= 2
        apply = itertools.starmap if takes_several else map
        return Q(list(apply(fn, self.data)))

    def select(self, selector: Selector) -> Q:
        """Return the selected value of each item."""
        return Q(list(map(make_selector_fn(selector), self.data)))

    def min(self) -> Any:
        """Return the smallest item."""
        return min(self.data)

    def max(self) -> Any:
        """Return the largest item."""
        return max(self.data)

    def sum(self) -> Any:
        """Return the sum of the items."""
        return sum(self.data)

    def len(self) -> int:
        """Return the number of items."""
        return len(self.data)

    def mean(self) -> float:
        """Return the mean of the items, or nan for an empty list."""
        return float(np.mean(self.data)) if self.data else math.nan  # of which numpy would warn

    def std(self) -> float:
        """Return the standard deviation (ddof 0), or nan for an empty list."""
        return float(np.std(self.data)) if self.data else math.nan

    def mean_std(self) -> tuple[float, float]:
        """Return mean and standard deviation."""
        return self.mean(), self.std()

    def argmax(self, selector: Selector) -> Any:
        """Return the first item with the largest selected value."""
        return max(self.data, key=make_selector_fn(selector))

    def filter(self, fn: Callable[[Any], Any]) -> Q:
        """Return the items for which `fn` is true."""
        return Q(list(filter(fn, self.data)))

    def filter_equals(self, selector: Selector, value: Any) -> Q:
        """Return the items whose selected value equals `value`."""
        select = make_selector_fn(selector)
        return self.filter(lambda item: select(item) == value)

    def filter_not_none(self) -> Q:
        """Return the items that are not None."""
        return self.filter(lambda item: item is not None)

    def filter_not_nan(self) -> Q:
        """Return the items that are not nan."""
        return self.filter(lambda item: not np.isnan(item))

    def flatten(self) -> Q:
        """Concatenate the items, each a collection."""
        return Q([inner for item in self.data for inner in item])

    def unique(self) -> Q:
        """Return each distinct item once, in the order of first appearance."""
        first_seen: dict[Any, Any] = {}
        for item in self.data:
            first_seen.setdefault(hashable(item), item)
        return Q(list(first_seen.values()))

    def sorted(self, key: Callable[[Any], Any] | None = None) -> Q:
        """Return the items in ascending order of `key`; nan counts as minus infinity."""

        def rank(item: Any) -> Any:
            value = item if key is None else key(item)
            is_nan = isinstance(value, (float, np.floating)) and math.isnan(value)
            return -math.inf if is_nan else value

        return Q(sorted(self.data, key=rank))
