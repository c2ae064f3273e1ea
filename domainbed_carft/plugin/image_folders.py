"""A wrapper of a checkout's image folders: verifies the data, can set a protocol's transforms.

Broken data is an error for algorithms of this package. For all other algorithms it is a warning,
once per job. Any other failure is a warning, and leaves the dataset as the host made it.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.data import verification
from domainbed_carft.datasets import known_datasets
from domainbed_carft.datasets.requested_clip import get_requested_preprocessing, require_weights
from domainbed_carft.images.dataset_setup import list_steps, set_up
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.images.preprocessing import IMAGENET_MEAN
from domainbed_carft.images.protocols import CLIP_PRESETS, HOST, UPSTREAM_SIZE, plan_for
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
        with verification.report_broken_data(report, values):
            original(self, *args, **kwargs)

        try:
            # DPLCLIP has replaced class names, even those set by the user, by folder names.
            if class_names is not None:
                values["class_names"] = class_names
            protocol, plan = _choose_plan(self, arguments)
            facts = set_up(
                self,
                report,
                plan,
                protocol,
                test_envs=arguments.get("test_envs"),
                augment=bool(arguments.get("augment", True)),
            )
            known_datasets.remember(hparams, type(self).__name__, facts)
        except Exception as error:
            warn_once(f"the class names of {type(self).__name__}", error)

    return __init__


def _verify(name: str, root: Any) -> verification.DataReport | None:
    """Return the report of `carft data verify` on the folder, which the host could fail to read."""
    try:
        if isinstance(root, (str, os.PathLike)) and os.path.isdir(root):
            return verification.verify_folder(name, Path(root))
    except Exception as error:
        warn_once(f"the verification of {name}", error)
    return None


def _choose_plan(dataset: Any, arguments: Mapping[str, Any]) -> tuple[str, ImagePlan | None]:
    """Choose the protocol and the plan by the hyperparameters.

    Returns:
        The protocol of the transforms, "host" for transforms other than upstream's; and the plan
        that replaces them. It is None if they do not differ from it, are not upstream's, or are of
        a host that does not pass test environments.
    """
    hparams = arguments.get("hparams")
    requested = hparams.get("protocol") if isinstance(hparams, dict) else None
    is_clip_protocol = requested in CLIP_PRESETS
    has_upstream_transforms = all(
        _is_upstream(getattr(environment, "transform", None)) for environment in dataset.datasets
    )
    host_protocol = "domainbed" if has_upstream_transforms else HOST
    if "test_envs" not in arguments or not (is_clip_protocol or has_upstream_transforms):
        return host_protocol, None

    preprocessing = get_requested_preprocessing(hparams)
    host_size = dataset.input_shape[-1]
    size = host_size
    if preprocessing and (is_clip_protocol or host_size == UPSTREAM_SIZE):
        size = preprocessing.resolution
    if not is_clip_protocol and size == host_size:
        return host_protocol, None

    protocol = str(requested) if is_clip_protocol else host_protocol
    return protocol, plan_for(protocol, size, True, preprocessing)


def _is_upstream(transform: Any) -> bool:
    """Return True if the steps are upstream's, for training or for testing."""
    steps = list_steps(transform)
    names = " ".join(type(step).__name__ for step in steps)
    return names in UPSTREAM_STEPS and list(steps[-1].mean) == list(IMAGENET_MEAN)
