"""The additions to each module of domainbed, made after the module's own execution.

Each does first what can fail, so that it is made entirely or not at all. All may run again, for
instance on a reloaded module, and then add only what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.plugin.hooked_modules import (
    OWN_MODULES,
    RUNNING,
    warn_of_hparams_to_add,
    warn_of_kept_names,
)

# What we put in place of a host's own: functions, methods, and classes made for the host.
_MADE: list[object] = []

# Names of ours that the host already uses: its own algorithms, its own data sets or what else it
# imports by the name of one (torchvision's CIFAR100). These stay.
_KEPT_BY_HOST: set[str] = set()
_DATASETS_KEPT_BY_HOST: set[str] = set()


def apply(module: ModuleType) -> None:
    """Make all additions to `module`, one of domainbed's. Raises CarftError where one fails."""
    name = module.__name__
    if any(OWN_MODULES[own] == name for own in RUNNING):
        return
    try:
        for add in ADDITIONS.get(name, ()):
            add(module)
    except Exception as error:
        raise CarftError(f"{name} cannot be extended: {error}") from error


def add_algorithms(module: ModuleType) -> None:
    """Put our algorithms into `domainbed.algorithms`, its list and its lookup."""
    from domainbed_carft.method import algorithms, hparams

    classes = {name: getattr(algorithms, name) for name in hparams.ALGORITHMS}
    added = _add_named(module, "ALGORITHMS", classes)
    if kept := sorted(classes.keys() - added.keys()):
        _KEPT_BY_HOST.update(kept)
        warn_of_kept_names(module.__name__, kept)
    _add_to_lookup(module, "get_algorithm_class", added)


def wrap_hparams(module: ModuleType) -> None:
    """Have the two functions that every fork's `hparams_registry` has answer for ours as well."""
    from domainbed_carft.method import hparams

    for name, which in (("default_hparams", 0), ("random_hparams", 1)):
        if not _is_made(module, name):
            _set(module, name, _overlaid(getattr(module, name), hparams, which))


def wrap_image_folders(module: ModuleType) -> None:
    """Have the ImageFolder data sets of `domainbed.datasets` show us what `dataset_facts` keeps."""
    from domainbed_carft.plugin import image_folders

    for part in _parts(module):
        base: Any = vars(part).get("MultipleEnvironmentImageFolder")
        if base is not None and not _is_made(base, "__init__"):
            _set(base, "__init__", image_folders.remembering(base.__init__))


def add_datasets(module: ModuleType) -> None:
    """Put our data sets into `domainbed.datasets` and its lookup, those of styles into its list.

    A sweep without `--datasets` leaves out each environment of those in it; the others have one.
    """
    from domainbed_carft.plugin import data_sets

    # Forks with a package instead of the module keep the data sets in a part of it.
    home = next((part for part in _parts(module) if "DATASETS" in vars(part)), module)
    styles = (data_sets.EmojiStyles, data_sets.EmojiUnseen)
    classes = (*styles, data_sets.EmojiShift, data_sets.ImageNet)
    ours = {c.__name__: _hosted(home, c) for c in (*classes, *data_sets.TASKS.values())}
    added = _add_named(home, "DATASETS", {c.__name__: ours[c.__name__] for c in styles})
    added |= _add_named(home, "", ours)
    _DATASETS_KEPT_BY_HOST.update(ours.keys() - added.keys())
    _add_to_lookup(home, "get_dataset_class", added)
    counts = getattr(home, "NUM_ENVIRONMENTS", None)  # in 2020 sweep and collection went by it
    if isinstance(counts, dict):
        for name, one in added.items():
            counts.setdefault(name, len(one.ENVIRONMENTS))


def _hosted(home: ModuleType, ours: Any) -> Any:
    """`ours` as a class of the host's module, with what its data sets have behind ours."""
    name = ours.__name__
    if _is_made(home, name):
        return vars(home)[name]
    bases = (ours, getattr(home, "MultipleDomainDataset", object))
    return type(name, bases, {"__module__": home.__name__, "__doc__": ours.__doc__})


def add_launchers(module: ModuleType) -> None:
    """Put our launchers into `domainbed.command_launchers.REGISTRY`; the host's names stay its."""
    from domainbed_carft import launchers

    module.REGISTRY.update({**launchers.LAUNCHERS, **module.REGISTRY})


def _set(owner: Any, name: str, made: object) -> None:
    """Set the attribute `name` of `owner`, a module or a class."""
    setattr(owner, name, made)
    _MADE.append(made)


def _is_made(owner: Any, name: str) -> bool:
    """Whether the attribute `name` of `owner` is what `_set` made it."""
    current = vars(owner).get(name)
    return any(current is one for one in _MADE)


ADDITIONS: dict[str, tuple[Callable[[ModuleType], None], ...]] = {
    "domainbed.algorithms": (add_algorithms,),
    "domainbed.hparams_registry": (wrap_hparams,),
    "domainbed.datasets": (wrap_image_folders, add_datasets),
    "domainbed.command_launchers": (add_launchers,),
}


def _parts(module: ModuleType) -> list[ModuleType]:
    """`module` and, where it is a package, those of its submodules that are loaded."""
    prefix = f"{module.__name__}."
    inner = [part for name, part in sys.modules.items() if name.startswith(prefix)]
    return [module, *inner]


def _add_named(module: ModuleType, listing: str, classes: Mapping[str, Any]) -> dict[str, Any]:
    """Add `classes` to `module` and their names to its list or table `listing`, if it has one.

    Returns those added; names that the module uses for its own classes are kept.
    """
    names = getattr(module, listing, [])
    added = {name: ours for name, ours in classes.items() if vars(module).get(name, ours) is ours}
    for name, ours in added.items():
        if name not in names:
            # Fails for a tuple, say, before anything is changed.
            names.update({name: ours}) if isinstance(names, dict) else names.append(name)
        _set(module, name, ours)
    return added


def _add_to_lookup(module: ModuleType, lookup: str, classes: Mapping[str, type]) -> None:
    """Let the function `lookup` of `module` find `classes`: upstream's does so by itself, from the
    module's globals, but not one with a table of its own.
    """
    original = getattr(module, lookup, None)
    if original is None or _is_made(module, lookup):
        return
    missed = dict(classes)
    for name, ours in classes.items():
        # Upstream raises NotImplementedError, a table KeyError.
        with contextlib.suppress(Exception):
            if original(name) is ours:
                del missed[name]
    if not missed:
        return

    @functools.wraps(original)
    def find(*args: Any, **kwargs: Any) -> Any:
        name: Any = next(iter([*args, *kwargs.values()]), None)  # whatever the host calls it
        asked = isinstance(name, str) and name in missed
        return missed[name] if asked else original(*args, **kwargs)

    _set(module, lookup, find)


def _overlaid(original: Callable[..., Any], hparams: ModuleType, which: int) -> Callable[..., Any]:
    """Wrap the host's `default_hparams` or `random_hparams`: ours lie over what it returns.

    `which` is the place in the pairs (default, random value) of our overlay.
    """
    import numpy as np

    from domainbed_carft.method import host_arguments

    signature = inspect.signature(original)

    @functools.wraps(original)
    def answer(*args: Any, **kwargs: Any) -> Any:
        # Forks disagree on the arguments' names, not on their order: the third one is the seed.
        values = [*args, *(kwargs[name] for name in signature.parameters if name in kwargs)]
        ours = bool(values) and values[0] in hparams.ALGORITHMS and values[0] not in _KEPT_BY_HOST
        if not ours or len(values) < 2 + which:
            return original(*args, **kwargs)
        algorithm, dataset = values[:2]
        if dataset in _DATASETS_KEPT_BY_HOST:
            warn_of_kept_names("domainbed.datasets", [dataset])
        try:
            host = original(*args, **kwargs)
        except Exception:
            # A registry that knows its own algorithms only: what it gives to each of them serves.
            host = original("ERM", *values[1:])
        # Upstream draws some as numpy's, which neither JSON nor torch's restricted reader takes.
        host = {name: v.item() if isinstance(v, np.generic) else v for name, v in host.items()}
        host_arguments.allow(host.keys())
        seed = int(values[2]) if which else None
        if added := host_arguments.hparams_to_add(algorithm, dataset, seed):
            warn_of_hparams_to_add(added)
        pairs = hparams.overlay(algorithm, dataset, seed or 0)
        return {**host, **{name: pair[which] for name, pair in pairs.items()}}

    return answer
