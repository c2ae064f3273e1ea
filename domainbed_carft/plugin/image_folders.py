"""What the image folders of domainbed are made to do: show what they hold, follow a preset.

Wrapped around `MultipleEnvironmentImageFolder.__init__`; whatever goes wrong here is a warning, and
the data set is what its host made it.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from domainbed_carft.plugin.finder import warn_once

# Of MultipleEnvironmentImageFolder in domainbed/datasets.py at b93c22a, ending in ImageNet's mean.
UPSTREAMS_STEPS = (
    ["Resize", "ToTensor", "Normalize"],
    [
        *("RandomResizedCrop", "RandomHorizontalFlip", "ColorJitter", "RandomGrayscale"),
        *("ToTensor", "Normalize"),
    ],
)


def remembering(original: Callable[..., None], hosts_own: bool) -> Callable[..., None]:
    """Wrap the `__init__` of MultipleEnvironmentImageFolder: same effect, and we look at it.

    `hosts_own` says that the host does not ask us about its data: then broken data is told of here.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        named = dict(zip(signature.parameters, (self, *args))) | kwargs
        hparams = named.get("hparams")
        names = hparams.get("class_names") if isinstance(hparams, dict) else None
        if hosts_own:  # before, for the host may fail of it
            _tell_if_broken(type(self).__name__, hparams, named.get("root"))
        original(self, *args, **kwargs)
        try:
            # DPLCLIP puts the folders' names here, over what the user may have said.
            if isinstance(hparams, dict) and names is not None:
                hparams["class_names"] = names
            _remember(self, hparams, _follow_protocol(self, named))
        except Exception as error:
            warn_once(f"the class names of {type(self).__name__}", error)

    return __init__


def _tell_if_broken(name: str, hparams: Any, root: Any) -> None:
    """Warn of broken data; our own algorithms refuse it by themselves, when they are built."""
    ours = isinstance(hparams, dict) and "data_edition" in hparams
    try:
        if ours or not isinstance(root, (str, os.PathLike)) or not os.path.isdir(root):
            return
        from domainbed_carft.data import data_check

        if problems := data_check.report(name, os.fspath(root)).problems:
            data_check.warn(name, os.fspath(root), problems)
    except Exception as error:
        warn_once(f"the check of {name}", error)


def _follow_protocol(dataset: Any, given: Mapping[str, Any]) -> str:
    """Transform pictures by the preset that our hparams name, where it is not the host's own.

    Returns the preset that is followed, "host" for transforms that are not upstream's. A host that
    does not say which environments are test environments keeps its own.
    """
    hparams = given.get("hparams")
    wanted = hparams.get("protocol") if isinstance(hparams, dict) else None
    if wanted != "clip" or "test_envs" not in given:
        return "domainbed" if all(map(_is_upstreams, dataset.datasets)) else "host"
    from domainbed_carft.method import protocol

    for index, environment in enumerate(dataset.datasets):
        augment = bool(given.get("augment", True)) and index not in given["test_envs"]
        environment.transform = protocol.transform(wanted, dataset.input_shape[-1], augment)
    return wanted


def _is_upstreams(environment: Any) -> bool:
    """Whether the steps of the transform are those of upstream, trained on or not."""
    steps: Any = getattr(getattr(environment, "transform", None), "transforms", ())
    names = [type(step).__name__ for step in steps]
    return names in UPSTREAMS_STEPS and list(steps[-1].mean) == [0.485, 0.456, 0.406]


def _remember(dataset: Any, hparams: Any, protocol: str) -> None:
    """Hand on what the environments show, by the very dict that the algorithm gets."""
    from domainbed_carft.method import observed

    names = _environment_names(dataset)
    environments = [
        observed.Environment(
            names[index],
            getattr(environment, "classes", None),
            observed.normalisation(getattr(environment, "transform", None)),
            protocol,
            observed.counts(environment),
        )
        for index, environment in enumerate(dataset.datasets)
    ]
    root = _common_root(dataset)
    seen = observed.remember(hparams, type(dataset).__name__, environments, root)
    dataset.data_edition, dataset.protocol = seen.edition, protocol
    dataset.data_faults = _faults(dataset, hparams, root, seen.problems)


def _faults(dataset: Any, hparams: Any, root: str | None, problems: Sequence[str]) -> list[str]:
    """Why a host that asks should not train on the data; ours may be told to do so by an hparam."""
    if not problems or (isinstance(hparams, dict) and hparams.get("data_edition") == "unchecked"):
        return []
    name = type(dataset).__name__
    if root is None:  # the environments lie here and there
        return [f"The data of {name} is broken: {'; '.join(problems)}."]
    from domainbed_carft.data import data_check

    ours = isinstance(hparams, dict) and "data_edition" in hparams
    return data_check.with_remedy([data_check.refusal(name, root, problems)], {ours})


def _common_root(dataset: Any) -> str | None:
    """Return the folder that holds the environments' folders, if there is one."""
    roots = [getattr(environment, "root", None) for environment in dataset.datasets]
    parents = {os.path.dirname(os.path.normpath(root)) for root in roots if root is not None}
    return parents.pop() if None not in roots and len(parents) == 1 else None


def _environment_names(dataset: Any) -> list[str]:
    """Return the folders' names, which tell the user where to look; else labels or numbers."""
    roots = [getattr(environment, "root", None) for environment in dataset.datasets]
    folders = [os.path.basename(os.path.normpath(root)) for root in roots if root is not None]
    if len(set(folders)) == len(roots):
        return folders
    labels = [str(label) for label in getattr(dataset, "ENVIRONMENTS", None) or ()]
    if len(set(labels)) == len(roots):
        return labels
    return [str(index) for index in range(len(roots))]
