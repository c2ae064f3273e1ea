"""The properties of every method, a function each: it returns, or raises what is wrong.

A property that does not apply raises `Inapplicable` with the reason. `CHECKS` has all by name.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
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
    minibatches,
    moved,
    take_step,
)
from domainbed_carft.data.benchmarks import BENCHMARKS
from domainbed_carft.machine import devices, stand_in_device
from domainbed_carft.method import hparam_checks, hparams
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.host_lookup import in_our_harness

TOLERANCE = 1e-6  # of float64, in which rounding is a millionth of it
TEXT_TOLERANCE = 1e-3  # of what depends on text features, which are computed in float32
FINITE_DIFFERENCE = 1e-6  # the length of a step along a direction
DIFFERENCE_TOLERANCE = 1e-4
TARGET_SEED = 99  # of images that are trained on by no check
DATASETS = (DATASET, "Debug28", *BENCHMARKS, "ImageNet", "DTD")
DRAWS = 5
WRONG_VALUES: tuple[Any, ...] = (None, math.nan, math.inf, {})


# Comparing


def require(condition: bool, message: str) -> None:
    """Raise an AssertionError with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def require_close(
    name: str, actual: Tensor, expected: Tensor, tolerance: float = TOLERANCE
) -> None:
    """Raise unless tensors are equal up to a share of the largest element; 0 is to the bit."""
    actual, expected = actual.detach().cpu(), expected.detach().cpu()
    if actual.shape != expected.shape:
        raise AssertionError(
            f"{name} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        )
    if torch.equal(actual, expected):
        return
    gaps = (actual.double() - expected.double()).abs()
    if not gaps.max() <= tolerance * expected.double().abs().max():
        place = tuple(int(index) for index in (gaps == gaps.max()).nonzero()[:1].flatten())
        raise AssertionError(
            f"{name} is {actual[place].item():.9g}, expected {expected[place].item():.9g}"
            + (f" (at {list(place)}, where they differ most)" if place else "")
        )


def require_same_numbers(
    name: str,
    actual: Mapping[str, float],
    expected: Mapping[str, float],
    tolerance: float = TOLERANCE,
) -> None:
    """Raise unless two steps have measured the same."""
    if actual.keys() != expected.keys():
        raise AssertionError(f"{name}: measured {sorted(actual)}, expected {sorted(expected)}")
    for key, value in expected.items():
        actual_value = torch.tensor(actual[key], dtype=torch.float64)
        expected_value = torch.tensor(value, dtype=torch.float64)
        scale = max(1.0, abs(value)) / max(abs(value), 1e-300)  # a loss of 0 has rounding, too
        require_close(f"{name}: {key}", actual_value, expected_value, tolerance * scale)


def require_same_tensors(
    name: str,
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    tolerance: float = 0.0,
) -> None:
    """Raise unless two state dicts are equal."""
    differing = sorted(actual.keys() ^ expected.keys())
    require(not differing, f"{name}: only one of two state dicts has {differing}")
    for key, tensor in expected.items():
        require_close(f"{name}: {key}", actual[key], tensor, tolerance)


def predictions(algorithm: CLIPAlgorithm, images: Tensor) -> Tensor:
    """Predict images as an evaluation does, and return to training."""
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(images)
    algorithm.train()
    return logits


def target_images(dtype: torch.dtype = torch.float32) -> Tensor:
    """Images of an environment that is left out."""
    return minibatches(TARGET_SEED, dtype)[0][0]


def written_and_read(state: Any) -> Any:
    """A state through a file, of which nothing is run."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def require_training(algorithm: CLIPAlgorithm) -> None:
    """Raise Inapplicable for a method that trains nothing."""
    if not any(parameter.requires_grad for parameter in algorithm.parameters()):
        raise Inapplicable("it trains nothing")


def require_our_harness() -> None:
    """Raise Inapplicable in a checkout, whose jobs cannot be resumed."""
    if not in_our_harness():
        raise Inapplicable("the domainbed in use is a checkout, which does not resume jobs")


# Building


class _BareMapping(Mapping[str, Any]):
    """The hparams of a host that has a type of its own for them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def four_arguments(subject: Subject) -> None:
    """It builds from four arguments, with any mapping, which it does not change."""
    values = copy.deepcopy(subject.hparams)
    torch.manual_seed(0)
    generator = torch.get_rng_state()
    expected = subject.build_with(values).state_dict()
    require(
        torch.equal(torch.get_rng_state(), generator),
        "building draws from torch's global generator",
    )
    require(values == subject.hparams, "building changes the hparams that it is given")

    for mapping in (MappingProxyType(values), _BareMapping(values)):
        algorithm = subject.build_with(mapping)
        kind = type(mapping).__name__
        require_same_tensors(f"built from a {kind}", algorithm.state_dict(), expected)
    shape = tuple(predictions(algorithm, target_images()).shape)
    require(shape == (IMAGES, len(CLASS_NAMES)), f"predict returns {shape}, expected (N, classes)")


# Steps


def gradients(subject: Subject) -> None:
    """The gradients of the loss are its derivatives, by central differences in float64."""
    start = subject.trained(exact=True)
    require_training(start)
    with float64():
        batches = minibatches(7, torch.float64)

        def loss_along(directions: Mapping[str, Tensor], length: float) -> float:
            algorithm = copy.deepcopy(start)
            with torch.no_grad():
                for name, parameter in algorithm.named_parameters():
                    if name in directions:
                        parameter.add_(directions[name], alpha=length)
            return take_step(algorithm, 7, batches)["loss"]

        stepped = copy.deepcopy(start)
        take_step(stepped, 7, batches)
        trained = {name: p for name, p in stepped.named_parameters() if p.requires_grad}
        for part, names in itertools.groupby(sorted(trained), lambda name: name.split(".")[0]):
            directions = {name: torch.randn_like(trained[name]) for name in names}
            norm = torch.stack([d.square().sum() for d in directions.values()]).sum().sqrt()
            directions = {name: direction / norm for name, direction in directions.items()}
            derivative = sum(
                float((trained[name].grad * direction).sum())
                for name, direction in directions.items()
                if trained[name].grad is not None
            )
            ahead, behind = (
                loss_along(directions, sign * FINITE_DIFFERENCE) for sign in (1.0, -1.0)
            )
            expected = (ahead - behind) / (2 * FINITE_DIFFERENCE)
            require_close(
                f"the derivative of the loss along a direction of {part}",
                torch.tensor(derivative),
                torch.tensor(expected),
                DIFFERENCE_TOLERANCE,
            )


def micro_batches(subject: Subject) -> None:
    """Micro-batches give the gradients, measurements and random draws of the whole batch."""
    divided = {**subject.hparams, "micro_batch": MICRO_BATCH}
    problem = subject.algorithm_class.conflicts(divided).get("micro_batch")
    if problem:
        raise Inapplicable(f"micro_batch is {MICRO_BATCH}, expected {problem}")

    at_once, in_parts = (subject.trained(exact=True) for _ in range(2))
    at_once.hparams["micro_batch"] = 0
    in_parts.hparams["micro_batch"] = MICRO_BATCH
    measured = []
    generators = []
    with float64():
        for algorithm in (at_once, in_parts):
            measured.append(take_step(algorithm, 7, minibatches(7, torch.float64)))
            generators.append(torch.get_rng_state())
        require_same_numbers("in micro-batches", measured[1], measured[0])
        require_same_tensors(
            "the gradient in micro-batches",
            gradients_of(in_parts),
            gradients_of(at_once),
            TOLERANCE,
        )
        require(
            torch.equal(*generators),
            "micro-batches draw other random numbers than the whole batch; use batch.draw_once",
        )


def gradients_of(algorithm: CLIPAlgorithm) -> dict[str, Tensor]:
    """Name -> gradient of the last step."""
    return {name: p.grad for name, p in algorithm.named_parameters() if p.grad is not None}


def several_processes(subject: Subject) -> None:
    """Several processes, each with a slice of the batch, take the whole batch's steps."""
    require_our_harness()
    reason = subject.start(exact=True).indivisible()
    if reason:
        raise Inapplicable(reason)
    measured, state = processes.train_whole(subject)
    measured_by_group, state_of_group = processes.train_in_group(subject)
    for step, (actual, expected) in enumerate(zip(measured_by_group, measured, strict=True)):
        require_same_numbers(f"step {step} of {processes.SIZE} processes", actual, expected)
    require_same_tensors(f"{processes.SIZE} processes", state_of_group, state, TOLERANCE)


def records(subject: Subject) -> None:
    """Each step returns what `loss` has measured, over the whole batch, however it is called."""
    start = subject.trained()
    batches = minibatches(7)
    algorithm = copy.deepcopy(start)
    loss = algorithm.loss
    measured: dict[str, float] = {}

    def observed_loss(batch: Any) -> dict[str, Tensor]:
        values = loss(batch)
        measured.update({name: float(value.detach()) for name, value in values.items()})
        return values

    algorithm.loss = observed_loss  # type: ignore[method-assign]
    values = take_step(algorithm, 7, batches)
    for name, value in values.items():
        is_finite = type(value) is float and math.isfinite(value)
        require(is_finite, f"update returns {name} = {value!r}, expected a finite float")
    require("loss" in values, f"update returns {sorted(values)}, expected also 'loss'")

    if algorithm.terms and measured:
        for name, weight in algorithm.terms.weights.items():
            measured["loss"] += weight * values[f"loss_{name}"]
    recorded = {name: values.get(name, math.nan) for name in measured}
    require_same_numbers("update", recorded, measured)

    images, labels = zip(*batches)
    calls: dict[str, Callable[[CLIPAlgorithm], Any]] = {
        "update(minibatches, unlabeled=None)": lambda a: a.update(batches, unlabeled=None),
        "update(x=..., y=...)": lambda a: a.update(x=images, y=labels),
        "step_on_device": lambda a: {n: float(v) for n, v in a.step_on_device(batches).items()},
    }
    for call, step in calls.items():
        torch.manual_seed(7)
        require_same_numbers(call, step(copy.deepcopy(start)), values, tolerance=0.0)


# Saved states


def resume(subject: Subject) -> None:
    """A state that is saved in the middle goes on, in a newly built one, to the same bits."""
    require_our_harness()
    from domainbed.lib import algorithm_state

    uninterrupted = subject.start()
    structure = algorithm_state.structure(uninterrupted)
    steps = uninterrupted.lp_steps + 3
    stops = {1, steps - 1}
    stored = {}
    measured = []
    for step in range(steps):
        if step in stops:
            stored[step] = written_and_read(algorithm_state.capture(uninterrupted, structure))
        measured.append(take_step(uninterrupted, step, minibatches(step)))

    for stop, state in stored.items():
        resumed = subject.build(seed=1)
        algorithm_state.restore(resumed, state)
        name = f"resumed after step {stop}"
        for step in range(stop, steps):
            values = take_step(resumed, step, minibatches(step))
            require_same_numbers(f"{name}, step {step + 1}", values, measured[step], tolerance=0.0)
        require_same_tensors(name, resumed.state_dict(), uninterrupted.state_dict())
        require_same_predictions(name, resumed, uninterrupted)


def require_same_predictions(name: str, actual: CLIPAlgorithm, expected: CLIPAlgorithm) -> None:
    """Raise unless two algorithms predict the same bits."""
    logits, expected_logits = (predictions(a, target_images()) for a in (actual, expected))
    require_close(f"{name}: a logit", logits, expected_logits, tolerance=0.0)


def state_dict(subject: Subject) -> None:
    """Its state dict, through a file, predicts the same in a newly built one."""
    algorithm = subject.trained()
    state = written_and_read(algorithm.state_dict())
    restored = subject.build(seed=1)
    differing = sorted(state.keys() ^ restored.state_dict().keys())
    require(not differing, f"training changes which names the state dict has: {differing}")

    restored.load_state_dict(state)
    restored.eval()
    with torch.no_grad():
        logits = restored(target_images())
    require_close("a logit", logits, predictions(algorithm, target_images()), tolerance=0.0)


# On a device


def require_stand_in() -> None:
    """Raise Inapplicable where there is no stand-in device."""
    reason = stand_in_device.unsupported()
    if reason:
        raise Inapplicable(reason)


def device(subject: Subject) -> None:
    """Steps and predictions on a device are those of the CPU, and nothing mixes the two."""
    require_stand_in()
    algorithm, expected_algorithm = (subject.start(exact=True) for _ in range(2))
    images = target_images(torch.float64)
    with float64(), stand_in_device.installed() as stand_in:
        algorithm.to(stand_in)
        for seed in range(algorithm.lp_steps + 2):
            batches = minibatches(seed, torch.float64)
            expected = take_step(expected_algorithm, seed, batches)
            values = take_step(algorithm, seed, moved(batches, stand_in))
            require_same_numbers("on the device", values, expected)
        logits = predictions(algorithm, images.to(stand_in))
        require(logits.device.type == stand_in.type, "predictions are not on the device")
        expected_logits = predictions(expected_algorithm, images)
        require_close("a logit on the device", logits, expected_logits)


def device_state(subject: Subject) -> None:
    """A state that is saved on a device goes on on the CPU, and the other way round."""
    require_our_harness()
    require_stand_in()
    from domainbed.lib import algorithm_state

    start = subject.start(exact=True)
    with float64():
        structure = algorithm_state.structure(start)
    before, after = (minibatches(seed, torch.float64) for seed in (1, 2))
    measured = {}
    with stand_in_device.installed() as stand_in:
        for place, next_place in (
            (devices.CPU,) * 2,
            (stand_in, devices.CPU),
            (devices.CPU, stand_in),
        ):
            saved = copy.deepcopy(start).to(place)
            with float64():
                take_step(saved, 1, moved(before, place))
                state = algorithm_state.capture(saved, structure)
            resumed = copy.deepcopy(start).to(next_place)
            algorithm_state.restore(resumed, written_and_read(state))
            name = f"saved on {place.type}, resumed on {next_place.type}"
            with float64():
                measured[name] = take_step(resumed, 2, moved(after, next_place))
    (_, expected), *others = measured.items()
    for name, values in others:
        require_same_numbers(name, values, expected)


def waits(subject: Subject) -> None:
    """A step makes the CPU wait for the device once, where `update` reads what it measured."""
    require_stand_in()
    with stand_in_device.installed() as stand_in:
        algorithm = subject.start().to(stand_in)
        take_step(
            algorithm, 0, moved(minibatches(0), stand_in)
        )  # which makes the optimizer's state
        for seed in range(1, algorithm.lp_steps + 2):
            batches = moved(minibatches(seed), stand_in)
            with stand_in_device.recorded_waits() as operations:
                algorithm.update(batches)
            found = ", ".join(operations) or "none"
            require(
                len(operations) == 1,
                f"update waits for the device {len(operations)} times ({found}), expected once, "
                "where it reads what it measured",
            )


# Predictions


def rest_of_batch(subject: Subject) -> None:
    """The prediction of an image does not depend on the other images of its batch."""
    algorithm = subject.trained(exact=True)
    images = target_images(torch.float64)
    with float64():
        logits = predictions(algorithm, images)
        alone = torch.cat([predictions(algorithm, image[None]) for image in images])
        require_close("a logit of an image alone", alone, logits)
        reverse = predictions(algorithm, images.flip(0)).flip(0)
        require_close("a logit of an image in a reversed batch", reverse, logits)


def domain_order(subject: Subject) -> None:
    """The order of the domains in a step changes neither predictions nor measurements."""
    algorithm, other = (subject.start(exact=True) for _ in range(2))
    with float64(constant_draws=True):
        for seed in range(algorithm.lp_steps + 2):
            batches = minibatches(seed, torch.float64)
            expected = take_step(algorithm, seed, batches)
            values = take_step(other, seed, batches[::-1])
            require_same_numbers("with the domains in reverse order", values, expected)
        images = target_images(torch.float64)
        logits, expected_logits = (predictions(a, images) for a in (other, algorithm))
        require_close(
            "a logit after steps on the domains in reverse order", logits, expected_logits
        )


def class_order(subject: Subject) -> None:
    """Classes in another order have the same predictions, in that order."""
    if subject.hparams["head_init"] == "random":
        raise Inapplicable("with head_init 'random' each class starts from other random weights")

    order = torch.arange(len(CLASS_NAMES)).roll(1)  # class n of the other is order[n] here
    position = order.argsort()
    names = subject.hparams["class_names"]
    algorithm = subject.start(exact=True)
    other = subject.build_exact(class_names=[names[n] for n in order])
    with float64(constant_draws=True):
        images = target_images(torch.float64)
        for seed in range(algorithm.lp_steps + 2):
            batches = minibatches(seed, torch.float64)
            values = take_step(other, seed, [(x, position[y]) for x, y in batches])
            expected = take_step(algorithm, seed, batches)
            name = "with the classes in another order"
            require_same_numbers(name, values, expected, TEXT_TOLERANCE)
        logits, expected_logits = (predictions(a, images) for a in (other, algorithm))
        require_close(f"a logit {name}", logits[:, position], expected_logits, TEXT_TOLERANCE)


# What must make no difference


def zero_weight(subject: Subject) -> None:
    """With its weights at 0 it trains as the class that it derives from."""
    weights = {
        name: 0.0
        for name, hparam in declared_hparams(subject.algorithm_class).items()
        if name.endswith("_weight") and hparam.valid(0.0)
    }
    if not weights:
        raise Inapplicable("it declares no hyperparameter NAME_weight that can be 0")

    base = next(
        parent
        for parent in subject.algorithm_class.__mro__[1:]
        if issubclass(parent, CLIPAlgorithm) and not weights.keys() & declared_hparams(parent)
    )
    plain = Subject(base, {**subject.hparams, **weights})
    algorithms = subject.build(**weights), plain.build()
    title = "plain fine-tuning" if base is CLIPAlgorithm else base.__name__
    name = f"with {', '.join(f'{weight} 0' for weight in weights)} against {title}"
    for seed in range(algorithms[0].lp_steps + 3):
        values, expected = (take_step(a, seed, minibatches(seed))["loss"] for a in algorithms)
        require_same_numbers(name, {"loss": values}, {"loss": expected})
    require_close(
        f"a logit {name}", *(predictions(algorithm, target_images()) for algorithm in algorithms)
    )


def declared_hparams(algorithm_class: type[CLIPAlgorithm]) -> dict[str, hparams.Hparam]:
    """Name -> hyperparameter that a class or one that it derives from declares."""
    return {
        hparam.name: hparam
        for base in algorithm_class.__mro__
        for hparam in vars(base).get("HPARAMS", ())
    }


class _Untouchable(Tensor):
    """An image of the target, with which nothing may be done in training."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"update uses the images of the target that it is given ({func})")


def target(subject: Subject) -> None:
    """No image of the target changes the training, and no test label reaches it."""
    start = subject.trained()
    algorithm = copy.deepcopy(start)
    unlabeled = [target_images().as_subclass(_Untouchable) for _ in range(DOMAINS)]
    torch.manual_seed(7)
    values = algorithm.update(minibatches(7), unlabeled)

    generator = torch.get_rng_state()
    logits = predictions(start, target_images())
    again = predictions(start, target_images())
    require_close("a logit of an image that is predicted again", again, logits, tolerance=0.0)
    torch.manual_seed(7)
    expected = start.update(minibatches(7))
    require_same_numbers("without predicting the target before it", values, expected, 0.0)
    require_same_tensors(
        "without predicting the target before it", algorithm.state_dict(), start.state_dict()
    )
    require(
        torch.equal(generator, torch.get_rng_state()),
        "a step draws other random numbers after images of the target are predicted",
    )


# Hyperparameters


def require_valid(subject: Subject, dataset: str, random_seed: int | None) -> None:
    """Raise unless the defaults, or a draw, can be the hyperparameters of a job."""
    algorithm_class = subject.algorithm_class
    own = algorithm_class.own_hparams()
    values, again = (
        hparams.values_of(own, hparams.Conditions(dataset), random_seed) for _ in range(2)
    )
    kind = "default" if random_seed is None else f"draw of seed {random_seed}"
    for name, value in values.items():
        place = f"the {kind} of {name} for {dataset} is {value!r}"
        is_plain = type(value) in (int, float, bool, str)
        require(is_plain, f"{place}, expected a number, a text, True or False")
        require(json.loads(json.dumps(value)) == value, f"{place}, which JSON changes")
        require(again[name] == value, f"{place}, and then {again[name]!r}")
    problems = hparam_checks.job_problems(algorithm_class, SHAPE, values)
    require(not problems, f"a {kind} for {dataset}: {'; '.join(map(str, problems))}")


def default_hparams(subject: Subject) -> None:
    """The defaults for every data set are valid."""
    for dataset in DATASETS:
        require_valid(subject, dataset, random_seed=None)


def drawn_hparams(subject: Subject) -> None:
    """What a random search draws is valid, and the same for the same seed."""
    for dataset, seed in itertools.product((DATASET, "PACS"), range(DRAWS)):
        require_valid(subject, dataset, seed)


def wrong_hparams(subject: Subject) -> None:
    """Each hyperparameter refuses what cannot be its value, by a problem that names it."""
    for name, hparam in subject.algorithm_class.own_hparams().items():
        for value in WRONG_VALUES:
            require(not hparam.valid(value), f"{name} = {value!r} is valid, expected a refusal")
    for name in declared_hparams(subject.algorithm_class):
        problems = subject.algorithm_class.hparam_problems(DATASET, {name: None})
        named = [problem for problem in problems if str(problem).startswith(f"{name} is None")]
        require(bool(named), f"the problems of {name} = None are {[*map(str, problems)]}")


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
