"""``carft report``: the results of a sweep as a web page with figures."""

from __future__ import annotations

from functools import partial

from domainbed_carft.lazy import import_attribute

__getattr__ = partial(import_attribute, __name__)
