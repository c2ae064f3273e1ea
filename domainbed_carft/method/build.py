"""An algorithm for a training loop of your own: `domainbed_carft.build`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from domainbed_carft.arguments import COUNT, MAPPING, TEXT, check
from domainbed_carft.errors import CarftError, invalid, raise_for
from domainbed_carft.images.protocols import UPSTREAM_SIZE
from domainbed_carft.jobs import facts
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.algorithms import CLASSES, recorded_hparams
from domainbed_carft.method.job import find_preprocessing
from domainbed_carft.text import unknown


def build(
    algorithm: str,
    class_names: Sequence[str],
    *,
    hparams: Mapping[str, Any] = {},
    steps: int | None = None,
    num_domains: int = 1,
) -> CLIPAlgorithm:
    """An algorithm of this package, ready to train and to predict: a torch module on the CPU.

    Its ``update([(x, y), ...])`` takes a training step on images x (N, 3, R, R) and labels y (N,)
    of each domain. ``predict(x)`` returns class logits (N, K), and ``state_dict()`` has the weights
    that predict.

    ``preprocess`` turns a Pillow image into an x (3, R, R) of the size that the CLIP takes. It is
    normalised as DomainBed does, by ImageNet's mean and standard deviation. The algorithm itself
    goes from there to CLIP's normalisation, so do not normalise once more. If a dataset with this
    very list of class names was built in this process, its normalisation counts instead.

    ``class_names``: one name per class, in label order. ``hparams``: those that differ from the
    defaults, such as ``{"clip_backbone": "tiny"}``; the object is not changed. ``steps``: how many
    updates you will take, by which schedules and averages end. ``num_domains``: how many (x, y) you
    will give to an update.

    Prints nothing, and leaves the random generators as they are; random weights, as of LoRA's
    factors, are drawn by the state that torch's is in. The default CLIP is downloaded once.

    Raises CarftError for an unknown algorithm or hyperparameter, for values that do not fit, and
    without ``steps`` for what needs them.

    >>> algorithm = build("CARFT", ["cat", "dog"], hparams={"clip_backbone": "tiny"}, steps=10)
    >>> algorithm.hparams["total_steps"]
    10
    """
    check(TEXT, algorithm=algorithm)
    check(MAPPING, hparams=hparams)
    check(COUNT, is_optional=True, steps=steps)
    check(COUNT, num_domains=num_domains)
    if algorithm not in CLASSES:
        raise CarftError(unknown("algorithm", algorithm, CLASSES))
    raise_for([*_class_name_problems(class_names), *_unknown_names(algorithm, hparams)])

    algorithm_class = CLASSES[algorithm]
    values = {**hparams, "class_names": [*class_names]}
    if steps is not None:
        values["total_steps"] = steps
    complete = algorithm_class.complete_hparams(values)
    if "total_steps" not in values:
        raise_for(algorithm_class.total_steps_problems(complete))

    preprocessing = find_preprocessing(complete)
    size = preprocessing.resolution if preprocessing else UPSTREAM_SIZE  # it will say what is wrong
    with contextlib.redirect_stdout(io.StringIO()):
        return algorithm_class((3, size, size), len(class_names), num_domains, values)


def _class_name_problems(class_names: Any) -> list[str]:
    """That the class names are none, such as a single text."""
    is_list = isinstance(class_names, Sequence) and not isinstance(class_names, str)
    if is_list and class_names and all(isinstance(name, str) and name for name in class_names):
        return []
    return [invalid("class_names", class_names, "a list with one name per class, in label order")]


def _unknown_names(algorithm: str, hparams: Mapping[str, Any]) -> list[str]:
    """The names that no record of the algorithm has among its hyperparameters and facts."""
    valid_names = sorted(recorded_hparams(algorithm))
    known_names = {*valid_names, *facts.NAMES, facts.FOREIGN, *_host_names()}
    return [
        unknown(f"hyperparameter of {algorithm}", name, valid_names)
        for name in hparams
        if name not in known_names
    ]


def _host_names() -> set[str]:
    """The names that the domainbed in use gives every algorithm; none of a fork without them."""
    from domainbed import hparams_registry

    with contextlib.suppress(Exception):  # of any type, by what the fork makes of the function
        return {*hparams_registry.default_hparams("ERM", "PACS")}
    return set()
