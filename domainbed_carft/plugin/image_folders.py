"""A wrapper of domainbed's image folders: it checks the data and can set a protocol's transforms.

Broken data is an error for our algorithms, and for all others a warning, once a job. Any other
failure here is a warning, and leaves the dataset as its host made it.
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
from domainbed_carft.errors import CarftError, EndedJob
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.images.protocols import CLIP_PRESETS, HOST, UPSTREAM_SIZE, plan_for
from domainbed_carft.images.transforms import PlanTransform, is_upstream, normalisation_of
from domainbed_carft.method import dataset_facts
from domainbed_carft.plugin.hooked_modules import SWITCH, warn_once
from domainbed_carft.text import printable

# Folders of data that a warning was printed of: forks build a dataset more than once.
_warned: set[Path | None] = set()


def with_data_check(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap the `__init__` of MultipleEnvironmentImageFolder: the data is checked, too.

    After it the transforms follow the protocol of our hyperparameters, and our algorithms get the
    facts of the dataset. The wrapper raises CarftError for broken data of our algorithms.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        arguments = dict(zip(signature.parameters, (self, *args))) | kwargs
        hparams = arguments.get("hparams")
        values = hparams if isinstance(hparams, dict) else {}
        class_names = values.get("class_names")
        is_for_us = "clip_backbone" in values

        require_weights(values)
        # Our harness reports on what it lists itself, so that no folder is listed twice.
        is_reported = hasattr(type(self), "report")
        report = None if is_reported else _verified(type(self).__name__, arguments.get("root"))

        failure = None
        try:
            original(self, *args, **kwargs)
        except Exception as error:
            failure = error

        report = self.report if is_reported else report
        if report is not None:
            warn_of_broken_data(report, is_for_us)
        if failure is not None:
            if report is None or not (is_for_us and report.problems):
                raise failure
            raise CarftError(f"{report.refusal}. It cannot be loaded: {failure}") from failure

        try:
            # DPLCLIP puts the folders' names here, over what the user may have given.
            if class_names is not None:
                values["class_names"] = class_names
            protocol = _follow_protocol(self, arguments)
            hand_on_facts(self, report, protocol, hparams, arguments.get("test_envs"))
        except Exception as error:
            warn_once(f"the class names of {type(self).__name__}", error)

    return __init__


def require_weights(hparams: Any) -> None:
    """In a checkout, have the CLIP of one of our algorithms on this machine before data is read.

    Downloads OpenAI's weights where they are missing. Raises EndedJob where that fails, or where
    the file that the user names does not exist. Our harness and open_clip look for themselves.
    """
    if not isinstance(hparams, dict) or "clip_backbone" not in hparams:
        return

    from domainbed_carft.clips import open_clip, openai
    from domainbed_carft.method.host_lookup import is_carft_harness

    name = hparams.get("clip_backbone")
    is_file = isinstance(name, str) and not name.startswith(open_clip.PREFIX)
    if not is_file or is_carft_harness():
        return

    try:
        openai.locate(str(name))
    except CarftError as error:
        raise EndedJob(str(error)) from None


def _verified(name: str, root: Any) -> verify.DataReport | None:
    """What `carft data verify` finds in the folder, before the host may fail of it."""
    try:
        if isinstance(root, (str, os.PathLike)) and os.path.isdir(root):
            return verify.verify_folder(name, Path(root))
    except Exception as error:
        warn_once(f"the check of {name}", error)
    return None


def warn_of_broken_data(report: verify.DataReport, is_for_us: bool) -> None:
    """Print, once a job, that the data is broken.

    Nothing is printed if the job ``is_for_us``, one of our algorithms: these refuse such data.
    """
    if not report.problems or is_for_us or report.root in _warned:
        return

    _warned.add(report.root)
    print(
        f"domainbed-carft: Warning: {printable(report.refusal)}. The job continues, but its "
        f"results may be worthless; fix the data and rerun the job ({SWITCH}=1 disables this "
        "check).",
        file=sys.stderr,
    )


def hand_on_facts(
    dataset: Any, report: verify.DataReport | None, protocol: str, hparams: Any, test_envs: Any
) -> None:
    """Keep the facts of ``dataset`` for the algorithms whose class names are those of ``hparams``.

    ``test_envs``: the numbers of the environments left out, None if the host does not tell. The
    dataset gets the attributes ``data_edition`` and ``protocol``.
    """
    environments = []
    for index, folder in enumerate(dataset.datasets):
        environment = dataset_facts.EnvironmentFacts(
            os.path.basename(os.path.normpath(getattr(folder, "root", str(index)))),
            getattr(folder, "classes", None),
            normalisation_of(getattr(folder, "transform", None)),
        )
        environments.append(environment)

    name = type(dataset).__name__
    facts = dataset_facts.remember(hparams, name, environments, report, protocol, test_envs)
    dataset.data_edition = facts.edition
    dataset.protocol = protocol


def _follow_protocol(dataset: Any, arguments: Mapping[str, Any]) -> str:
    """Transform images by the protocol and to the size of our hparams, where these are others.

    Returns the protocol that is followed, "host" for transforms that are not upstream's. Those, and
    those of a host that tells no test environments, are left as they are.
    """
    hparams = arguments.get("hparams")
    requested = hparams.get("protocol") if isinstance(hparams, dict) else None
    is_clip_protocol = requested in CLIP_PRESETS
    is_upstreams = all(
        is_upstream(getattr(environment, "transform", None)) for environment in dataset.datasets
    )
    host_protocol = "domainbed" if is_upstreams else HOST
    if "test_envs" not in arguments or not (is_clip_protocol or is_upstreams):
        return host_protocol

    preprocessing = requested_preprocessing(hparams)
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


def requested_preprocessing(hparams: Any) -> Preprocessing | None:
    """What the hparam ``preprocessing`` says, or what the CLIP of one of our algorithms wants.

    None for other algorithms, and for a CLIP that cannot be read.
    """
    if not isinstance(hparams, dict) or "clip_backbone" not in hparams:
        return None
    if hparams.get("preprocessing"):
        return Preprocessing.from_hparam(hparams["preprocessing"])

    from domainbed_carft.method import job  # takes the seconds of importing torch

    return job.find_preprocessing(hparams)
