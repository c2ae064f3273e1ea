"""Properties that methods inherit from their base class: devices, waits, domains, processes."""

import copy
import functools

import method_processes
import pytest
import stand_in_device
import torch
from method_cases import ALL_TERMS, CASES, PARAMETERS, SLOW_CASES

from domainbed_carft.checks.arithmetic import float64
from domainbed_carft.checks.properties import (
    require_same,
    require_same_training,
    save_and_load,
)
from domainbed_carft.checks.subject import Subject, minibatches, move_batches, take_step
from domainbed_carft.machine import devices
from domainbed_carft.method.algorithms import CLASSES
from domainbed_carft.method.baselines import CLIPFineTune


@functools.cache
def get_subject(case, clip_backbone):
    name, options = CASES[case]
    return Subject(CLASSES[name], {**options, "clip_backbone": str(clip_backbone)})


# A device


def require_same_state_on_devices(subject, device):
    """Raise unless a state that is saved on a device can be resumed on the CPU, and vice versa."""
    from domainbed.lib import algorithm_state

    start = subject.get_initial(exact=True)
    first, second = (minibatches(seed, torch.float64) for seed in (1, 2))
    measured = []
    cpu = devices.CPU
    for places in ((cpu, cpu), (cpu, device), (device, cpu)):
        saved, resumed = (copy.deepcopy(start).to(place) for place in places)
        with float64():
            structure = algorithm_state.structure(saved)
            take_step(saved, 1, move_batches(first, places[0]))
            state = algorithm_state.capture(saved, structure)
        algorithm_state.restore(resumed, save_and_load(state))
        with float64():
            measured.append(take_step(resumed, 2, move_batches(second, places[1])))
        name = f"saved on {places[0].type}, resumed on {places[1].type}"
        require_same(name, measured[-1], measured[0])


def find_waits(subject, stand_in):
    """Return the operations of each step but the first in which the CPU waits for the device."""
    algorithm = subject.get_initial().to(stand_in)
    waits = []
    for seed in range(algorithm.lp_steps + 2):
        batches = move_batches(minibatches(seed), stand_in)
        with stand_in_device.record_waits() as operations:
            algorithm.update(batches)
        waits.append(operations)
    return waits[1:]  # the first step creates the optimizer's state


@pytest.mark.parametrize("case", PARAMETERS)
def test_state_saved_on_a_device_is_resumed_on_the_cpu_and_vice_versa(case, device, random_tiny):
    require_same_state_on_devices(get_subject(case, random_tiny), device)


@pytest.mark.parametrize("case", PARAMETERS)
def test_step_waits_once_for_the_device_to_read_its_measurements(case, stand_in, random_tiny):
    waits = find_waits(get_subject(case, random_tiny), stand_in)
    assert waits == [["_to_copy"]] * len(waits)


# The order of the domains


def require_same_domains(subject):
    """Raise unless predictions and measurements are independent of the domains' order in a step."""
    algorithms = subject.get_initial(exact=True), subject.get_initial(exact=True)
    require_same_training("with the domains in reverse order", *algorithms, lambda b: b[::-1])


@pytest.mark.parametrize("case", PARAMETERS)
def test_order_of_the_domains_in_a_step_does_not_matter(case, random_tiny):
    require_same_domains(get_subject(case, random_tiny))


# Several processes


TEXTS_OF_THE_BATCH = "its loss compares each image with all texts of the batch"
CAPTIONS_OF_THE_BATCH = "its KL draws captions for all images of the batch"
DROPOUT = "lora_dropout is not 0, and each process would draw it separately"
SINGLE_PROCESS_REASONS = {
    "FLYP": TEXTS_OF_THE_BATCH,
    "CaRot": TEXTS_OF_THE_BATCH,
    "flyp with swad": TEXTS_OF_THE_BATCH,
    "StarFT": CAPTIONS_OF_THE_BATCH,
    "captions": CAPTIONS_OF_THE_BATCH,
    "CLIPLoRA": DROPOUT,
    "lora": DROPOUT,
}


def require_same_in_processes(subjects):
    """Raise unless processes with slices of the batches take the same steps as one process."""
    for name, outcome in method_processes.train_in_processes(subjects).items():
        expected = method_processes.train(subjects[name])
        require_same(f"{name} in {method_processes.SIZE} processes", outcome, expected)


@pytest.mark.parametrize(
    "cases", [CASES.keys() - SLOW_CASES, pytest.param(SLOW_CASES, marks=pytest.mark.slow)]
)
def test_several_processes_train_as_one(cases, random_tiny):
    subjects = {case: get_subject(case, random_tiny) for case in cases}
    reasons = {case: s.get_initial().single_process_reason() for case, s in subjects.items()}
    assert reasons == {case: SINGLE_PROCESS_REASONS.get(case, "") for case in cases}
    require_same_in_processes({case: subjects[case] for case in cases if not reasons[case]})


@pytest.mark.parametrize(
    ("name", "hparams"),
    [("CARFT", {**ALL_TERMS, "micro_batch": 3}), ("CLIPLoRA", {"lora_dropout": 0.0})],
)
def test_several_processes_train_as_one_with_options(name, hparams, random_tiny):
    subject = Subject(CLASSES[name], {**hparams, "clip_backbone": str(random_tiny)})
    require_same_in_processes({name: subject})


# Methods with one fault each


class Direction:
    """A state that stays where it is loaded."""

    def __init__(self, size):
        self.vector = torch.ones(size)

    def state_dict(self):
        return {"vector": self.vector}

    def load_state_dict(self, state):
        self.vector = state["vector"]


class LeavesItsStateOnTheCPU(CLIPFineTune):
    def build_for_training(self, *arguments):
        super().build_for_training(*arguments)
        self.direction = Direction(self.head.in_features)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.direction.vector = fn(self.direction.vector)
        return self

    def loss(self, batch):
        losses = super().loss(batch)
        along = (batch.tuned.features @ self.direction.vector).mean()
        return {**losses, "loss": losses["loss"] + along}


def test_state_that_stays_on_the_cpu_is_reported(stand_in):
    with pytest.raises(stand_in_device.MixedDevicesError):
        require_same_state_on_devices(Subject(LeavesItsStateOnTheCPU), stand_in)


class ReadsAValue(CLIPFineTune):
    def loss(self, batch):
        losses = super().loss(batch)
        return losses if losses["loss"].item() < 1e6 else {}


def test_value_that_is_read_in_a_step_is_reported(stand_in):
    (operations,) = find_waits(Subject(ReadsAValue), stand_in)
    assert operations == ["_local_scalar_dense", "_to_copy"]


class RepeatsTheFirstDomain(CLIPFineTune):
    def step_on_device(self, minibatches):
        return super().step_on_device([minibatches[0], *minibatches])


def test_domain_that_is_used_twice_is_reported():
    with pytest.raises(AssertionError, match="with the domains in reverse order: loss is"):
        require_same_domains(Subject(RepeatsTheFirstDomain))


class KeepsItsGradients(CLIPFineTune):
    def take_step(self, x, parts):
        process_group, self.process_group = self.process_group, None
        measured = super().take_step(x, parts)
        self.process_group = process_group
        return measured


@pytest.mark.slow
def test_step_without_summed_gradients_is_reported():
    with pytest.raises(AssertionError, match="own in 2 processes: .* expected"):
        require_same_in_processes({"own": Subject(KeepsItsGradients)})
