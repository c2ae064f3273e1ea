"""The classes of this package's algorithms."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from domainbed_carft.jobs.algorithms import SHIPPED


@functools.cache
def load_classes() -> Mapping[str, Any]:
    """Import the classes of the package's algorithms, and return them by name."""
    modules = {
        name: importlib.import_module(f"domainbed_carft.method.{Path(method.file).stem}")
        for name, method in SHIPPED.items()
    }
    return MappingProxyType({name: getattr(module, name) for name, module in modules.items()})
