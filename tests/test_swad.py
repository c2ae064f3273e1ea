"""SWAD: which segments its final mean has, what predicts, what is saved, where it is refused."""

import copy
import itertools
import json
import os
import random
import signal
from typing import NamedTuple

import collect_sweeps
import pytest
import torch
from domainbed.lib import algorithm_state, evaluation
from domainbed.scripts import train
from test_algorithms import make, minibatches, reopened
from test_peers import logits

from domainbed_carft.method.averages import LossValley
from domainbed_carft.runs import saved
from domainbed_carft.sweep import costs, declaration_file

# The loss valley


def joining(losses, converge, tolerance, ratio):
    """Which segments join the mean if training ends after these losses, told by their indices.

    Written after what the released code does, all at once instead of checkpoint by checkpoint.
    """
    count = len(losses)
    for first in range(count - converge + 1):
        window = losses[first : first + converge]
        if window[0] == min(window):
            break
    else:
        return [count - 1]
    threshold = (1 + ratio) * sum(window) / converge
    end = first + converge  # the valley begins after so many checkpoints

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


def valley_after(losses, converge=3, tolerance=6, ratio=0.3):
    """Our valley after these losses; the weights of segment i are 1 at i and 0 elsewhere."""
    valley = LossValley(converge, tolerance, ratio)
    for weights, loss in zip(torch.eye(len(losses), dtype=torch.float64), losses):
        valley.add(loss, {"w": weights})
    return valley


def shares(valley):
    """How much each segment counts."""
    return valley.chosen()["w"].tolist()


def expected_shares(losses, *settings):
    joined = joining(losses, *settings)
    return [joined.count(i) / len(joined) for i in range(len(losses))]


FALLING = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
VALLEY = [1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.35, 0.32, 0.34, 0.36]


def test_before_the_valley_the_last_segment_predicts():
    assert shares(valley_after(FALLING)) == [0.0] * 6 + [1.0]


def test_within_the_valley_all_its_segments_count():
    """The seventh checkpoint and the one before it show that the sixth has the smallest loss."""
    # The threshold is 1.3 * 0.3233 = 0.42, so only segment 4 joins from before.
    valley = valley_after(VALLEY)
    assert valley.threshold == pytest.approx(1.3 * (0.3 + 0.35 + 0.32) / 3)
    assert shares(valley)[:4] == [0.0] * 4
    assert all(share > 0 for share in shares(valley)[5:])
    assert not valley.is_dead


def test_a_dead_valley_changes_no_more():
    ended = [*VALLEY, *[0.9] * 7]
    valley = valley_after(ended)
    assert valley.is_dead
    later = valley_after([*ended, 0.1, 0.1, 0.1])
    assert shares(later)[: len(ended)] == pytest.approx(shares(valley))
    assert shares(later)[len(VALLEY) :] == [0.0] * 10


CURVES = {
    "never converged": FALLING,
    "in the valley": VALLEY,
    "dead": [*VALLEY, *[0.9] * 9],
    "converged at once": [0.1, 0.21, 0.3, 0.2, 0.12, 0.12, 0.5, 0.6],
    "converged at the end": [1.0, 0.9, 0.8, 0.7, 0.3, 0.4, 0.4],
    "one checkpoint": [0.5],
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("settings", [(3, 6, 0.3), (3, 6, 0.2), (3, 3, 0.0), (4, 2, 0.1)])
def test_the_mean_is_that_of_a_simulation_wherever_training_ends(curve, settings):
    for end in range(1, len(curve) + 1):
        losses = curve[:end]
        actual = shares(valley_after(losses, *settings))
        assert actual == pytest.approx(expected_shares(losses, *settings)), losses


def test_the_mean_is_that_of_a_simulation_on_random_curves():
    chance = random.Random(0)
    n_dead = 0
    for _ in range(300):
        length = chance.randint(1, 25)
        lowest = chance.randrange(length)
        losses = [0.2 + 0.02 * abs(i - lowest) + 0.1 * chance.random() for i in range(length)]
        settings = chance.randint(1, 5), chance.randint(1, 8), chance.choice([0, 0.1, 0.3])
        valley = valley_after(losses, *settings)
        assert shares(valley) == pytest.approx(expected_shares(losses, *settings)), losses
        n_dead += valley.is_dead
    assert 20 < n_dead < 280


# The algorithms

# Checkpoints after these numbers of steps, and the loss that is handed over there.
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
        ({}, 10),
        ({"wise_alpha": 0.3}, 10),
        ({"wise_alpha": 0.3, "lora_rank": 2, "lr": 1e-2}, 10),
    ],
)
def test_what_predicts_and_is_saved_is_swads_choice_in_float64(random_tiny, tmp_path, hparams, end):
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

    # All steps of a segment count alike, and all segments.
    means = [{n: sum(w[n] for w in s) / len(s) for n in start} for s in segments]
    joined = joining([*CHECKPOINTS.values()][: len(segments)], 2, 3, 0.3)
    assert joined == ([1] if end == 3 else [1, 2, 3, 4, 5])
    state = algorithm.state_dict()
    for name, original in start.items():
        mean = sum(means[i][name] for i in joined) / len(joined)
        expected = original + hparams.get("wise_alpha", 1.0) * (mean - original)
        torch.testing.assert_close(state[name].double(), expected, rtol=1e-5, atol=1e-7)

    for parameter, twin_parameter in zip(algorithm.parameters(), twin.parameters()):
        assert torch.equal(parameter, twin_parameter)  # what is trained knows nothing of it
    run = reopened(algorithm, tmp_path)
    assert all(torch.equal(run.algorithm.state_dict()[name], state[name]) for name in start)


@pytest.mark.parametrize("name", ["CARFT", "FLYP"])
def test_the_loss_is_that_of_the_trained_weights(random_tiny, name):
    algorithm = make(random_tiny, name, **JOB)
    twin = make(random_tiny, name)
    assert algorithm.wants_validation_loss and not twin.wants_validation_loss
    pictures = minibatches()[0][0]

    for trained in (algorithm, twin):
        for step in range(1, 4):
            torch.manual_seed(step)  # FLYP draws contexts
            trained.update(minibatches(step))
    algorithm.at_checkpoint(0.5)

    assert torch.equal(algorithm.trained_logits(pictures), twin.predict(pictures))
    assert torch.equal(twin.trained_logits(pictures), twin.predict(pictures))
    assert not torch.allclose(algorithm.predict(pictures), twin.predict(pictures), atol=1e-4)
    # Asked in either order, each has its own.
    assert torch.equal(algorithm.trained_logits(pictures), twin.predict(pictures))


def test_the_probing_phase_has_no_segments(random_tiny):
    algorithm = make(random_tiny, "CLIPLPFT", **JOB, lp_steps=4)
    twin = make(random_tiny, "CLIPLPFT", lp_steps=4)
    train_with_checkpoints(algorithm, range(1, 5))
    train_with_checkpoints(twin, range(1, 5))
    assert torch.equal(logits(algorithm), logits(twin))

    train_with_checkpoints(algorithm, [5])  # the first segment has this one step
    twin.update(minibatches(5))
    assert torch.equal(logits(algorithm), logits(twin))


RESUMED = {**JOB, "wise_alpha": 0.4}


@pytest.fixture(scope="module")
def undisturbed(random_tiny):
    """An algorithm that has taken ten steps without a stop."""
    algorithm = make(random_tiny, **RESUMED)
    train_with_checkpoints(algorithm, range(1, 11))
    return algorithm


@pytest.mark.parametrize("stop", [2, 3, 6, 9])
def test_a_resumed_run_is_the_same_to_the_bit(random_tiny, undisturbed, stop):
    """Also where it stops after the loss was handed over, and gets it once more."""
    stopped = make(random_tiny, **RESUMED)
    structure = algorithm_state.structure(stopped)
    train_with_checkpoints(stopped, range(1, stop + 1))
    state = copy.deepcopy(algorithm_state.capture(stopped, structure))
    resumed = make(random_tiny, **RESUMED)
    algorithm_state.restore(resumed, state)
    assert torch.equal(logits(resumed), logits(stopped))
    if stop in CHECKPOINTS:
        resumed.at_checkpoint(CHECKPOINTS[stop])
    train_with_checkpoints(resumed, range(stop + 1, 11))

    expected = undisturbed.state_dict()
    actual = resumed.state_dict()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    for one, other in zip(resumed.parameters(), undisturbed.parameters()):
        assert torch.equal(one, other)


def test_a_job_stopped_in_an_evaluation_ends_as_one_that_was_not(
    random_tiny, tmp_path, monkeypatch
):
    """Weights and records, to the bit; the signal comes once the loss was handed over."""
    hparams = {**JOB, "clip_backbone": str(random_tiny), "lr": 1e-3, "warmup_steps": 0}
    words = "--algorithm CARFT --dataset Debug28 --workers 0 --steps 9 --checkpoint_freq 2".split()
    words += ["--hparams", json.dumps({**hparams, "batch_size": 4, "total_steps": 9})]
    assert train.main([*words, "--output_dir", str(tmp_path / "whole")]) == 0

    accuracies = evaluation.Evaluator.accuracies
    calls = itertools.count(1)

    def stop_in_the_third(evaluator):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return accuracies(evaluator)

    monkeypatch.setattr(evaluation.Evaluator, "accuracies", stop_in_the_third)
    command = [*words, "--output_dir", str(tmp_path / "stopped")]
    assert train.main(command) == 75
    state = torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)
    assert len(state["algorithm"]["attributes"]["predicting"]["valley"]["latest"]) == 3
    assert train.main(command) == 0

    stopped, whole = (job_outcome(tmp_path / name) for name in ("stopped", "whole"))
    assert stopped.accuracies == whole.accuracies and len(whole.accuracies) == 5
    assert all(torch.equal(stopped.weights[name], whole.weights[name]) for name in whole.weights)
    best = torch.load(tmp_path / "whole" / "model_best.pkl", weights_only=True)
    assert best["best_step"] == 8


class JobOutcome(NamedTuple):
    """What a job has left: each record's accuracies, and the weights that predict."""

    accuracies: list[dict[str, float]]
    weights: dict[str, torch.Tensor]


def job_outcome(folder):
    lines = (folder / "results.jsonl").read_text().splitlines()
    return JobOutcome(
        accuracies=[
            {name: value for name, value in json.loads(line).items() if name.endswith("_acc")}
            for line in lines
        ],
        weights=torch.load(folder / "model.pkl", weights_only=True)["model_dict"],
    )


def test_a_constant_algorithm_needs_no_validation_loss(random_tiny):
    assert not make(random_tiny, "CLIPZeroShot", **JOB).wants_validation_loss


def test_a_run_of_a_host_without_its_hparams_opens(random_tiny, tmp_path):
    reopened(make(random_tiny), tmp_path)
    path = tmp_path / "model.pkl"
    content = torch.load(path, weights_only=True)
    for name in ("swad_converge", "swad_tolerance", "swad_ratio"):
        del content["model_hparams"][name]
    torch.save(content, path)
    assert saved.open_run(path).classes == ["dog", "cat", "owl"]


# Tables and costs


def test_a_dry_run_counts_the_out_splits_that_are_read_twice(tmp_path):
    def evaluated(average):
        text = f"name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\nhparams: {{average: {average}}}\n"
        declaration = declaration_file.parse(text, "x.yaml")
        job = declaration.jobs("D", tmp_path)[0]  # leaves out the first environment, of 2,048
        return costs.job_cost(job, declaration.facts["PACS"]).evaluated

    n_checkpoints = 18  # of 5,001 steps, every 300 and at the last one
    assert evaluated("swad") - evaluated("ema") == n_checkpoints * (468 + 334 + 785)


@pytest.mark.parametrize("method", ["training-domain", "leave-one-domain-out"])
def test_tables_count_the_last_record_of_swad_and_say_so(tmp_path, method):
    """Against a sweep whose only record is the last one."""
    for name in ("all", "last"):
        collect_sweeps.write_sweep(tmp_path / name, ["CARFT"], pairs=True, recorded={})
    for job in (tmp_path / "last").iterdir():
        lines = (job / "results.jsonl").read_text().splitlines(keepends=True)
        (job / "results.jsonl").write_text(lines[-1])
    plain = collect_sweeps.collect(tmp_path / "all", methods=[method])
    for job in (tmp_path / "all").iterdir():
        collect_sweeps.change_records(job, with_swad)

    document = collect_sweeps.collect(tmp_path / "all", methods=[method])
    expected = collect_sweeps.collect(tmp_path / "last", methods=[method])
    rows = [table["rows"] for table in document.as_dict()["tables"]]
    assert rows == [table["rows"] for table in expected.as_dict()["tables"]]
    assert rows != [table["rows"] for table in plain.as_dict()["tables"]]
    assert [text for text in document.all_captions if "average 'swad'" in text]
    assert not [text for text in plain.all_captions if "swad" in text]


def with_swad(record):
    return {**record, "hparams": {**record["hparams"], "average": "swad"}}
