"""The properties that every method must have, one function each.

The function of a property raises an AssertionError if the method violates the property, and
`Inapplicable` if the property does not apply to the method. `CHECKS` lists all functions by name.
"""

from __future__ import annotations

import collections
import copy
import io
import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domainbed_carft.checks.arithmetic import float64
from domainbed_carft.checks.subject import (
    CLASS_NAMES,
    DATASET,
    DOMAINS,
    IMAGES,
    MICRO_BATCH,
    Inapplicable,
    Subject,
    find_file,
    get_gradients,
    minibatches,
    move_batches,
    take_step,
)
from domainbed_carft.data.benchmarks import BENCHMARKS
from domainbed_carft.jobs.hparams import READ_BY_TRAIN
from domainbed_carft.machine import devices
from domainbed_carft.method import hparams, resolution
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.host_lookup import is_carft_harness
from domainbed_carft.method.resolution import get_hparams

TOLERANCE = 1e-7  # for float64; rounding errors are a million times smaller
FLOAT32_TOLERANCE = 1e-4  # also for values that depend on text features, which are float32
DIFFERENCE_TOLERANCE = 1e-4
DIFFERENCE_LENGTH = 1e-7  # of the step in weight space for a difference quotient
TARGET_SEED = 99  # of the images that are not trained on
DATASETS = (DATASET, "Debug28", *BENCHMARKS, "ImageNet", "DTD")
DRAWN_DATASETS = (DATASET, "PACS")
DRAWS = 5
WRONG_VALUES: tuple[Any, ...] = (None, math.nan, math.inf, {})


# Requirements


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def require_same(name: str, actual: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Raise an AssertionError unless two tensors, numbers, or mappings of them are equal.

    The tolerance is relative to the largest expected element, or to 1 if that is larger. With 0
    the bits must be equal.
    """
    if isinstance(expected, Mapping):
        missing, extra = sorted(expected.keys() - actual), sorted(actual.keys() - expected)
        require(not missing, f"{name}: {missing} are missing")
        require(not extra, f"{name}: {extra} are unexpected")
        for key, value in expected.items():
            require_same(f"{name}: {key}", actual[key], value, tolerance)
        return

    actual, expected = (
        torch.as_tensor(value).detach().to("cpu", torch.float64) for value in (actual, expected)
    )
    shape = tuple(actual.shape)
    require(actual.shape == expected.shape, f"{name} is {shape}, expected {tuple(expected.shape)}")
    if torch.equal(actual, expected):
        return
    gaps = (actual - expected).abs().flatten()
    n = int(gaps.argmax())
    message = f"{name} is {actual.flatten()[n]:.9g}, expected {expected.flatten()[n]:.9g}"
    require(bool(gaps[n] <= tolerance * max(1.0, float(expected.abs().max()))), message)


def skip_if(reason: str) -> None:
    """Raise Inapplicable unless the reason is empty."""
    if reason:
        raise Inapplicable(reason)


def resuming_unsupported() -> str:
    """Return the reason why jobs cannot be resumed, or "" if they can."""
    if is_carft_harness():
        return ""
    return "the domainbed package in use is a checkout, which does not resume jobs"


def target_images(dtype: torch.dtype = torch.float32) -> Tensor:
    """Return images of a held-out environment."""
    return minibatches(TARGET_SEED, dtype)[0][0]


def predict(algorithm: CLIPAlgorithm, images: Tensor) -> Tensor:
    """Return the logits of images in evaluation mode, and switch back to training mode."""
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(images)
    algorithm.train()
    return logits


def save_and_load(state: Any) -> Any:
    """Save a state and load it again without running pickled code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


# Building and taking steps


def four_arguments(subject: Subject) -> None:
    """The constructor takes four arguments, of which hparams can be any mapping, left unchanged."""
    values = copy.deepcopy(subject.hparams)
    expected = subject.build(values).state_dict()
    require(values == subject.hparams, "the constructor changes the hparams that it is given")
    generator_state = torch.get_rng_state()
    require(
        torch.equal(generator_state, torch.manual_seed(0).get_state()),
        "the constructor draws from torch's global random generator",
    )

    for mapping in (MappingProxyType(values), collections.UserDict(values)):
        algorithm = subject.build(mapping)
        name = f"built from a {type(mapping).__name__}"
        require_same(name, algorithm.state_dict(), expected, tolerance=0.0)
    shape = tuple(predict(algorithm, target_images()).shape)
    require(shape == (IMAGES, len(CLASS_NAMES)), f"predict returns {shape}, expected (N, classes)")


def generators(subject: Subject) -> None:
    """Random numbers are drawn from torch's generator, not from numpy's or Python's global one."""
    algorithm = None
    for action in ("the constructor", "update", "predict"):
        before = np.random.get_state(), random.getstate()
        if algorithm is None:
            algorithm = subject.build()
        elif action == "update":
            take_step(algorithm, 7, minibatches(7))
        else:
            predict(algorithm, target_images())
        after = np.random.get_state(), random.getstate()
        for name, state, expected in zip(("numpy", "Python"), after, before):
            require(
                str(state) == str(expected),
                f"{action} draws from {name}'s global random generator, which no seed of a step "
                "sets; draw from torch's",
            )


def in_place(subject: Subject) -> None:
    """Neither a step nor a prediction changes the images and labels that it gets."""
    algorithm = subject.get_trained()
    loss = algorithm.loss
    changed: list[str] = []

    def observed_loss(batch: Any) -> dict[str, Tensor]:
        tensors = {"batch.images": batch.images, "batch.labels": batch.labels}
        versions = {name: tensor._version for name, tensor in tensors.items()}
        losses = loss(batch)
        changed.extend(
            name for name, tensor in tensors.items() if tensor._version != versions[name]
        )
        return losses

    algorithm.loss = observed_loss  # type: ignore[method-assign]
    batches, expected = minibatches(7), minibatches(7)
    take_step(algorithm, 7, batches)
    require(not changed, f"loss changes {', '.join(changed)} in place; change a copy")
    for (x, y), (expected_x, expected_y) in zip(batches, expected):
        is_same = torch.equal(x, expected_x) and torch.equal(y, expected_y)
        require(is_same, "update changes its images or labels in place; change a copy")

    images = target_images()
    predict(algorithm, images)
    is_same = torch.equal(images, target_images())
    require(is_same, "predict changes its images in place; change a copy")


def gradients(subject: Subject) -> None:
    """The gradients of the loss equal its central differences in float64."""
    start, stepped = (subject.get_trained(exact=True) for _ in range(2))
    batches = minibatches(7, torch.float64)

    def loss_along(directions: Mapping[str, Tensor], length: float) -> float:
        algorithm = copy.deepcopy(start)
        parameters = dict(algorithm.named_parameters())
        for name, direction in directions.items():
            parameters[name].data.add_(direction, alpha=length)
        return take_step(algorithm, 7, batches)["loss"]

    with float64():
        take_step(stepped, 7, batches)
        trained = {name: p for name, p in stepped.named_parameters() if p.requires_grad}
        skip_if("" if trained else "it has no trainable parameters")
        for part, names in itertools.groupby(trained, lambda name: name.split(".")[0]):
            directions = {name: torch.randn_like(trained[name]) for name in names}
            slopes = [
                (gradient * directions[name]).sum()
                for name, gradient in get_gradients(stepped).items()
                if name in directions
            ]
            derivative = torch.stack(slopes).sum() if slopes else 0.0
            difference = loss_along(directions, DIFFERENCE_LENGTH)
            difference -= loss_along(directions, -DIFFERENCE_LENGTH)
            expected = difference / (2 * DIFFERENCE_LENGTH)
            name = f"the derivative of the loss along a direction of {part}"
            require_same(name, derivative, expected, DIFFERENCE_TOLERANCE)


def micro_batches(subject: Subject) -> None:
    """Micro-batches give the same gradients, measurements and random draws as one batch."""
    divided = {**subject.hparams, "micro_batch": MICRO_BATCH}
    problem = subject.algorithm_class.conflicts(divided).get("micro_batch", "")
    skip_if(problem and f"micro_batch is {MICRO_BATCH}, expected {problem}")

    results = []
    for size in (0, MICRO_BATCH):
        algorithm = subject.get_trained(exact=True)
        algorithm.hparams["micro_batch"] = size
        with float64():
            measured = take_step(algorithm, 7, minibatches(7, torch.float64))
        draw = {"a random number after the step": torch.rand(())}
        results.append({**measured, **get_gradients(algorithm), **draw})
    require_same(f"in micro-batches of {MICRO_BATCH}", results[1], results[0])


def records(subject: Subject) -> None:
    """Each step returns the values measured by `loss` on the full batch, however it is called."""
    algorithm = subject.get_trained()
    batches = minibatches(7)
    loss = algorithm.loss
    measured: dict[str, float] = {}

    def observed_loss(batch: Any) -> dict[str, Tensor]:
        values = loss(batch)
        measured.update({name: float(value.detach()) for name, value in values.items()})
        return values

    algorithm.loss = observed_loss  # type: ignore[method-assign]
    values = take_step(algorithm, 7, batches)
    wrong = [f"{n} = {v!r}" for n, v in values.items() if type(v) is not float or v * 0 != 0]
    require(not wrong, f"update returns {', '.join(wrong)}, expected finite floats")
    for name, weight in (algorithm.terms.weights if algorithm.terms else {}).items():
        measured["loss"] += weight * values[f"loss_{name}"]
    recorded = {name: values[name] for name in measured if name in values}
    require_same("value of loss returned by update", recorded, measured, FLOAT32_TOLERANCE)

    images, labels = zip(*batches)
    for call in (
        lambda algorithm: algorithm.update(batches, unlabeled=None),
        lambda algorithm: algorithm.update(x=images, y=labels),
        lambda algorithm: algorithm.step_on_device(batches),
    ):
        algorithm_copy = subject.get_trained()
        torch.manual_seed(7)
        require_same(
            "the step called in another way", call(algorithm_copy), values, FLOAT32_TOLERANCE
        )


# Saved states


def resume(subject: Subject) -> None:
    """Training resumed from a saved state in a new instance is identical to the bit."""
    skip_if(resuming_unsupported())
    from domainbed.lib import algorithm_state

    uninterrupted = subject.get_initial()
    structure = algorithm_state.structure(uninterrupted)
    steps = range(uninterrupted.lp_steps + 3)
    stored = {}
    measured = {}
    for step in steps:
        if step in (1, steps[-1]):
            stored[step] = save_and_load(algorithm_state.capture(uninterrupted, structure))
        measured[step] = take_step(uninterrupted, step, minibatches(step))

    for stop, state in stored.items():
        resumed = subject.build(seed=1)
        algorithm_state.restore(resumed, state)
        name = f"resumed after {stop} of {len(steps)} steps"
        for step in steps[stop:]:
            values = take_step(resumed, step, minibatches(step))
            require_same(f"{name}, step {step + 1}", values, measured[step], tolerance=0.0)
        require_same(name, resumed.state_dict(), uninterrupted.state_dict(), tolerance=0.0)
        logits, expected = (predict(a, target_images()) for a in (resumed, uninterrupted))
        require_same(f"{name}: a logit", logits, expected, tolerance=0.0)


def state_dict(subject: Subject) -> None:
    """A new instance and a run loaded from a weights file make the same predictions."""
    algorithm = subject.get_trained()
    state = save_and_load(algorithm.state_dict())
    restored = subject.build(seed=1)
    differing = sorted(state.keys() ^ restored.state_dict().keys())
    require(not differing, f"training changes the keys of the state dict: {differing}")

    restored.load_state_dict(state)
    restored.eval()
    expected = predict(algorithm, target_images())
    require_same("a logit", restored(target_images()), expected, FLOAT32_TOLERANCE)

    loaded = subject.save_and_load_run(algorithm).algorithm
    logits = predict(loaded, target_images())
    require_same("a logit of the loaded run", logits, expected, FLOAT32_TOLERANCE)


# On a GPU


def device(subject: Subject) -> None:
    """Steps and predictions on the GPU equal the CPU's, and no operation mixes the devices."""
    gpu = devices.default_device()
    skip_if("" if devices.is_gpu(gpu) else "no GPU")
    algorithm, expected_algorithm = (subject.get_initial(exact=True) for _ in range(2))
    images = target_images(torch.float64)
    with float64(constant_draws=True):
        algorithm.to(gpu)
        for seed in range(algorithm.lp_steps + 2):
            batches = minibatches(seed, torch.float64)
            expected = take_step(expected_algorithm, seed, batches)
            values = take_step(algorithm, seed, move_batches(batches, gpu))
            require_same("on the GPU", values, expected)
        logits = predict(algorithm, images.to(gpu))
        require(logits.device.type == gpu.type, "predictions are not on the GPU")
        require_same("a logit on the GPU", logits, predict(expected_algorithm, images))


# Predictions


def rest_of_batch(subject: Subject) -> None:
    """The prediction for an image does not depend on the other images of its batch."""
    algorithm = subject.get_trained(exact=True)
    images = target_images(torch.float64)
    with float64():
        logits = predict(algorithm, images)
        single_logits = torch.cat([predict(algorithm, image[None]) for image in images])
    require_same("a logit of a batch of one image", single_logits, logits)


def require_same_training(
    name: str,
    algorithm: CLIPAlgorithm,
    rearranged: CLIPAlgorithm,
    rearrange: Callable[[Any], Any],
    classes: Any = slice(None),
    tolerance: float = TOLERANCE,
) -> None:
    """Raise unless a second algorithm on rearranged minibatches trains in the same way, in float64.

    ``classes``: indices of the algorithm's classes in the rearranged algorithm's logits.
    """
    images = target_images(torch.float64)
    steps = [minibatches(seed, torch.float64) for seed in range(algorithm.lp_steps + 2)]
    with float64(constant_draws=True):
        for seed, batches in enumerate(steps):
            expected = take_step(algorithm, seed, batches)
            values = take_step(rearranged, seed, rearrange(batches))
            require_same(name, values, expected, tolerance)
        logits = predict(rearranged, images)[:, classes]
        require_same(f"{name}: a logit", logits, predict(algorithm, images), tolerance)


def class_order(subject: Subject) -> None:
    """Reordering the classes reorders the predictions."""
    if subject.hparams["head_init"] == "random":
        raise Inapplicable("head_init is 'random', so each class starts with other weights")
    names = subject.hparams["class_names"]
    numbers = torch.arange(len(names)).roll(1)  # of the classes, in the new order
    reordered = subject.build_exact(class_names=[names[n] for n in numbers.argsort()])
    require_same_training(
        "with the classes in another order",
        subject.get_initial(exact=True),
        reordered,
        lambda batches: [(x, numbers[y]) for x, y in batches],
        classes=numbers,
        tolerance=FLOAT32_TOLERANCE,
    )


# Invariances


def zero_weight(subject: Subject) -> None:
    """A method whose loss weights are 0 trains like its base class."""
    declared = declared_hparams(subject.algorithm_class)
    weights = {n: 0.0 for n, h in declared.items() if n.endswith("_weight") and h.valid(0.0)}
    skip_if("" if weights else "it has no hyperparameter NAME_weight that can be 0")

    base = next(
        parent
        for parent in subject.algorithm_class.__mro__[1:]
        if issubclass(parent, CLIPAlgorithm) and not weights.keys() & declared_hparams(parent)
    )
    algorithms = (
        subject.build_exact(**weights),
        Subject(base, subject.hparams).build_exact(**weights),
    )
    title = "plain fine-tuning" if base is CLIPAlgorithm else base.__name__
    zeros = ", ".join(f"{weight} = 0" for weight in weights)
    name = f"with {zeros} compared with {title}: loss"
    for seed in range(algorithms[0].lp_steps + 3):
        batches = minibatches(seed, torch.float64)
        with float64():
            losses = [take_step(algorithm, seed, batches)["loss"] for algorithm in algorithms]
        require_same(name, *losses)


def declared_hparams(algorithm_class: type[CLIPAlgorithm]) -> dict[str, hparams.Hparam]:
    """Return name -> hyperparameter declared by a class or its base classes."""
    declarations = (vars(base).get("HPARAMS", ()) for base in algorithm_class.__mro__)
    return {hparam.name: hparam for hparam in itertools.chain.from_iterable(declarations)}


class _Untouchable(Tensor):
    """Images of the target that raise an error if training uses them."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"update uses images of the target in {func.__name__}")


def target(subject: Subject) -> None:
    """Neither images nor labels of the target influence training."""
    results = []
    for is_evaluated in (False, True):
        algorithm = subject.get_trained()
        unlabeled = [target_images().as_subclass(_Untouchable) for _ in range(DOMAINS)]
        torch.manual_seed(7)
        if is_evaluated:
            logits, repeated = (predict(algorithm, target_images()) for _ in range(2))
            require_same("a logit of a repeated prediction", repeated, logits, 0.0)
        measured = algorithm.update(minibatches(7), unlabeled)
        draw = {"a random number after the step": torch.rand(())}
        results.append({**measured, **algorithm.state_dict(), **draw})
    require_same("after predicting images of the target", results[1], results[0], 0.0)


# Hyperparameters


def require_valid(subject: Subject, dataset: str, random_seed: int | None) -> None:
    """Raise unless the defaults (no seed) or a random draw are valid hyperparameters of a job."""
    hparams_by_name = get_hparams(subject.algorithm_class)
    conditions = hparams.Conditions(dataset)
    defaults = hparams.get_defaults(hparams_by_name, conditions)
    values, repeated_values = (
        {**defaults, **hparams.draw_values(hparams_by_name, conditions, random_seed)}
        for _ in range(2)
    )
    kind = "default" if random_seed is None else f"draw of seed {random_seed}"
    for name, value in values.items():
        repeated = repeated_values[name]
        message = f"the {kind} of {name} for {dataset} is {value!r}, then {repeated!r}"
        require(type(value) in (int, float, bool, str), message)
        require(json.loads(json.dumps(value)) == value == repeated, message)
    problems = resolution.find_problems(subject.algorithm_class, values)
    require(not problems, f"a {kind} for {dataset}: {'; '.join(map(str, problems))}")


def default_hparams(subject: Subject) -> None:
    """The defaults for every dataset are valid and do not change when written as JSON."""
    for dataset in DATASETS:
        require_valid(subject, dataset, random_seed=None)


class _NotedHparams(dict[str, Any]):
    """Hyperparameters that note the names read by the code of one file, and the lines."""

    def __init__(self, values: Mapping[str, Any], file: str, places: dict[str, int]) -> None:
        super().__init__(values)
        self._file = file
        self._places = places

    def _note(self, name: str) -> None:
        frame = sys._getframe(2)  # the caller of get or of the brackets
        if frame.f_code.co_filename == self._file:
            self._places.setdefault(name, frame.f_lineno)

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._note(name)
        return super().get(name, default)


def declared(subject: Subject) -> None:
    """Each hyperparameter that the method's file reads is declared."""
    places: dict[str, int] = {}
    file = find_file(subject.algorithm_class)

    class Noted(subject.algorithm_class):  # type: ignore[name-defined]
        @property
        def hparams(self) -> Any:
            return self.__dict__["noted_hparams"]

        @hparams.setter
        def hparams(self, values: Any) -> None:
            self.__dict__["noted_hparams"] = _NotedHparams(values, file, places)

    noted = Subject(Noted, subject.given_hparams)
    algorithm = noted.build(_NotedHparams(noted.hparams, file, places))
    for seed in range(algorithm.lp_steps + 2):
        take_step(algorithm, seed, minibatches(seed))
    predict(algorithm, target_images())
    known = {*get_hparams(subject.algorithm_class), *hparams.PINNABLE, *READ_BY_TRAIN}
    for name, line in places.items():
        message = f"{Path(file).name}, line {line} reads the hyperparameter {name!r}"
        require(name in known, f"{message}, which HPARAMS does not declare, so it cannot be set")


def drawn_hparams(subject: Subject) -> None:
    """The random draws of a search are valid, and equal for equal seeds."""
    for dataset, seed in itertools.product(DRAWN_DATASETS, range(DRAWS)):
        require_valid(subject, dataset, seed)


def wrong_hparams(subject: Subject) -> None:
    """Each hyperparameter rejects invalid values with a message that names it."""
    hparams_by_name = get_hparams(subject.algorithm_class)
    for (name, hparam), value in itertools.product(hparams_by_name.items(), WRONG_VALUES):
        require(not hparam.valid(value), f"{name} = {value!r} is accepted; expected an error")
    for name in declared_hparams(subject.algorithm_class):
        values = {**subject.hparams, name: None}
        problems = [*map(str, resolution.find_problems(subject.algorithm_class, values))]
        require(
            any(problem.startswith(f"{name} is None") for problem in problems),
            f"{name} = None gives {problems}; expected a message that begins with {name} is None",
        )


CHECKS: dict[str, Callable[[Subject], None]] = {
    "four-arguments": four_arguments,
    "generators": generators,
    "in-place": in_place,
    "gradients": gradients,
    "micro-batches": micro_batches,
    "records": records,
    "resume": resume,
    "state-dict": state_dict,
    "device": device,
    "rest-of-batch": rest_of_batch,
    "class-order": class_order,
    "zero-weight": zero_weight,
    "target": target,
    "declared-hparams": declared,
    "default-hparams": default_hparams,
    "drawn-hparams": drawn_hparams,
    "wrong-hparams": wrong_hparams,
}
