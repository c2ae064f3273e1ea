"""The properties of every method, a function each: it returns, or raises what is wrong.

A property that does not apply raises `Inapplicable` with the reason. `CHECKS` has all by name.
"""

from __future__ import annotations

import collections
import copy
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.checks import processes
from domainbed_carft.checks.arithmetic import float64
from domainbed_carft.checks.subject import (
    CLASS_NAMES,
    DATASET,
    DOMAINS,
    IMAGES,
    MICRO_BATCH,
    SHAPE,
    Inapplicable,
    Subject,
    gradients_of,
    minibatches,
    moved,
    take_step,
)
from domainbed_carft.data.benchmarks import BENCHMARKS
from domainbed_carft.machine import devices, stand_in_device
from domainbed_carft.method import hparam_checks, hparams
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.host_lookup import is_carft_harness

TOLERANCE = 1e-7  # of float64, whose rounding is a millionth of it
FLOAT32_TOLERANCE = 1e-4  # also of what depends on text features, which are in float32
DIFFERENCE_TOLERANCE = 1e-4
DIFFERENCE_LENGTH = 1e-7  # of the weights that are moved for a difference
TARGET_SEED = 99  # of images that no step is taken on
DATASETS = (DATASET, "Debug28", *BENCHMARKS, "ImageNet", "DTD")
DRAWN_DATASETS = (DATASET, "PACS")
DRAWS = 5
WRONG_VALUES: tuple[Any, ...] = (None, math.nan, math.inf, {})


# Requirements


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def require_same(name: str, actual: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    """Raise unless two tensors, numbers, or mappings of them are equal.

    ``tolerance``: a share of the largest element, or of 1 if that is larger; 0 is to the bit.
    """
    if isinstance(expected, Mapping):
        missing, extra = sorted(expected.keys() - actual), sorted(actual.keys() - expected)
        require(not missing, f"{name}: {missing} did not come, but were expected")
        require(not extra, f"{name}: {extra} came, but were not expected")
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
    """Raise Inapplicable if there is a reason to."""
    if reason:
        raise Inapplicable(reason)


def without_resuming() -> str:
    """Return why jobs cannot be resumed; "" if they can."""
    is_ours = is_carft_harness()
    return "" if is_ours else "the domainbed in use is a checkout, which does not resume jobs"


def target_images(dtype: torch.dtype = torch.float32) -> Tensor:
    """Images of an environment that is left out."""
    return minibatches(TARGET_SEED, dtype)[0][0]


def predictions(algorithm: CLIPAlgorithm, images: Tensor) -> Tensor:
    """Predict images as an evaluation does, and return to training."""
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(images)
    algorithm.train()
    return logits


def written_and_read(state: Any) -> Any:
    """A state through a file, of which nothing is run."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


# Building and taking steps


def four_arguments(subject: Subject) -> None:
    """The constructor takes four arguments, with any mapping, and does not change the mapping."""
    values = copy.deepcopy(subject.hparams)
    expected = subject.build(values).state_dict()
    require(values == subject.hparams, "building changes the hparams that it is given")
    generator = torch.get_rng_state()
    expected_generator = torch.manual_seed(0).get_state()
    require(torch.equal(generator, expected_generator), "building draws torch's random numbers")

    for mapping in (MappingProxyType(values), collections.UserDict(values)):
        algorithm = subject.build(mapping)
        built = f"built from a {type(mapping).__name__}"
        require_same(built, algorithm.state_dict(), expected, tolerance=0.0)
    shape = tuple(predictions(algorithm, target_images()).shape)
    require(shape == (IMAGES, len(CLASS_NAMES)), f"predict returns {shape}, expected (N, classes)")


def gradients(subject: Subject) -> None:
    """The gradients of the loss are its derivatives, by central differences in float64."""
    start, stepped = (subject.trained(exact=True) for _ in range(2))
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
        skip_if("" if trained else "it trains nothing")
        for part, names in itertools.groupby(trained, lambda name: name.split(".")[0]):
            directions = {name: torch.randn_like(trained[name]) for name in names}
            slopes = [
                (gradient * directions[name]).sum()
                for name, gradient in gradients_of(stepped).items()
                if name in directions
            ]
            derivative = torch.stack(slopes).sum() if slopes else 0.0
            ahead = loss_along(directions, DIFFERENCE_LENGTH)
            behind = loss_along(directions, -DIFFERENCE_LENGTH)
            expected = (ahead - behind) / (2 * DIFFERENCE_LENGTH)
            name = f"the derivative of the loss along a direction of {part}"
            require_same(name, derivative, expected, DIFFERENCE_TOLERANCE)


def micro_batches(subject: Subject) -> None:
    """Micro-batches give the gradients, measurements and random draws of the whole batch."""
    divided = {**subject.hparams, "micro_batch": MICRO_BATCH}
    problem = subject.algorithm_class.conflicts(divided).get("micro_batch", "")
    skip_if(problem and f"micro_batch is {MICRO_BATCH}, expected {problem}")

    outcomes = []
    for size in (0, MICRO_BATCH):
        algorithm = subject.trained(exact=True)
        algorithm.hparams["micro_batch"] = size
        with float64():
            measured = take_step(algorithm, 7, minibatches(7, torch.float64))
        draw = {"a random number after the step": torch.rand(())}
        outcomes.append({**measured, **gradients_of(algorithm), **draw})
    require_same(f"in micro-batches of {MICRO_BATCH}", outcomes[1], outcomes[0])


def several_processes(subject: Subject) -> None:
    """Several processes, each with a slice of the batch, take the whole batch's steps."""
    skip_if(without_resuming())
    skip_if(subject.start().indivisible())
    outcomes = processes.train_in_group(subject), processes.train_whole(subject)
    require_same(f"by {processes.SIZE} processes", *outcomes)


def records(subject: Subject) -> None:
    """Each step returns what `loss` has measured, over the whole batch, however it is called."""
    algorithm = subject.trained()
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
    require_same("update returns what loss has measured", recorded, measured, FLOAT32_TOLERANCE)

    images, labels = zip(*batches)
    for call in (
        lambda algorithm: algorithm.update(batches, unlabeled=None),
        lambda algorithm: algorithm.update(x=images, y=labels),
        lambda algorithm: algorithm.step_on_device(batches),
    ):
        copied = subject.trained()
        torch.manual_seed(7)
        require_same("another call of the step", call(copied), values, FLOAT32_TOLERANCE)


# Saved states


def resume(subject: Subject) -> None:
    """Training resumed from a saved state, in a new instance, gives the same bits."""
    skip_if(without_resuming())
    from domainbed.lib import algorithm_state

    uninterrupted = subject.start()
    structure = algorithm_state.structure(uninterrupted)
    steps = range(uninterrupted.lp_steps + 3)
    stored = {}
    measured = {}
    for step in steps:
        if step in (1, steps[-1]):
            stored[step] = written_and_read(algorithm_state.capture(uninterrupted, structure))
        measured[step] = take_step(uninterrupted, step, minibatches(step))

    for stop, state in stored.items():
        resumed = subject.build(seed=1)
        algorithm_state.restore(resumed, state)
        name = f"resumed after {stop} of {len(steps)} steps"
        for step in steps[stop:]:
            values = take_step(resumed, step, minibatches(step))
            require_same(f"{name}, step {step + 1}", values, measured[step], tolerance=0.0)
        require_same(name, resumed.state_dict(), uninterrupted.state_dict(), tolerance=0.0)
        logits, expected = (predictions(a, target_images()) for a in (resumed, uninterrupted))
        require_same(f"{name}: a logit", logits, expected, tolerance=0.0)


def state_dict(subject: Subject) -> None:
    """A new instance that loads the state dict from a file makes the same predictions."""
    algorithm = subject.trained()
    state = written_and_read(algorithm.state_dict())
    restored = subject.build(seed=1)
    differing = sorted(state.keys() ^ restored.state_dict().keys())
    require(not differing, f"training changes which names the state dict has: {differing}")

    restored.load_state_dict(state)
    restored.eval()
    logits = restored(target_images())
    require_same("a logit", logits, predictions(algorithm, target_images()), FLOAT32_TOLERANCE)


# On a device


def device(subject: Subject) -> None:
    """Steps and predictions on a device equal those on the CPU, and no operation mixes the two."""
    skip_if(stand_in_device.unsupported())
    algorithm, expected_algorithm = (subject.start(exact=True) for _ in range(2))
    images = target_images(torch.float64)
    with float64(), stand_in_device.installed() as stand_in:
        algorithm.to(stand_in)
        for seed in range(algorithm.lp_steps + 2):
            batches = minibatches(seed, torch.float64)
            expected = take_step(expected_algorithm, seed, batches)
            values = take_step(algorithm, seed, moved(batches, stand_in))
            require_same("on the device", values, expected)
        logits = predictions(algorithm, images.to(stand_in))
        require(logits.device.type == stand_in.type, "predictions are not on the device")
        require_same("a logit on the device", logits, predictions(expected_algorithm, images))


def device_state(subject: Subject) -> None:
    """A state saved on a device can be resumed on the CPU, and the reverse."""
    skip_if(without_resuming() or stand_in_device.unsupported())
    from domainbed.lib import algorithm_state

    start = subject.start(exact=True)
    first, second = (minibatches(seed, torch.float64) for seed in (1, 2))
    measured = []
    with stand_in_device.installed() as stand_in:
        cpu = devices.CPU
        for places in ((cpu, cpu), (cpu, stand_in), (stand_in, cpu)):
            saved, resumed = (copy.deepcopy(start).to(place) for place in places)
            with float64():
                structure = algorithm_state.structure(saved)
                take_step(saved, 1, moved(first, places[0]))
                state = algorithm_state.capture(saved, structure)
            algorithm_state.restore(resumed, written_and_read(state))
            with float64():
                measured.append(take_step(resumed, 2, moved(second, places[1])))
            name = f"saved on {places[0].type}, resumed on {places[1].type}"
            require_same(name, measured[-1], measured[0])


def waits(subject: Subject) -> None:
    """A step makes the CPU wait for the device once, where `update` reads what it measured."""
    skip_if(stand_in_device.unsupported())
    algorithm = subject.start()
    with stand_in_device.installed() as stand_in:
        algorithm.to(stand_in)
        for seed in range(algorithm.lp_steps + 2):
            batches = moved(minibatches(seed), stand_in)
            with stand_in_device.recorded_waits() as operations:
                algorithm.update(batches)
            found = ", ".join(operations) or "no operation"
            is_once = len(operations) == 1 or seed == 0  # which makes the optimizer's state
            require(is_once, f"update waits for the device in {found}, expected one wait")


# Predictions


def rest_of_batch(subject: Subject) -> None:
    """The prediction of an image does not depend on the other images of its batch."""
    algorithm = subject.trained(exact=True)
    images = target_images(torch.float64)
    with float64():
        logits = predictions(algorithm, images)
        alone = torch.cat([predictions(algorithm, image[None]) for image in images])
    require_same("a logit of an image alone", alone, logits)


def require_same_training(
    name: str,
    algorithm: CLIPAlgorithm,
    other: CLIPAlgorithm,
    rearrange: Callable[[Any], Any],
    classes: Any = slice(None),
    tolerance: float = TOLERANCE,
) -> None:
    """Raise unless an algorithm trains as another does on rearranged minibatches, in float64.

    ``classes``: the numbers that the classes of the first have in the other.
    """
    images = target_images(torch.float64)
    steps = [minibatches(seed, torch.float64) for seed in range(algorithm.lp_steps + 2)]
    with float64(constant_draws=True):
        for seed, batches in enumerate(steps):
            expected = take_step(algorithm, seed, batches)
            require_same(name, take_step(other, seed, rearrange(batches)), expected, tolerance)
        logits = predictions(other, images)[:, classes]
        require_same(f"{name}: a logit", logits, predictions(algorithm, images), tolerance)


def domain_order(subject: Subject) -> None:
    """The order of the domains in a step changes neither predictions nor measurements."""
    algorithms = subject.start(exact=True), subject.start(exact=True)
    require_same_training("with the domains in reverse order", *algorithms, lambda b: b[::-1])


def class_order(subject: Subject) -> None:
    """Classes in another order have the same predictions, in that order."""
    is_random = subject.hparams["head_init"] == "random"
    skip_if("head_init is 'random', by which classes start differently" if is_random else "")
    names = subject.hparams["class_names"]
    numbers = torch.arange(len(names)).roll(1)  # of the classes, in the other order
    other = subject.build_exact(class_names=[names[n] for n in numbers.argsort()])
    require_same_training(
        "with the classes in another order",
        subject.start(exact=True),
        other,
        lambda batches: [(x, numbers[y]) for x, y in batches],
        classes=numbers,
        tolerance=FLOAT32_TOLERANCE,
    )


# What must make no difference


def zero_weight(subject: Subject) -> None:
    """A method with its weights at 0 trains as the class that it derives from."""
    declared = declared_hparams(subject.algorithm_class)
    weights = {n: 0.0 for n, h in declared.items() if n.endswith("_weight") and h.valid(0.0)}
    skip_if("" if weights else "it declares no hyperparameter NAME_weight that can be 0")

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
    name = f"{', '.join(f'{weight} 0' for weight in weights)} against {title}: loss"
    for seed in range(algorithms[0].lp_steps + 3):
        batches = minibatches(seed, torch.float64)
        with float64():
            losses = [take_step(algorithm, seed, batches)["loss"] for algorithm in algorithms]
        require_same(name, *losses)


def declared_hparams(algorithm_class: type[CLIPAlgorithm]) -> dict[str, hparams.Hparam]:
    """Name -> hyperparameter that a class or one that it derives from declares."""
    declarations = (vars(base).get("HPARAMS", ()) for base in algorithm_class.__mro__)
    return {hparam.name: hparam for hparam in itertools.chain.from_iterable(declarations)}


class _Untouchable(Tensor):
    """An image of the target, with which nothing may be done in training."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"update uses images of the target, in {func.__name__}")


def target(subject: Subject) -> None:
    """No image of the target changes the training, and no label of a test image reaches it."""
    outcomes = []
    for is_evaluated in (False, True):
        algorithm = subject.trained()
        unlabeled = [target_images().as_subclass(_Untouchable) for _ in range(DOMAINS)]
        torch.manual_seed(7)
        if is_evaluated:
            logits, again = (predictions(algorithm, target_images()) for _ in range(2))
            require_same("a logit of an image that is predicted again", again, logits, 0.0)
        measured = algorithm.update(minibatches(7), unlabeled)
        draw = {"a random number after the step": torch.rand(())}
        outcomes.append({**measured, **algorithm.state_dict(), **draw})
    require_same("after predicting images of the target", outcomes[1], outcomes[0], 0.0)


# Hyperparameters


def require_valid(subject: Subject, dataset: str, random_seed: int | None) -> None:
    """Raise unless the defaults, or a draw, can be the hyperparameters of a job."""
    hparams_by_name = subject.algorithm_class.hparams_by_name()
    conditions = hparams.Conditions(dataset)
    values, repeated_values = (
        hparams.get_values(hparams_by_name, conditions, random_seed) for _ in range(2)
    )
    kind = "default" if random_seed is None else f"draw of seed {random_seed}"
    for name, value in values.items():
        is_plain = type(value) in (int, float, bool, str)
        repeated = repeated_values[name]
        is_same = is_plain and json.loads(json.dumps(value)) == value == repeated
        require(is_same, f"the {kind} of {name} for {dataset} is {value!r}, then {repeated!r}")
    problems = hparam_checks.job_problems(subject.algorithm_class, SHAPE, values)
    require(not problems, f"a {kind} for {dataset}: {'; '.join(map(str, problems))}")


def default_hparams(subject: Subject) -> None:
    """The defaults for every dataset are valid numbers and texts, which JSON does not change."""
    for dataset in DATASETS:
        require_valid(subject, dataset, random_seed=None)


def drawn_hparams(subject: Subject) -> None:
    """What a random search draws is valid, and the same for the same seed."""
    for dataset, seed in itertools.product(DRAWN_DATASETS, range(DRAWS)):
        require_valid(subject, dataset, seed)


def wrong_hparams(subject: Subject) -> None:
    """Each hyperparameter refuses what cannot be its value, by a problem that names it."""
    hparams_by_name = subject.algorithm_class.hparams_by_name()
    for (name, hparam), value in itertools.product(hparams_by_name.items(), WRONG_VALUES):
        require(not hparam.valid(value), f"{name} = {value!r} is valid, expected a refusal")
    for name in declared_hparams(subject.algorithm_class):
        problems = [*map(str, subject.algorithm_class.hparam_problems(DATASET, {name: None}))]
        is_named = any(problem.startswith(f"{name} is None") for problem in problems)
        require(is_named, f"the problems of {name} = None are {problems}")


CHECKS: dict[str, Callable[[Subject], None]] = {
    "four-arguments": four_arguments,
    "gradients": gradients,
    "micro-batches": micro_batches,
    "processes": several_processes,
    "records": records,
    "resume": resume,
    "state-dict": state_dict,
    "device": device,
    "device-state": device_state,
    "waits": waits,
    "rest-of-batch": rest_of_batch,
    "domain-order": domain_order,
    "class-order": class_order,
    "zero-weight": zero_weight,
    "target": target,
    "default-hparams": default_hparams,
    "drawn-hparams": drawn_hparams,
    "wrong-hparams": wrong_hparams,
}
