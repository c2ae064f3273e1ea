"""A wrapper of domainbed's image folders: it checks the data and can set the preset's transforms.

Broken data is an error for our algorithms, and for all others a warning, once a job. Any other
fault here is a warning, and leaves the data set as its host made it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.clips import pictures
from domainbed_carft.data import verify
from domainbed_carft.errors import CarftError, EndedJob
from domainbed_carft.method import dataset_facts
from domainbed_carft.plugin.hooked_modules import SWITCH, warn_once
from domainbed_carft.text import shown

# Of MultipleEnvironmentImageFolder in domainbed/datasets.py at b93c22a, ending in ImageNet's mean.
UPSTREAMS_SIZE = 224  # px
UPSTREAMS_STEPS = (
    "Resize ToTensor Normalize",
    "RandomResizedCrop RandomHorizontalFlip ColorJitter RandomGrayscale ToTensor Normalize",
)

# Of which data a warning has been given: forks build a data set more than once.
_warned: set[Path | None] = set()


def remembering(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap the `__init__` of MultipleEnvironmentImageFolder: the same effect, and our check."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(signature.parameters, (self, *args))) | kwargs
        hparams = given.get("hparams")
        values = hparams if isinstance(hparams, dict) else {}
        names, ours = values.get("class_names"), "data_edition" in values
        require_weights(values)
        report = _verified(type(self).__name__, given.get("root"), ours)
        try:
            original(self, *args, **kwargs)
        except Exception as error:
            if report is None or not (ours and report.problems):
                raise
            raise CarftError(f"{report.refusal}. It cannot be loaded: {error}") from error
        try:
            # DPLCLIP puts the folders' names here, over what the user may have said.
            if names is not None:
                values["class_names"] = names
            protocol = _follow_protocol(self, given)
            remember(self, report, protocol, hparams, given.get("test_envs"))
        except Exception as error:
            warn_once(f"the class names of {type(self).__name__}", error)

    return __init__


def require_weights(hparams: Any) -> None:
    """In a checkout, have the CLIP of one of our algorithms on this machine before data is read.

    Downloads OpenAI's weights where they are missing. Raises EndedJob where that fails, or where
    the file that the user names does not exist. Our harness and open_clip look for themselves.
    """
    if not isinstance(hparams, dict) or "preprocessing" not in hparams:
        return
    from domainbed_carft.clips import backbone, open_clip_models
    from domainbed_carft.method import host_arguments

    name = hparams.get("clip_backbone")
    is_file = isinstance(name, str) and not name.startswith(open_clip_models.PREFIX)
    if not is_file or host_arguments.in_our_harness():
        return
    try:
        backbone.locate(str(name))
    except CarftError as error:
        raise EndedJob(str(error)) from None


def _verified(name: str, root: Any, ours: bool) -> verify.Report | None:
    """What `carft data verify` finds in the folder, before the host may fail of it."""
    try:
        if not isinstance(root, (str, os.PathLike)) or not os.path.isdir(root):
            return None
        report = verify.verify_folder(name, Path(root))
    except Exception as error:
        warn_once(f"the check of {name}", error)
        return None
    warn_of_broken(report, ours)
    return report


def warn_of_broken(report: verify.Report, ours: bool) -> None:
    """Print, once a job, that the data is broken; algorithms of ``ours`` refuse it themselves."""
    if not report.problems or ours or report.root in _warned:
        return
    _warned.add(report.root)
    print(
        f"domainbed-carft: Warning: {shown(report.refusal)}. The job continues, but its "
        f"results may be worthless; fix the data and rerun the job ({SWITCH}=1 disables this "
        "check).",
        file=sys.stderr,
    )


def remember(
    dataset: Any, report: verify.Report | None, protocol: str, hparams: Any, test_envs: Any
) -> None:
    """Hand on what the environments show, by the very dict that the algorithm gets."""
    environments = [
        dataset_facts.Environment(
            os.path.basename(os.path.normpath(getattr(folder, "root", str(index)))),
            getattr(folder, "classes", None),
            dataset_facts.normalisation(getattr(folder, "transform", None)),
        )
        for index, folder in enumerate(dataset.datasets)
    ]
    name = type(dataset).__name__
    seen = dataset_facts.remember(hparams, name, environments, report, protocol, test_envs)
    dataset.data_edition, dataset.protocol = seen.edition, protocol


def _follow_protocol(dataset: Any, given: Mapping[str, Any]) -> str:
    """Transform pictures by the preset and to the size of our hparams, where these are others.

    Returns the preset that is followed, "host" for transforms that are not upstream's. Those, and
    those of a host that tells no test environments, are left as they are.
    """
    hparams = given.get("hparams")
    wanted = hparams.get("protocol") if isinstance(hparams, dict) else None
    followed = "domainbed" if all(map(_is_upstreams, dataset.datasets)) else "host"
    ours = wanted in pictures.PRESETS[1:]
    if "test_envs" not in given or (not ours and followed == "host"):
        return followed
    asked, size = asked_for(hparams), dataset.input_shape[-1]
    if asked and (ours or size == UPSTREAMS_SIZE):
        size = int(asked.split()[0])
    if ours or size != dataset.input_shape[-1]:
        followed = str(wanted) if ours else followed
        for index, environment in enumerate(dataset.datasets):
            augment = bool(given.get("augment", True)) and index not in given["test_envs"]
            environment.transform = pictures.transform(followed, size, augment, asked)
        dataset.input_shape = (3, size, size)
    return followed


def asked_for(hparams: Any) -> str:
    """The hparam ``preprocessing``, or what the CLIP of one of our algorithms wants, else ""."""
    if not isinstance(hparams, dict) or "preprocessing" not in hparams:
        return ""
    from domainbed_carft.clips import backbone

    with contextlib.suppress(Exception):  # the algorithm will say what is wrong with the CLIP
        return (
            hparams["preprocessing"]
            or backbone.preprocessing(hparams["clip_backbone"]).hparam_value
        )
    return ""


def _is_upstreams(environment: Any) -> bool:
    """Whether the steps of the transform are those of upstream, trained on or not."""
    steps: Any = getattr(getattr(environment, "transform", None), "transforms", ())
    names = " ".join(type(step).__name__ for step in steps)
    return names in UPSTREAMS_STEPS and list(steps[-1].mean) == list(pictures.IMAGENET_MEAN)
