"""`domainbed_carft.build`: an algorithm for a training loop of your own."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from domainbed_carft.arguments import COUNT, MAPPING, TEXT, require_kind
from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.images.dataset_facts import DatasetFacts
from domainbed_carft.images.protocols import UPSTREAM_SIZE
from domainbed_carft.jobs import facts
from domainbed_carft.method import resolution
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.algorithms import CLASSES, recorded_hparams
from domainbed_carft.method.job import find_preprocessing
from domainbed_carft.suggestions import unknown


def build(
    algorithm: str,
    class_names: Sequence[str],
    *,
    hparams: Mapping[str, Any] = {},
    steps: int | None = None,
    num_domains: int = 1,
    dataset_facts: DatasetFacts | None = None,
) -> CLIPAlgorithm:
    """Build an algorithm of this package, ready to train and predict, without a DomainBed job.

    The result is a torch module on the CPU. Its ``update([(x, y), ...])`` takes a training step on
    images x (N, 3, R, R) and labels y (N,) of each training environment, ``predict(x)`` returns
    class logits (N, K), and ``state_dict()`` has the weights used for prediction.

    ``preprocess`` turns a Pillow image into x (3, R, R), with the resolution R of the CLIP model.
    It normalises as in DomainBed, by ImageNet's mean and standard deviation. The algorithm itself
    converts this to CLIP's normalisation, so do not normalise again. With the facts of a dataset,
    its normalisation is used instead.

    Nothing is printed, and the random generators keep their state; random weights, such as LoRA's
    factors, depend on the state of torch's generator. The default CLIP model is downloaded once.

    Args:
        algorithm: name of an algorithm, such as "CARFT".
        class_names: one name per class, in label order.
        hparams: hyperparameters that differ from the defaults, such as
            ``{"clip_backbone": "tiny"}``; not changed.
        steps: number of updates that you will take, at which schedules and averages end.
        num_domains: number of pairs (x, y) that you will pass to an update.
        dataset_facts: the attribute ``dataset_facts`` of a dataset of this package, None for your
            own images.

    Returns:
        The algorithm, in train mode.

    Raises:
        CarftError: if an algorithm, hyperparameter or value is invalid, or if ``steps`` is missing
            and the hyperparameters need it.

    >>> algorithm = build("CARFT", ["cat", "dog"], hparams={"clip_backbone": "tiny"}, steps=10)
    >>> algorithm.hparams["total_steps"]
    10
    """
    require_kind(TEXT, algorithm=algorithm)
    require_kind(MAPPING, hparams=hparams)
    require_kind(COUNT, is_optional=True, steps=steps)
    require_kind(COUNT, num_domains=num_domains)
    if algorithm not in CLASSES:
        raise CarftError(unknown("algorithm", algorithm, CLASSES))
    raise_for([*_class_name_problems(class_names), *_unknown_name_problems(algorithm, hparams)])

    algorithm_class = CLASSES[algorithm]
    values = {**hparams, "class_names": [*class_names]}
    if steps is not None:
        values["total_steps"] = steps
    complete = resolution.complete(algorithm_class, values)
    if "total_steps" not in values:
        steps_problems = _find_steps_problems(algorithm_class, complete)
        if steps_problems:  # otherwise the constructor reports the values
            raise_for([*_value_problems(algorithm_class, complete), *steps_problems])

    preprocessing = find_preprocessing(complete)
    # Without preprocessing, the constructor raises the error.
    size = preprocessing.resolution if preprocessing else UPSTREAM_SIZE
    with contextlib.redirect_stdout(io.StringIO()):
        return algorithm_class(
            (3, size, size), len(class_names), num_domains, complete, dataset_facts=dataset_facts
        )


def _value_problems(algorithm: type[CLIPAlgorithm], hparams: Mapping[str, Any]) -> list[str]:
    """Return a problem for each value that is invalid on its own."""
    return [
        invalid(name, hparams[name], hparam.expected)
        for name, hparam in resolution.get_hparams(algorithm).items()
        if name in hparams and not hparam.valid(hparams[name])
    ]


def _find_steps_problems(algorithm: type[CLIPAlgorithm], hparams: Mapping[str, Any]) -> list[str]:
    """Return a problem for each part of the training that depends on its last step."""
    give_steps = "which is not known; pass steps=..., the number of updates that you will take"
    problems = [f"{reason}, {give_steps}" for reason in algorithm.total_steps_reasons(hparams)]
    if not (algorithm.trains_encoder or algorithm.trains_head or algorithm.trains_text):
        return problems
    if hparams["lr_schedule"] == "cosine":
        problems.append(
            f"lr_schedule 'cosine' falls to 0 at the last step, {give_steps}, or set lr_schedule "
            "to 'constant'"
        )
    if hparams["average"] == "beta":
        problems.append(
            f"average 'beta' weights all steps up to the last one, {give_steps}, or set average "
            "to 'none', 'sma' or 'ema'"
        )
    return problems


def _class_name_problems(class_names: Any) -> list[str]:
    """Return a problem if the class names are not a list of texts."""
    if (
        isinstance(class_names, Sequence)
        and not isinstance(class_names, str)
        and class_names
        and all(isinstance(name, str) and name for name in class_names)
    ):
        return []
    return [invalid("class_names", class_names, "a list with one name per class, in label order")]


def _unknown_name_problems(algorithm: str, hparams: Mapping[str, Any]) -> list[str]:
    """Return a problem for each name that the algorithm's records do not have."""
    valid_names = sorted(recorded_hparams(algorithm))
    known_names = {*valid_names, *facts.NAMES, facts.FOREIGN, *_get_host_hparams()}
    return [
        unknown(f"hyperparameter of {algorithm}", name, valid_names)
        for name in hparams
        if name not in known_names
    ]


def _get_host_hparams() -> set[str]:
    """Return the hparams that the domainbed in use gives to every algorithm."""
    from domainbed import hparams_registry

    with contextlib.suppress(Exception):  # a fork's function can raise any type
        return {*hparams_registry.default_hparams("ERM", "PACS")}
    return set()
