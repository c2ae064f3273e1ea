"""What is added to which module of domainbed, each addition after the host's own execution.

Each addition first does what can fail, then changes the host, so that it is there entirely or
not at all. All may run again, on a module that was reloaded say, and then only add what is
missing.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
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
    """Put our algorithms into `domainbed.algorithms`, its list and its lookup."""
    from domainbed_carft import algorithms, hparams

    classes = {name: getattr(algorithms, name) for name in hparams.ALGORITHMS}
    added = _add_named(module, "ALGORITHMS", classes)
    _KEPT_BY_HOST.update(classes.keys() - added.keys())
    _add_to_lookup(module, "get_algorithm_class", added)


def wrap_hparams(module: ModuleType) -> None:
    """Have the two functions of `domainbed.hparams_registry` answer for our algorithms as well.

    They are what every fork has, whether or not it draws values as upstream's `_hparams` does.
    """
    from domainbed_carft import hparams

    for name, which in (("default_hparams", 0), ("random_hparams", 1)):
        if not _JOURNAL.owns(module, name):
            _JOURNAL.set(module, name, _overlaid(getattr(module, name), hparams, which))


def wrap_image_folders(module: ModuleType) -> None:
    """Have the ImageFolder data sets of `domainbed.datasets` show us what `observed` keeps."""
    for part in _parts(module):
        base: Any = vars(part).get("MultipleEnvironmentImageFolder")
        if base is not None and not _JOURNAL.owns(base, "__init__"):
            _JOURNAL.set(base, "__init__", _remembering(base.__init__))


def add_emoji_styles(module: ModuleType) -> None:
    """Put the embedded benchmark into `domainbed.datasets`, its list and its lookup."""
    from domainbed_carft import emoji

    # Forks with a package in place of the module keep the data sets in a part of it.
    home = next((part for part in _parts(module) if "DATASETS" in vars(part)), module)
    if _JOURNAL.owns(home, "EmojiStyles"):
        ours = home.EmojiStyles
    else:
        ours = _as_a_hosts(emoji.EmojiStyles, home, "MultipleDomainDataset")
    added = _add_named(home, "DATASETS", {"EmojiStyles": ours})
    _add_to_lookup(home, "get_dataset_class", added)
    counts = getattr(home, "NUM_ENVIRONMENTS", None)  # in 2020 sweep and collection went by it
    if added and isinstance(counts, dict):
        _JOURNAL.put(counts, "EmojiStyles", len(ours.ENVIRONMENTS))


def add_launchers(module: ModuleType) -> None:
    """Put our launchers into `domainbed.command_launchers.REGISTRY`; the host's names stay its."""
    from domainbed_carft import launchers

    for name, launcher in launchers.LAUNCHERS.items():
        _JOURNAL.put(module.REGISTRY, name, launcher)


# Of MultipleEnvironmentImageFolder in domainbed/datasets.py at b93c22a, ending in ImageNet's mean.
UPSTREAMS_STEPS = (
    ["Resize", "ToTensor", "Normalize"],
    [
        *("RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "RandomGrayscale"),
        *("ToTensor", "Normalize"),
    ],
)

ADDITIONS: dict[str, tuple[Callable[[ModuleType], None], ...]] = {
    "domainbed.algorithms": (add_algorithms,),
    "domainbed.hparams_registry": (wrap_hparams,),
    "domainbed.datasets": (wrap_image_folders, add_emoji_styles),
    "domainbed.command_launchers": (add_launchers,),
}


def _as_a_hosts(ours: type, home: ModuleType, base: str) -> type:
    """Return `ours` as a class of the module `home`, with what its `base` has behind it."""
    bases = (ours, getattr(home, base, object))
    return type(ours.__name__, bases, {"__module__": home.__name__, "__doc__": ours.__doc__})


def _parts(module: ModuleType) -> list[ModuleType]:
    """`module` and, where it is a package, those of its submodules that are loaded."""
    prefix = f"{module.__name__}."
    inner = [part for name, part in sys.modules.items() if name.startswith(prefix)]
    return [module, *inner]


def _add_named(module: ModuleType, listing: str, classes: Mapping[str, type]) -> dict[str, type]:
    """Add `classes` to `module` and their names to its list or table `listing`, if it has one.

    Returns those added: names that the module has given to classes of its own stay its.
    """
    names = getattr(module, listing, [])
    if not isinstance(names, (list, dict)):
        raise CarftError(
            f"{listing} should be a list of names or a table of classes, but is a "
            f"{type(names).__name__}"
        )
    added = {
        name: ours
        for name, ours in classes.items()
        if vars(module).get(name, ours) is ours or _JOURNAL.owns(module, name)
    }
    for name, ours in added.items():
        _JOURNAL.set(module, name, ours)
        if isinstance(names, dict):
            _JOURNAL.put(names, name, ours)
        else:
            _JOURNAL.append(names, name)
    if taken := sorted(classes.keys() - added.keys()):
        warn_once(module.__name__, CarftError(f"it has its own {', '.join(taken)}"))
    return added


def _add_to_lookup(module: ModuleType, lookup: str, classes: Mapping[str, type]) -> None:
    """Let the function `lookup` of `module` find `classes`, if it does not by itself.

    Upstream's looks into the module's globals, where they are by now; others have a table.
    """
    original = getattr(module, lookup, None)
    if original is None or _JOURNAL.owns(module, lookup):
        return
    missed = {n: ours for n, ours in classes.items() if _looked_up(original, n) is not ours}
    if not missed:
        return

    @functools.wraps(original)
    def find(name: str, *args: Any, **kwargs: Any) -> Any:
        return missed[name] if name in missed else original(name, *args, **kwargs)

    _JOURNAL.set(module, lookup, find)


def _looked_up(lookup: Callable[[str], Any], name: str) -> Any:
    try:
        return lookup(name)
    except Exception:  # upstream raises NotImplementedError, a table KeyError
        return None


def _overlaid(original: Callable[..., Any], hparams: ModuleType, which: int) -> Callable[..., Any]:
    """Wrap the host's `default_hparams` or `random_hparams`: ours lie over what it returns.

    `which` is the place in the pairs (default, random value) of our overlay.
    """
    from domainbed_carft import arguments

    signature = inspect.signature(original)

    @functools.wraps(original)
    def answer(*args: Any, **kwargs: Any) -> Any:
        # Forks disagree on the arguments' names, not on their order: the third one is the seed.
        named = signature.bind(*args, **kwargs).arguments.items()
        values = [*args, *(value for name, value in named if name in kwargs)]
        algorithm, dataset = values[:2]
        if algorithm not in hparams.ALGORITHMS or algorithm in _KEPT_BY_HOST:
            return original(*args, **kwargs)
        try:
            host = original(*args, **kwargs)
        except Exception:
            # A registry that knows its own algorithms only: what it gives to each of them serves.
            host = original("ERM", *values[1:])
        arguments.allow(host.keys())
        pairs = hparams.overlay(algorithm, dataset, int(values[2]) if which else 0)
        return {**host, **{name: pair[which] for name, pair in pairs.items()}}

    return answer


def _remembering(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap the `__init__` of MultipleEnvironmentImageFolder: same effect, then we look at it."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        hparams = given.get("hparams")
        names = hparams.get("class_names") if isinstance(hparams, dict) else None
        original(self, *args, **kwargs)
        try:
            # DPLCLIP puts the folders' names here, over what the user may have said.
            if isinstance(hparams, dict) and names is not None:
                hparams["class_names"] = names
            _remember(self, hparams, _follow_protocol(self, given))
        except Exception as error:
            warn_once(f"the class names of {type(self).__name__}", error)

    return __init__


def _follow_protocol(dataset: Any, given: Mapping[str, Any]) -> str:
    """Transform pictures by the preset that our hparams name, where it is not the host's own.

    Returns the preset that is followed, "host" for transforms that are not upstream's. A host that
    does not say which environments are test environments keeps its own.
    """
    hparams = given.get("hparams")
    wanted = hparams.get("protocol") if isinstance(hparams, dict) else None
    if wanted != "clip" or "test_envs" not in given:
        return "domainbed" if all(map(_is_upstreams, dataset.datasets)) else "host"
    from domainbed_carft import protocol

    for index, environment in enumerate(dataset.datasets):
        augment = bool(given.get("augment", True)) and index not in given["test_envs"]
        environment.transform = protocol.transform(wanted, dataset.input_shape[-1], augment)
    return wanted


def _is_upstreams(environment: Any) -> bool:
    """Whether the steps of the transform are those of upstream, trained on or not."""
    steps = getattr(getattr(environment, "transform", None), "transforms", ())
    names = [type(step).__name__ for step in steps]
    return names in UPSTREAMS_STEPS and list(steps[-1].mean) == [0.485, 0.456, 0.406]


def _remember(dataset: Any, hparams: Any, protocol: str) -> None:
    """Hand on what the environments show, by the very dict that the algorithm gets."""
    from domainbed_carft import observed

    labels = getattr(dataset, "ENVIRONMENTS", None) or ()
    environments = [
        observed.Environment(
            _environment_name(environment, labels, index),
            getattr(environment, "classes", None),
            observed.normalisation(getattr(environment, "transform", None)),
            protocol,
            observed.counts(environment),
        )
        for index, environment in enumerate(dataset.datasets)
    ]
    seen = observed.remember(hparams, type(dataset).__name__, environments)
    dataset.data_edition = seen.edition


def _environment_name(environment: Any, labels: Sequence[str], index: int) -> str:
    """Return the folder's name, which tells the user where to look; else a label or number."""
    if hasattr(environment, "root"):
        return os.path.basename(os.path.normpath(environment.root))
    return labels[index] if index < len(labels) else str(index)
