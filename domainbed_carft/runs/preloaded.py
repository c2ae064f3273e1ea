"""Imports that a process needs only when it reads its first picture, done before it is forked."""

from __future__ import annotations

import contextlib
import importlib

# Without numba, or beside a numpy that it does not fit, torch and Pillow do the work.
with contextlib.suppress(Exception):
    importlib.import_module("domainbed_carft.pictures.compiled")
