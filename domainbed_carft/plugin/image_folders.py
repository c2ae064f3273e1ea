"""A wrapper of a checkout's image folders: verifies the data, can set a protocol's transforms.

Broken data is an error for algorithms of this package. For all other algorithms it is a warning,
once per job. Any other failure is a warning, and leaves the dataset as the host made it.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from domainbed_carft.data import verify
from domainbed_carft.errors import CarftError, JobExit
from domainbed_carft.images.dataset_facts import DatasetFacts, EnvironmentFacts
from domainbed_carft.images.preprocessing import IMAGENET_MEAN, Normalisation, Preprocessing
from domainbed_carft.images.protocols import CLIP_PRESETS, HOST, UPSTREAM_SIZE, plan_for
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.plugin import known_datasets
from domainbed_carft.plugin.hooked_modules import warn_once

# Steps of MultipleEnvironmentImageFolder in domainbed/datasets.py at b93c22a.
UPSTREAM_STEPS = (
    "Resize ToTensor Normalize",
    "RandomResizedCrop RandomHorizontalFlip ColorJitter RandomGrayscale ToTensor Normalize",
)


def wrap_constructor(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap the `__init__` of MultipleEnvironmentImageFolder, to verify the data as well.

    Afterwards the transforms follow the protocol of the hyperparameters, and algorithms of this
    package have access to the facts of the dataset. For broken data the wrapper raises CarftError
    if the algorithm is one of this package.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        arguments = dict(zip(signature.parameters, (self, *args))) | kwargs
        hparams = arguments.get("hparams")
        values = hparams if isinstance(hparams, dict) else {}
        class_names = values.get("class_names")

        require_weights(values)
        report = _verify(type(self).__name__, arguments.get("root"))
        with verify.report_broken_data(report, values):
            original(self, *args, **kwargs)

        try:
            # DPLCLIP has replaced class names, even those set by the user, by folder names.
            if class_names is not None:
                values["class_names"] = class_names
            protocol = _follow_protocol(self, arguments)
            environments = [_find_facts(*item) for item in enumerate(self.datasets)]
            test_envs = arguments.get("test_envs")
            self.dataset_facts = DatasetFacts(environments, report, protocol, test_envs)
            known_datasets.remember(hparams, type(self).__name__, self.dataset_facts)
        except Exception as error:
            warn_once(f"the class names of {type(self).__name__}", error)

    return __init__


def require_weights(hparams: Any) -> None:
    """Locate or download the CLIP checkpoint of a checkout's job before its data is read.

    Does nothing for other algorithms, and for the included harness and open_clip, which find the
    checkpoint themselves. Raises JobExit if OpenAI's weights cannot be downloaded, or if the
    user's file does not exist.
    """
    if not _has_clip_model(hparams):
        return

    from domainbed_carft.clips import open_clip, openai
    from domainbed_carft.method.host_lookup import is_carft_harness

    name = hparams.get("clip_backbone")
    if not isinstance(name, str) or name.startswith(open_clip.PREFIX) or is_carft_harness():
        return

    try:
        openai.locate(name)
    except CarftError as error:
        raise JobExit(str(error)) from None


def _has_clip_model(hparams: Any) -> bool:
    """Return True if the hyperparameters name a CLIP model for this package to load.

    In a host with its own CLIP model of that name, these are only jobs of this package.
    """
    if not isinstance(hparams, dict) or "clip_backbone" not in hparams:
        return False

    from domainbed_carft.method import host_lookup

    return "contexts" in hparams or not host_lookup.has_own_clip()


def _verify(name: str, root: Any) -> verify.DataReport | None:
    """Return the report of `carft data verify` on the folder, which the host could fail to read."""
    try:
        if isinstance(root, (str, os.PathLike)) and os.path.isdir(root):
            return verify.verify_folder(name, Path(root))
    except Exception as error:
        warn_once(f"the check of {name}", error)
    return None


def _find_facts(index: int, environment: Any) -> EnvironmentFacts:
    """Return the facts of a host's environment."""
    return EnvironmentFacts(
        os.path.basename(os.path.normpath(getattr(environment, "root", str(index)))),
        getattr(environment, "classes", None),
        _get_normalisation(getattr(environment, "transform", None)),
    )


def _follow_protocol(dataset: Any, arguments: Mapping[str, Any]) -> str:
    """Set the transforms to the protocol and image size of the hyperparameters, if they differ.

    Transforms other than upstream's, and transforms of a host that does not pass test environments,
    are not changed.

    Returns:
        The protocol of the transforms; "host" for transforms other than upstream's.
    """
    hparams = arguments.get("hparams")
    requested = hparams.get("protocol") if isinstance(hparams, dict) else None
    is_clip_protocol = requested in CLIP_PRESETS
    has_upstream_transforms = all(
        _is_upstream(getattr(environment, "transform", None)) for environment in dataset.datasets
    )
    host_protocol = "domainbed" if has_upstream_transforms else HOST
    if "test_envs" not in arguments or not (is_clip_protocol or has_upstream_transforms):
        return host_protocol

    preprocessing = get_requested_preprocessing(hparams)
    host_size = dataset.input_shape[-1]
    size = host_size
    if preprocessing and (is_clip_protocol or host_size == UPSTREAM_SIZE):
        size = preprocessing.resolution
    if not is_clip_protocol and size == host_size:
        return host_protocol

    protocol = str(requested) if is_clip_protocol else host_protocol
    for index, environment in enumerate(dataset.datasets):
        augment = bool(arguments.get("augment", True)) and index not in arguments["test_envs"]
        environment.transform = PlanTransform(plan_for(protocol, size, augment, preprocessing))
    dataset.input_shape = (3, size, size)
    return protocol


def get_requested_preprocessing(hparams: Any) -> Preprocessing | None:
    """Return the preprocessing set by the hparam, or else expected by the CLIP checkpoint.

    Returns None for other algorithms, and for a CLIP checkpoint that cannot be read.
    """
    if not _has_clip_model(hparams):
        return None
    if hparams.get("preprocessing"):
        return Preprocessing.from_hparam(hparams["preprocessing"])

    from domainbed_carft.method import job  # imports torch, which takes seconds

    return job.find_preprocessing(hparams)


def _is_upstream(transform: Any) -> bool:
    """Return True if the steps are upstream's, for training or for testing."""
    steps = _steps(transform)
    names = " ".join(type(step).__name__ for step in steps)
    return names in UPSTREAM_STEPS and list(steps[-1].mean) == list(IMAGENET_MEAN)


def _get_normalisation(transform: Any) -> Normalisation | None:
    """Return mean and standard deviation of the last normalising step, or None without one."""
    steps = _steps(transform) or [transform]
    normalising = [step for step in steps if hasattr(step, "mean") and hasattr(step, "std")]
    if not normalising:
        return None
    last = normalising[-1]
    return tuple(map(float, last.mean)), tuple(map(float, last.std))


def _steps(transform: Any) -> Sequence[Any]:
    steps: Sequence[Any] = getattr(transform, "transforms", ())
    return steps
