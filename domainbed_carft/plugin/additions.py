"""The additions to each module of domainbed, made after the module's own execution.

Each does first what can fail, so that it is made entirely or not at all. All may run again, for
instance on a reloaded module, and then add only what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from domainbed_carft.errors import CarftError, EndedJob
from domainbed_carft.plugin import foreign_jobs
from domainbed_carft.plugin.hooked_modules import warn_of_kept_names
from domainbed_carft.plugin.registry_functions import HostNames, extended_function

HOST_NAMES = HostNames()

# All values that this process has set as attributes of a host's modules and classes.
_set_values: list[object] = []


def apply(module: ModuleType) -> None:
    """Make all additions to `module`, one of domainbed's. Raises CarftError where one fails."""
    name = module.__name__
    try:
        for add in ADDITIONS.get(name, ()):
            add(module)
    except EndedJob:  # what the user has to mend
        raise
    except Exception as error:
        raise CarftError(f"{name} cannot be extended: {error}") from error


def add_algorithms(module: ModuleType) -> None:
    """Put our algorithms into `domainbed.algorithms`, its list and its lookup.

    A foreign host gets classes that check the hparams themselves, see `foreign_jobs`. Where a
    user's own methods cannot be used, the lookup refuses every name with the problems.
    """
    from domainbed_carft.method import algorithms, host_lookup, own_methods

    classes: dict[str, Any] = dict(algorithms.CLASSES)
    if not host_lookup.is_carft_harness():
        classes = {
            name: foreign_jobs.in_foreign_host(algorithm, module.__name__)
            for name, algorithm in classes.items()
        }
    added = _without_names_of_host(module, classes)
    kept_names = sorted(classes.keys() - added.keys() - algorithms.OWN_METHODS.keys())
    own_kept = [value for name, value in algorithms.OWN_METHODS.items() if name not in added]
    HOST_NAMES.problems[:] = [
        *algorithms.OWN_PROBLEMS,
        *(own_methods.format_name_conflict(algorithm, module.__name__) for algorithm in own_kept),
    ]
    if kept_names:
        HOST_NAMES.algorithms.update(kept_names)
        warn_of_kept_names(module.__name__, kept_names)

    _add_to_listing(module, "ALGORITHMS", added)
    _add_classes(module, added)
    if HOST_NAMES.problems:
        _refuse_lookups(module, "get_algorithm_class")
    else:
        _add_to_lookup(module, "get_algorithm_class", added)


def wrap_hparams(module: ModuleType) -> None:
    """Have the two functions that every fork's `hparams_registry` has answer for ours as well."""
    for name, draws in (("default_hparams", False), ("random_hparams", True)):
        if not _has_set(module, name):
            original = getattr(module, name)
            function = extended_function(original, draws=draws, host_names=HOST_NAMES)
            _set(module, name, function)


def wrap_image_folders(module: ModuleType) -> None:
    """Have the ImageFolder datasets of `domainbed.datasets` hand on what `dataset_facts` keeps."""
    from domainbed_carft.plugin import image_folders

    for part in _loaded_parts(module):
        base: Any = vars(part).get("MultipleEnvironmentImageFolder")
        if base is not None and not _has_set(base, "__init__"):
            constructor = image_folders.with_data_check(base.__init__)
            _set(base, "__init__", constructor)


def add_datasets(module: ModuleType) -> None:
    """Put our datasets into `domainbed.datasets` and its lookup, those of styles into its list.

    A sweep without `--datasets` leaves out each environment of those in the list; the others have
    a single environment.
    """
    from domainbed_carft.plugin import datasets

    # Forks with a package instead of the module keep the datasets in a part of it.
    parts = _loaded_parts(module)
    home = next((part for part in parts if "DATASETS" in vars(part)), module)
    of_styles: list[Any] = [datasets.EmojiStyles, datasets.EmojiUnseen]
    provided = [*of_styles, datasets.EmojiShift, datasets.ImageNet]
    provided += datasets.TASKS.values()
    classes = {dataset.__name__: _class_of_host(home, dataset) for dataset in provided}
    added = _without_names_of_host(home, classes)
    HOST_NAMES.datasets.update(classes.keys() - added.keys())

    names = [dataset.__name__ for dataset in of_styles]
    listed = {name: dataset for name, dataset in added.items() if name in names}
    _add_to_listing(home, "DATASETS", listed)
    _add_classes(home, added)
    _add_to_lookup(home, "get_dataset_class", added)

    environment_counts = getattr(home, "NUM_ENVIRONMENTS", None)  # of 2020's sweep and collection
    if isinstance(environment_counts, dict):
        for name, dataset in added.items():
            environment_counts.setdefault(name, len(dataset.ENVIRONMENTS))


def add_launchers(module: ModuleType) -> None:
    """Put our launchers into `domainbed.command_launchers.REGISTRY`, beside those of the host.

    A foreign host's sweep ends here where a user's own methods cannot be used; our harness's says
    so with all that is wrong.
    """
    from domainbed_carft import launchers
    from domainbed_carft.jobs import own_methods

    if own_methods.files():
        from domainbed_carft.method import algorithms as algorithms  # and so the host's
        from domainbed_carft.method import host_lookup

        if not host_lookup.is_carft_harness():
            HOST_NAMES.require_usable()
    for name, launcher in launchers.LAUNCHERS.items():
        module.REGISTRY.setdefault(name, launcher)


ADDITIONS: dict[str, tuple[Callable[[ModuleType], None], ...]] = {
    "domainbed.algorithms": (add_algorithms,),
    "domainbed.hparams_registry": (wrap_hparams,),
    "domainbed.datasets": (wrap_image_folders, add_datasets),
    "domainbed.command_launchers": (add_launchers,),
}


def _loaded_parts(module: ModuleType) -> list[ModuleType]:
    """`module` and, if it is a package, those of its submodules that are loaded."""
    prefix = f"{module.__name__}."
    submodules = [part for name, part in sys.modules.items() if name.startswith(prefix)]
    return [module, *submodules]


def _class_of_host(home: ModuleType, dataset: Any) -> Any:
    """Our class `dataset` as one of the host's module, with the host's base class behind it."""
    name = dataset.__name__
    if _has_set(home, name):
        return vars(home)[name]

    bases = (dataset, getattr(home, "MultipleDomainDataset", object))
    return type(name, bases, {"__module__": home.__name__, "__doc__": dataset.__doc__})


def _without_names_of_host(module: ModuleType, classes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `classes` by whose names the `module` has nothing else."""
    names = vars(module)
    return {name: value for name, value in classes.items() if names.get(name, value) is value}


def _add_to_listing(module: ModuleType, listing_name: str, classes: Mapping[str, Any]) -> None:
    """Add `classes` to the module's list or table of classes, if it has one of that name."""
    listing = getattr(module, listing_name, [])
    for name, added in classes.items():
        if isinstance(listing, dict):
            listing.setdefault(name, added)
        elif name not in listing:
            listing.append(name)


def _add_classes(module: ModuleType, classes: Mapping[str, Any]) -> None:
    for name, added in classes.items():
        _set(module, name, added)


def _set(owner: Any, name: str, value: object) -> None:
    """Set the attribute ``name`` of ``owner``, a module or a class of a host."""
    setattr(owner, name, value)
    _set_values.append(value)


def _has_set(owner: Any, name: str) -> bool:
    """Whether the attribute ``name`` of ``owner`` is a value that we have set."""
    current = vars(owner).get(name)
    return any(current is value for value in _set_values)


def _add_to_lookup(module: ModuleType, lookup_name: str, classes: Mapping[str, type]) -> None:
    """Let the module's function `lookup_name` find `classes`, unless it does so by itself.

    Upstream's does, from the module's globals; one with a table of its own does not.
    """
    original = getattr(module, lookup_name, None)
    if original is None or _has_set(module, lookup_name):
        return

    missed = {name: added for name, added in classes.items() if not _finds(original, name, added)}
    if not missed:
        return

    @functools.wraps(original)
    def lookup(*args: Any, **kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]  # by whatever name the host calls its only argument
        name = values[0] if values else None
        if isinstance(name, str) and name in missed:
            return missed[name]
        return original(*args, **kwargs)

    _set(module, lookup_name, lookup)


def _refuse_lookups(module: ModuleType, lookup_name: str) -> None:
    """Let the module's function `lookup_name` raise the problems of a user's own methods."""
    original = getattr(module, lookup_name, None)
    if original is None or _has_set(module, lookup_name):
        return

    @functools.wraps(original)
    def refusal(*args: Any, **kwargs: Any) -> Any:
        HOST_NAMES.require_usable()
        return original(*args, **kwargs)

    _set(module, lookup_name, refusal)


def _finds(lookup: Callable[[str], Any], name: str, expected: type) -> bool:
    # Upstream raises NotImplementedError for a name that it does not know, a table KeyError.
    with contextlib.suppress(Exception):
        return lookup(name) is expected
    return False
