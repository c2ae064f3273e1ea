"""SWAD: the segments of its final mean, prediction, and checkpoints."""

import random

import pytest
import torch
from helpers.algorithms import logits, make, minibatches

from domainbed_carft.method.averages import LossValley

# The loss valley


def simulate(losses, converge, tolerance, ratio):
    """Return the indices of the segments in the mean if training ends after these losses.

    Follows the released code, but all at once instead of checkpoint by checkpoint.
    """
    count = len(losses)
    for first in range(count - converge + 1):
        window = losses[first : first + converge]
        if window[0] == min(window):
            break
    else:
        return [count - 1]
    threshold = (1 + ratio) * sum(window) / converge
    end = first + converge  # number of checkpoints at which the valley begins

    joined = list(range(first + 1, first + 1 + converge - tolerance))
    if tolerance > converge:
        oldest = max(0, end - tolerance)
        earlier = list(range(oldest, min(oldest + tolerance - converge + 1, end)))
        while any(losses[i] > threshold for i in earlier):
            earlier.pop(0)
        joined = earlier[1:] if earlier else []

    for seen in range(end + 1, count + 1):
        queue = range(max(0, seen - tolerance), seen)
        if queue[0] >= first:
            if min(losses[i] for i in queue) > threshold:
                return joined or [first]  # the valley is dead
            joined.append(queue[0])

    queue = list(range(max(0, count - tolerance), count))[1:]
    while queue and min(losses[i] for i in queue) <= threshold:
        joined.append(queue.pop(0))
    return joined or [first]


def test_mean_equals_simulation_on_random_losses():
    """The weights of segment i are 1 at i and 0 elsewhere, so that their mean counts segments."""
    chance = random.Random(0)
    n_dead = 0
    for _ in range(300):
        length = chance.randint(1, 25)
        lowest = chance.randrange(length)
        losses = [0.2 + 0.02 * abs(i - lowest) + 0.1 * chance.random() for i in range(length)]
        settings = chance.randint(1, 5), chance.randint(1, 8), chance.choice([0, 0.1, 0.3])
        valley = LossValley(*settings)
        for weights, loss in zip(torch.eye(length, dtype=torch.float64), losses):
            valley.add(loss, {"w": weights})

        joined = simulate(losses, *settings)
        expected = [joined.count(i) / len(joined) for i in range(length)]
        assert valley.choose_weights()["w"].tolist() == pytest.approx(expected), losses
        n_dead += valley.is_dead
    assert 20 < n_dead < 280


# The algorithms

# Number of steps at a checkpoint -> validation loss.
CHECKPOINTS = {1: 0.9, 3: 0.5, 5: 0.6, 7: 0.7, 9: 0.6, 10: 0.55}
JOB = {"average": "swad", "swad_converge": 2, "swad_tolerance": 3}


def train_with_checkpoints(algorithm, steps):
    for step in steps:
        torch.manual_seed(step)  # LoRA draws dropout
        algorithm.update(minibatches(step))
        if step in CHECKPOINTS:
            algorithm.at_checkpoint(CHECKPOINTS[step])


@pytest.mark.parametrize(
    ("hparams", "end"),
    [
        ({}, 3),
        ({"wise_alpha": 0.3}, 10),
        ({"wise_alpha": 0.3, "lora_rank": 2, "lr": 1e-2}, 10),
    ],
)
def test_saved_weights_equal_swads_choice_in_float64(random_tiny, hparams, end):
    algorithm = make(random_tiny, **JOB, **hparams)
    twin = make(random_tiny, **hparams | {"wise_alpha": 1.0})
    names = [name for name, _ in twin.named_parameters() if not name.startswith("lora.")]
    start = {name: twin.get_parameter(name).detach().double() for name in names}
    segments = []
    segment = []
    for step in range(1, end + 1):
        train_with_checkpoints(algorithm, [step])
        torch.manual_seed(step)
        twin.update(minibatches(step))
        segment.append({name: twin.get_parameter(name).detach().double() for name in names})
        if step in CHECKPOINTS:
            segments.append(segment)
            segment = []

    # All steps of a segment have equal weight, and all segments.
    means = [{n: sum(w[n] for w in s) / len(s) for n in start} for s in segments]
    joined = simulate([*CHECKPOINTS.values()][: len(segments)], 2, 3, 0.3)
    assert joined == ([1] if end == 3 else [1, 2, 3, 4, 5])
    state = algorithm.state_dict()
    for name, original in start.items():
        mean = sum(means[i][name] for i in joined) / len(joined)
        expected = original + hparams.get("wise_alpha", 1.0) * (mean - original)
        torch.testing.assert_close(state[name].double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["CARFT", "FLYP"])
def test_trained_logits_ignore_the_average(random_tiny, name):
    algorithm = make(random_tiny, name, **JOB)
    twin = make(random_tiny, name)
    assert algorithm.uses_validation_loss and not twin.uses_validation_loss
    train_with_checkpoints(algorithm, range(1, 4))
    train_with_checkpoints(twin, range(1, 4))

    images = minibatches()[0][0]
    assert torch.equal(algorithm.trained_logits(images), twin.predict(images))
    assert torch.equal(twin.trained_logits(images), twin.predict(images))
    assert not torch.allclose(algorithm.predict(images), twin.predict(images), atol=1e-4)


def test_probing_phase_has_no_segments(random_tiny):
    algorithm = make(random_tiny, "CLIPLPFT", **JOB, lp_steps=4)
    twin = make(random_tiny, "CLIPLPFT", lp_steps=4)
    train_with_checkpoints(algorithm, range(1, 5))
    train_with_checkpoints(twin, range(1, 5))
    assert torch.equal(logits(algorithm), logits(twin))

    train_with_checkpoints(algorithm, [5])  # a segment of a single step
    twin.update(minibatches(5))
    assert torch.equal(logits(algorithm), logits(twin))


def test_repeated_checkpoint_of_a_resumed_job_changes_nothing(random_tiny):
    algorithm = make(random_tiny, **JOB)
    train_with_checkpoints(algorithm, range(1, 6))
    before = logits(algorithm)
    algorithm.at_checkpoint(CHECKPOINTS[5])
    assert torch.equal(logits(algorithm), before)
