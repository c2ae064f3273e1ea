"""The additions to each module of domainbed, made after the module has been executed.

Each addition begins with the steps that can fail, so that it is made completely or not at all. All
can be repeated, for example on a reloaded module, and then add only what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from domainbed_carft.errors import CarftError, JobExit
from domainbed_carft.plugin import clip_networks, foreign_jobs
from domainbed_carft.plugin.hooked_modules import warn_about_kept_names
from domainbed_carft.plugin.registry_functions import HostNames, wrap_function

HOST_NAMES = HostNames()

# All values that this process has set as attributes of modules and classes of the host.
_set_values: list[object] = []


def apply(module: ModuleType) -> None:
    """Make all additions to a module of domainbed. Raises CarftError if one fails."""
    name = module.__name__
    try:
        for add in ADDITIONS.get(name, ()):
            add(module)
    except JobExit:  # an error that the user has to fix
        raise
    except Exception as error:
        raise CarftError(f"{name} cannot be extended: {error}") from error


def add_algorithms(module: ModuleType) -> None:
    """Add the package's algorithms to `domainbed.algorithms`, its list and its lookup.

    In a checkout the classes check the hparams themselves, see `foreign_jobs`. If a user's own
    methods cannot be used, the lookup raises an error with their problems for every name.
    """
    from domainbed_carft.method import algorithms, host_lookup, own_methods

    classes: dict[str, Any] = dict(algorithms.CLASSES)
    if not host_lookup.is_carft_harness():
        classes = {
            name: foreign_jobs.make_foreign_class(algorithm, module.__name__)
            for name, algorithm in classes.items()
        }
    added = _exclude_host_names(module, classes)
    kept_names = sorted(classes.keys() - added.keys() - algorithms.OWN_METHODS.keys())
    not_added = [value for name, value in algorithms.OWN_METHODS.items() if name not in added]
    HOST_NAMES.problems[:] = [
        *algorithms.OWN_PROBLEMS,
        *(own_methods.format_name_conflict(algorithm, module.__name__) for algorithm in not_added),
    ]
    if kept_names:
        HOST_NAMES.algorithms.update(kept_names)
        warn_about_kept_names(module.__name__, kept_names)

    _add_to_listing(module, "ALGORITHMS", added)
    _add_classes(module, added)
    if HOST_NAMES.problems:
        _refuse_lookups(module, "get_algorithm_class")
    else:
        _add_to_lookup(module, "get_algorithm_class", added)


def wrap_algorithm(module: ModuleType) -> None:
    """Extend the methods of `domainbed.algorithms.Algorithm` that `clip_networks` needs."""
    from domainbed_carft.method import host_lookup

    base: Any = vars(module).get("Algorithm")
    if base is None or _has_set(base, "__init__"):
        return
    _set(base, "__init__", clip_networks.wrap_algorithm(base.__init__))
    if hasattr(base, "_apply"):  # of a torch module
        _set(base, "_apply", clip_networks.wrap_apply(base._apply))
    if host_lookup.is_carft_harness():
        resolve_hparams = clip_networks.wrap_resolve_hparams(vars(base)["resolve_hparams"])
        _set(base, "resolve_hparams", resolve_hparams)
        _set(base, "image_format", clip_networks.wrap_image_format(vars(base)["image_format"]))


def wrap_networks(module: ModuleType) -> None:
    """Extend `Featurizer` and `Classifier` of `domainbed.networks`, see `clip_networks`.

    In forks with a package instead of the module, they are in a submodule as well.
    """
    parts = _loaded_parts(module)
    wrappers: dict[str, Callable[[Any], Any]] = {
        "Featurizer": clip_networks.wrap_featurizer,
        "Classifier": clip_networks.wrap_classifier,
    }
    for name, wrap in wrappers.items():
        original: Any = vars(module).get(name)
        if original is None or _has_set(module, name):
            continue

        if not isinstance(original, type):
            function = wrap(original)
            for part in parts:
                if vars(part).get(name) is original:
                    _set(part, name, function)
        elif name == "Featurizer" and not _has_set(original, "__new__"):
            _set(original, "__new__", wrap(original))


def wrap_hparams(module: ModuleType) -> None:
    """Extend the two functions of `hparams_registry` to the package's algorithms."""
    for name, draws in (("default_hparams", False), ("random_hparams", True)):
        if not _has_set(module, name):
            original = getattr(module, name)
            function = wrap_function(original, draws=draws, host_names=HOST_NAMES)
            _set(module, name, function)


def wrap_image_folders(module: ModuleType) -> None:
    """Let the ImageFolder datasets of a checkout's `domainbed.datasets` remember their facts."""
    from domainbed_carft.method import host_lookup
    from domainbed_carft.plugin import image_folders

    if host_lookup.is_carft_harness():
        return
    for part in _loaded_parts(module):
        base: Any = vars(part).get("MultipleEnvironmentImageFolder")
        if base is not None and not _has_set(base, "__init__"):
            constructor = image_folders.wrap_constructor(base.__init__)
            _set(base, "__init__", constructor)


def add_datasets(module: ModuleType) -> None:
    """Add the package's datasets to `domainbed.datasets` and its lookup.

    Only datasets with several environments are added to its list, because a sweep without
    `--datasets` holds out each environment of every listed dataset.
    """
    from domainbed_carft.datasets import included

    # In forks with a package instead of the module, the datasets are in a submodule.
    parts = _loaded_parts(module)
    home = next((part for part in parts if "DATASETS" in vars(part)), module)
    with_environments: list[Any] = [included.EmojiStyles, included.EmojiUnseen]
    provided = [*with_environments, included.EmojiShift, included.ImageNet]
    provided += included.TASKS.values()
    classes = {dataset.__name__: _make_host_class(home, dataset) for dataset in provided}
    added = _exclude_host_names(home, classes)
    HOST_NAMES.datasets.update(classes.keys() - added.keys())

    names = [dataset.__name__ for dataset in with_environments]
    listed = {name: dataset for name, dataset in added.items() if name in names}
    _add_to_listing(home, "DATASETS", listed)
    _add_classes(home, added)
    _add_to_lookup(home, "get_dataset_class", added)

    environment_counts = getattr(home, "NUM_ENVIRONMENTS", None)  # only in DomainBed of 2020
    if isinstance(environment_counts, dict):
        for name, dataset in added.items():
            environment_counts.setdefault(name, len(dataset.ENVIRONMENTS))


def add_launchers(module: ModuleType) -> None:
    """Add the package's launchers to `domainbed.command_launchers.REGISTRY`.

    If a user's own methods cannot be used, a checkout's sweep ends here. The included harness
    reports this later, together with all other problems.
    """
    from domainbed_carft import launchers
    from domainbed_carft.jobs import own_methods

    if own_methods.find_files():
        from domainbed_carft.method import algorithms as algorithms  # this extends the host's too
        from domainbed_carft.method import host_lookup

        if not host_lookup.is_carft_harness():
            HOST_NAMES.require_usable()
    for name, launcher in launchers.LAUNCHERS.items():
        module.REGISTRY.setdefault(name, launcher)


ADDITIONS: dict[str, tuple[Callable[[ModuleType], None], ...]] = {
    "domainbed.algorithms": (add_algorithms, wrap_algorithm),
    "domainbed.networks": (wrap_networks,),
    "domainbed.hparams_registry": (wrap_hparams,),
    "domainbed.datasets": (wrap_image_folders, add_datasets),
    "domainbed.command_launchers": (add_launchers,),
}


def _loaded_parts(module: ModuleType) -> list[ModuleType]:
    """Return `module` and, if it is a package, its loaded submodules."""
    prefix = f"{module.__name__}."
    submodules = [part for name, part in sys.modules.items() if name.startswith(prefix)]
    return [module, *submodules]


def _make_host_class(home: ModuleType, dataset: Any) -> Any:
    """Derive a class of the host's module from `dataset` and the host's base class."""
    name = dataset.__name__
    if _has_set(home, name):
        return vars(home)[name]

    bases = (dataset, getattr(home, "MultipleDomainDataset", object))
    return type(name, bases, {"__module__": home.__name__, "__doc__": dataset.__doc__})


def _exclude_host_names(module: ModuleType, classes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes whose names are not used by anything else in the module."""
    names = vars(module)
    return {name: value for name, value in classes.items() if names.get(name, value) is value}


def _add_to_listing(module: ModuleType, listing_name: str, classes: Mapping[str, Any]) -> None:
    """Add `classes` to the module's list or dict `listing_name`, if there is one."""
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
    """Set an attribute of a module or a class of the host, and remember the value."""
    setattr(owner, name, value)
    _set_values.append(value)


def _has_set(owner: Any, name: str) -> bool:
    """Return True if the attribute ``name`` of ``owner`` was set by `_set`."""
    current = vars(owner).get(name)
    return any(current is value for value in _set_values)


def _add_to_lookup(module: ModuleType, lookup_name: str, classes: Mapping[str, type]) -> None:
    """Let the module's function `lookup_name` find `classes`, unless it already does.

    Upstream's function does, because it uses the module's globals; functions with a table do not.
    """
    original = getattr(module, lookup_name, None)
    if original is None or _has_set(module, lookup_name):
        return

    missed = {
        name: added for name, added in classes.items() if not _lookup_finds(original, name, added)
    }
    if not missed:
        return

    @functools.wraps(original)
    def lookup(*args: Any, **kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]  # hosts call the only argument by different names
        name = values[0] if values else None
        if isinstance(name, str) and name in missed:
            return missed[name]
        return original(*args, **kwargs)

    _set(module, lookup_name, lookup)


def _refuse_lookups(module: ModuleType, lookup_name: str) -> None:
    """Let the module's function `lookup_name` raise an error for problems of a user's methods."""
    original = getattr(module, lookup_name, None)
    if original is None or _has_set(module, lookup_name):
        return

    @functools.wraps(original)
    def refusal(*args: Any, **kwargs: Any) -> Any:
        HOST_NAMES.require_usable()
        return original(*args, **kwargs)

    _set(module, lookup_name, refusal)


def _lookup_finds(lookup: Callable[[str], Any], name: str, expected: type) -> bool:
    # For unknown names upstream raises NotImplementedError, and a table KeyError.
    with contextlib.suppress(Exception):
        return lookup(name) is expected
    return False
