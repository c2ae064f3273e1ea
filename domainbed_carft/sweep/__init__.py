"""Declared sweeps: which jobs there are, in what state they are, and how to get them done."""

from __future__ import annotations

from functools import partial

from domainbed_carft.lazy import import_attribute

__getattr__ = partial(import_attribute, __name__)
