"""Declare sweeps, launch their jobs, and read their states."""

from __future__ import annotations

from functools import partial

from domainbed_carft.lazy import import_attribute

__getattr__ = partial(import_attribute, __name__)
