"""A wrapper of domainbed's image folders that checks the data and can set a protocol's transforms.

Broken data is an error for algorithms of this package. For all other algorithms it is a warning,
once per job. Any other failure is a warning, and leaves the dataset as the host made it.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.data import verify
from domainbed_carft.errors import CarftError, JobExit
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.images.protocols import CLIP_PRESETS, HOST, UPSTREAM_SIZE, plan_for
from domainbed_carft.images.transforms import PlanTransform, get_normalisation, is_upstream
from domainbed_carft.method import dataset_facts
from domainbed_carft.plugin.hooked_modules import SWITCH, warn_once
from domainbed_carft.text import printable

# Data folders with a printed warning, because forks build a dataset more than once.
_warned: set[Path | None] = set()


def wrap_constructor(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap the `__init__` of MultipleEnvironmentImageFolder, to check the data as well.

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
        refuses_broken_data = "clip_backbone" in values

        require_weights(values)
        # The included harness makes a report itself, so that no folder is listed twice.
        is_reported = hasattr(type(self), "report")
        report = None if is_reported else _verify(type(self).__name__, arguments.get("root"))

        failure = None
        try:
            original(self, *args, **kwargs)
        except Exception as error:
            failure = error

        report = self.report if is_reported else report
        if report is not None:
            warn_about_broken_data(report, refuses_broken_data)
        if failure is not None:
            if report is None or not (refuses_broken_data and report.problems):
                raise failure
            raise CarftError(f"{report.error_text}. It cannot be loaded: {failure}") from failure

        try:
            # DPLCLIP has replaced class names, even those set by the user, by folder names.
            if class_names is not None:
                values["class_names"] = class_names
            protocol = _follow_protocol(self, arguments)
            pass_facts(self, report, protocol, hparams, arguments.get("test_envs"))
        except Exception as error:
            warn_once(f"the class names of {type(self).__name__}", error)

    return __init__


def require_weights(hparams: Any) -> None:
    """Locate or download the CLIP checkpoint of a checkout's job before its data is read.

    Does nothing for other algorithms, and for the included harness and open_clip, which find the
    checkpoint themselves. Raises JobExit if OpenAI's weights cannot be downloaded, or if the
    user's file does not exist.
    """
    if not isinstance(hparams, dict) or "clip_backbone" not in hparams:
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


def _verify(name: str, root: Any) -> verify.DataReport | None:
    """Return the report of `carft data verify` on the folder, which the host could fail to read."""
    try:
        if isinstance(root, (str, os.PathLike)) and os.path.isdir(root):
            return verify.verify_folder(name, Path(root))
    except Exception as error:
        warn_once(f"the check of {name}", error)
    return None


def warn_about_broken_data(report: verify.DataReport, refuses_broken_data: bool) -> None:
    """Print once per job that the data is broken, unless the job ends because of it."""
    if not report.problems or refuses_broken_data or report.root in _warned:
        return

    _warned.add(report.root)
    print(
        f"domainbed-carft: Warning: {printable(report.error_text)}. The job continues, but its "
        f"results could be wrong; fix the data and rerun the job ({SWITCH}=1 disables this "
        "check).",
        file=sys.stderr,
    )


def pass_facts(
    dataset: Any, report: verify.DataReport | None, protocol: str, hparams: Any, test_envs: Any
) -> None:
    """Pass facts of a dataset to algorithms, and set its ``data_edition`` and ``protocol``.

    Args:
        dataset: The dataset.
        report: Its data check, if any.
        protocol: The protocol of its transforms.
        hparams: Algorithms find the facts by the class names in these hyperparameters.
        test_envs: Indices of the targets, or None if the host does not pass them.
    """
    environments = []
    for index, folder in enumerate(dataset.datasets):
        environment = dataset_facts.EnvironmentFacts(
            os.path.basename(os.path.normpath(getattr(folder, "root", str(index)))),
            getattr(folder, "classes", None),
            get_normalisation(getattr(folder, "transform", None)),
        )
        environments.append(environment)

    name = type(dataset).__name__
    facts = dataset_facts.remember(hparams, name, environments, report, protocol, test_envs)
    dataset.data_edition = facts.edition
    dataset.protocol = protocol


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
        is_upstream(getattr(environment, "transform", None)) for environment in dataset.datasets
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
    if not isinstance(hparams, dict) or "clip_backbone" not in hparams:
        return None
    if hparams.get("preprocessing"):
        return Preprocessing.from_hparam(hparams["preprocessing"])

    from domainbed_carft.method import job  # imports torch, which takes seconds

    return job.find_preprocessing(hparams)
