"""What is added to which module of domainbed, each addition after the host's own execution.

Each addition first does what can fail, then changes the host, so that it is there entirely or
not at all. All may run again, on a module that was reloaded say, and then only add what is
missing.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.plugin import OWN_MODULES
from domainbed_carft.plugin.finder import RUNNING, warn_once
from domainbed_carft.plugin.journal import Journal

_JOURNAL = Journal()

# Our names that the host has taken for classes of its own: it keeps them.
_KEPT_BY_HOST: set[str] = set()


def apply(module: ModuleType) -> None:
    """Make all additions to `module`, one of domainbed's.

    Raises:
        CarftError: naming the module and what went wrong, once the others have been tried.
    """
    name = module.__name__
    if any(OWN_MODULES[own] == name for own in RUNNING):
        return
    failures = []
    for add in ADDITIONS.get(name, ()):
        try:
            add(module)
        except Exception as error:
            failures.append(error)
    if failures:
        cause = failures[0]
        raise CarftError(f"{name} cannot be extended: {cause}") from cause


def withdraw() -> None:
    """Take all additions back."""
    _JOURNAL.undo()
    _KEPT_BY_HOST.clear()


def add_algorithms(module: ModuleType) -> None:
    """Put our algorithms into `domainbed.algorithms` and their names into ALGORITHMS."""
    from domainbed_carft import algorithms, hparams

    classes = {name: getattr(algorithms, name) for name in hparams.ALGORITHMS}
    _KEPT_BY_HOST.update(_add_named(module, "ALGORITHMS", classes))


def wrap_hparams(module: ModuleType) -> None:
    """Have `_hparams` of `domainbed.hparams_registry` answer for our algorithms as well."""
    from domainbed_carft import hparams

    if not _JOURNAL.owns(module, "_hparams"):
        _JOURNAL.set(module, "_hparams", _overlaid(module._hparams, hparams))


def wrap_image_folders(module: ModuleType) -> None:
    """Have the ImageFolder data sets of `domainbed.datasets` tell us their class names."""
    base = getattr(module, "MultipleEnvironmentImageFolder", None)
    if base is not None and not _JOURNAL.owns(base, "__init__"):
        _JOURNAL.set(base, "__init__", _remembering(base.__init__))


def add_emoji_styles(module: ModuleType) -> None:
    """Put the embedded benchmark into `domainbed.datasets` and its name into DATASETS."""
    from domainbed_carft import emoji

    _add_named(module, "DATASETS", {"EmojiStyles": emoji.EmojiStyles})


def add_launchers(module: ModuleType) -> None:
    """Put our launchers into `domainbed.command_launchers.REGISTRY`; the host's names stay its."""
    from domainbed_carft import launchers

    for name, launcher in launchers.LAUNCHERS.items():
        _JOURNAL.put(module.REGISTRY, name, launcher)


ADDITIONS: dict[str, tuple[Callable[[ModuleType], None], ...]] = {
    "domainbed.algorithms": (add_algorithms,),
    "domainbed.hparams_registry": (wrap_hparams,),
    "domainbed.datasets": (wrap_image_folders, add_emoji_styles),
    "domainbed.command_launchers": (add_launchers,),
}


def _add_named(module: ModuleType, listing: str, classes: Mapping[str, type]) -> set[str]:
    """Add `classes` to `module` and their names to its list `listing`.

    Returns the names that the module has already given to classes of its own, which stay.
    """
    names = getattr(module, listing)
    if not isinstance(names, list):
        raise CarftError(f"{listing} should be a list of names, but is a {type(names).__name__}")
    taken = set()
    for name, added in classes.items():
        current = vars(module).get(name, added)
        if current is not added and not _JOURNAL.owns(module, name):
            taken.add(name)
            continue
        _JOURNAL.set(module, name, added)
        _JOURNAL.append(names, name)
    if taken:
        warn_once(module.__name__, CarftError(f"it has its own {', '.join(sorted(taken))}"))
    return taken


def _overlaid(original: Callable[..., Any], hparams: ModuleType) -> Callable[..., Any]:
    """Wrap the host's `_hparams`, which returns {name: (default, random value)}."""

    @functools.wraps(original)
    def _hparams(algorithm: str, dataset: str, *args: Any, **kwargs: Any) -> Any:
        host = original(algorithm, dataset, *args, **kwargs)
        if algorithm not in hparams.ALGORITHMS or algorithm in _KEPT_BY_HOST:
            return host
        # Forks disagree on this argument's name: random_seed, random_state, seed.
        seed = _as_seed([*args, *kwargs.values()][0])
        hparams.allow(host.keys())
        return {**host, **hparams.overlay(algorithm, dataset, seed)}

    return _hparams


def _as_seed(value: Any) -> int:
    """Return `value` as a number; older forks hand over a RandomState instead of a seed."""
    return int(value.randint(2**31) if hasattr(value, "randint") else value)


def _remembering(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap the `__init__` of MultipleEnvironmentImageFolder: same effect, then we read names."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        try:
            hparams = signature.bind(self, *args, **kwargs).arguments.get("hparams")
            _remember(self.datasets, getattr(self, "ENVIRONMENTS", None), hparams)
        except Exception as error:
            warn_once(f"the class names of {type(self).__name__}", error)

    return __init__


def _remember(datasets: Sequence[Any], labels: Sequence[str] | None, hparams: Any) -> None:
    """Hand the class names of all environments on, by the very dict that the algorithm gets."""
    from domainbed_carft import prompts

    if hparams is None or not all(hasattr(dataset, "classes") for dataset in datasets):
        return
    classes = {
        _environment_name(dataset, labels, index): list(dataset.classes)
        for index, dataset in enumerate(datasets)
    }
    prompts.remember_classes(hparams, classes)


def _environment_name(dataset: Any, labels: Sequence[str] | None, index: int) -> str:
    """Return the folder's name, which tells the user where to look; else a label or number."""
    if hasattr(dataset, "root"):
        return os.path.basename(os.path.normpath(dataset.root))
    return labels[index] if labels is not None and index < len(labels) else str(index)
