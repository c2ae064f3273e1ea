"""The functions of the two import hooks: extend a `domainbed`, or provide the included harness."""

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

# Modules that are being searched. Another hook that asks all finders calls this one again.
_IN_SEARCH: set[str] = set()


def find_extended_spec(
    hook: object, name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """Find a module by all finders except `hook`, and let its loader extend the module."""
    if name not in HOST_MODULES and not name.startswith(OWN_PREFIX):
        return None
    if name in _IN_SEARCH:
        return None

    other_finders = [finder for finder in sys.meta_path if finder is not hook]
    _IN_SEARCH.add(name)
    try:
        spec = _search(other_finders, name, path, target)
    finally:
        _IN_SEARCH.discard(name)

    if spec is not None:
        try:
            _extend_after_execution(spec)
        except Exception as error:
            warn_once(name, error)
    return spec


def list_harness_folders() -> tuple[str, str]:
    """Return the possible folders of the harness: in the package (wheel), next to it (source)."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    in_wheel = os.path.join(package, "harness", "domainbed")
    in_source = os.path.join(os.path.dirname(package), "third_party", "domainbed")
    return in_wheel, in_source


def find_harness_spec(
    hook: object, name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """Find `domainbed` in the included harness, unless a finder after `hook` finds it.

    Submodules that get here are missing, because Python finds them by the package's `__path__`.
    """
    if name != "domainbed":
        return None

    # Finders appended later, such as the finder of an editable install, take precedence.
    finders = list(sys.meta_path)
    later_finders = finders[finders.index(hook) + 1 :] if hook in finders else []
    spec = _search(later_finders, "domainbed", path, target)
    if spec is not None:
        return spec

    for folder in list_harness_folders():
        init = os.path.join(folder, "__init__.py")
        if os.path.isfile(init):
            return spec_from_file_location("domainbed", init, submodule_search_locations=[folder])
    return None


def _search(
    finders: Iterable[object], name: str, path: Sequence[str] | None, target: ModuleType | None
) -> ModuleSpec | None:
    """Return the first spec of `name` by `finders` in order, as the import system does."""
    for finder in finders:
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(name, path, target) if find_spec else None
        if spec:
            return spec
    return None


def _extend_after_execution(spec: ModuleSpec) -> None:
    """Let the loader of `spec` make the additions once, after it has executed the module."""
    name = spec.name
    loader = spec.loader
    if loader is None:
        return

    original = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        # One loader can serve many modules, for example all of a zip archive.
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
    """Extend the waiting modules of domainbed, unless modules of this package are being executed.

    If an addition fails, this warns and the host continues.
    """
    while WAITING and not RUNNING:
        name = WAITING.pop(0)
        try:
            from domainbed_carft.plugin import additions

            additions.apply(sys.modules[name])
        except JobExit:  # an error that the user has to fix before a job can run
            raise
        except Exception as error:
            warn_once(name, error.__cause__ or error)
