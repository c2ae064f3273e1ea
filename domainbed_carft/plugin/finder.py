"""The work of the two import hooks: extend a real `domainbed`, or provide ours if there is none."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from types import ModuleType

from domainbed_carft.errors import JobExit
from domainbed_carft.plugin.hooked_modules import (
    HOST_MODULES,
    OWN_PREFIX,
    RUNNING,
    WAITING,
    warn_once,
)

# Modules whose search is in progress: another hook may search as we do, and so come back to us.
_IN_SEARCH: set[str] = set()


def extended_spec(
    hook: object, name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """The spec that the finders beside `hook` find, with a loader that extends the module."""
    is_relevant = name in HOST_MODULES or name.startswith(OWN_PREFIX)
    if name in _IN_SEARCH or not is_relevant:
        return None

    other_finders = [finder for finder in sys.meta_path if finder is not hook]
    _IN_SEARCH.add(name)
    try:
        spec = _search(other_finders, name, path, target)
    finally:
        _IN_SEARCH.discard(name)

    if spec is not None:
        try:
            _extend_when_executed(spec)
        except Exception as error:
            warn_once(name, error)
    return spec


def harness_folders() -> tuple[str, str]:
    """Where our harness may lie: inside the package in a wheel, beside it in the source."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    in_wheel = os.path.join(package, "harness", "domainbed")
    in_source = os.path.join(os.path.dirname(package), "third_party", "domainbed")
    return in_wheel, in_source


def harness_spec(
    hook: object, name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """The spec of `domainbed` in our harness, unless a finder behind `hook` has one.

    Python finds submodules by the package's `__path__`; one that gets here is missing.
    """
    if name != "domainbed":
        return None

    # An editable install's finder, say, was appended after us and still goes before us.
    finders = list(sys.meta_path)
    later_finders = finders[finders.index(hook) + 1 :] if hook in finders else []
    spec = _search(later_finders, "domainbed", path, target)
    if spec is not None:
        return spec

    for folder in harness_folders():
        init = os.path.join(folder, "__init__.py")
        if os.path.isfile(init):
            return spec_from_file_location("domainbed", init, submodule_search_locations=[folder])
    return None


def _search(
    finders: Iterable[object], name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """Ask `finders` in order, as the import system does, for the first spec of `name`."""
    for finder in finders:
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
        if spec:
            return spec
    return None


def _extend_when_executed(spec: ModuleSpec) -> None:
    """Let the loader of `spec` make our additions after it has executed the module, this once."""
    name = spec.name
    loader = spec.loader
    if loader is None:
        return

    original = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        # One loader may serve many modules, as that of a zip archive does.
        if module.__name__ != name:
            original(module)
            return

        if name not in HOST_MODULES:
            RUNNING.add(name)
        try:
            original(module)
        finally:
            RUNNING.discard(name)
            if vars(loader).get("exec_module") is exec_module:
                del loader.exec_module

        if name in HOST_MODULES:
            WAITING.append(name)
        _extend_waiting()

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _extend_waiting() -> None:
    """Make the additions to the modules of domainbed that wait for them, unless ours are running.

    If they fail, this warns, and the host continues.
    """
    while WAITING and not RUNNING:
        name = WAITING.pop(0)
        try:
            from domainbed_carft.plugin import additions

            additions.apply(sys.modules[name])
        except JobExit:  # what the user has to mend before a job can run
            raise
        except Exception as error:
            warn_once(name, error.__cause__ or error)
