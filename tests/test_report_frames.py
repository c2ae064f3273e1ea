"""What figures are drawn from, against DomainBed's own selection and sums by hand."""

import json
import random

import collect_sweeps
import numpy as np
import pytest
import report_page
from domainbed.lib import reporting
from domainbed.model_selection import IIDAccuracySelectionMethod

from domainbed_carft.report import frames
from domainbed_carft.results import collection

ENVIRONMENTS = 4
KEYS = ("algorithm", "test_envs", "trial_seed", "hparams_seed")
STEPS = (0, 100, 200)


def write_records(folder):
    """A complete sweep and one job that leaves two out; only CARFT's records have the drift."""
    collect_sweeps.write_sweep(folder, ["CARFT", "CLIPFineTune"], trials=3)
    collect_sweeps.write_job(folder, "pair", algorithm="CLIPFineTune", test_envs=[0, 1])
    draw = random.Random(0)
    for job in folder.glob("CARFT-*"):
        collect_sweeps.change_records(job, lambda record: record | report_page.drift(draw))
    return folder


def records_by_checkpoint(folder):
    """(algorithm, targets, trial, choice, step) -> record, read plainly."""
    return {
        (*(str(record["args"][key]) for key in KEYS), record["step"]): record
        for path in folder.glob("*/results.jsonl")
        for record in map(json.loads, path.read_text().splitlines())
    }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def runs(sweep):
    (group,) = collection.gather([sweep]).groups
    return group.runs


def test_frames_mark_the_checkpoints_that_domainbed_selects(sweep, runs):
    groups = reporting.get_grouped_records(reporting.load_records(str(sweep)))
    harness_accuracies = {
        (
            group["algorithm"],
            group["test_env"],
            group["trial_seed"],
        ): IIDAccuracySelectionMethod.sweep_acc(group["records"])
        for group in groups
    }
    records = records_by_checkpoint(sweep)
    checkpoints = frames.checkpoints(runs, "training-domain")

    assert len(checkpoints) == 2 * 3 * ENVIRONMENTS * len(STEPS)

    chosen = checkpoints[checkpoints["selected"]]
    assert len(chosen) == 2 * 3 * ENVIRONMENTS

    for row in chosen.itertuples():
        assert row.out_of_domain == harness_accuracies[row.algorithm, row.target, row.trial]
    for row in checkpoints.itertuples():
        key = (row.algorithm, f"[{row.target}]", str(row.trial))
        choices = [records[(*key, str(choice), row.step)] for choice in range(2)]
        drift = [getattr(row, name) for name in frames.DRIFT]
        values = [row.out_of_domain, *(None if np.isnan(value) else value for value in drift)]
        names = (f"env{row.target}_in_acc", *frames.DRIFT)
        training = [f"env{env}_out_acc" for env in range(ENVIRONMENTS) if env != row.target]
        assert any(
            [record.get(name) for name in names] == values
            and np.mean([record[name] for name in training]) == pytest.approx(row.in_domain)
            for record in choices
        )

    oracle = frames.checkpoints(runs, "oracle")
    assert set(oracle[oracle["selected"]]["step"]) == {STEPS[-1]}
    # Of the pairs there is but (0, 1), so that no target has all that this method needs.
    assert frames.checkpoints(runs, "leave-one-domain-out").empty


def test_means_over_targets_then_over_trials(runs):
    checkpoints = frames.checkpoints(runs, "training-domain")
    means = frames.over_targets(checkpoints, ["out_of_domain", *frames.DRIFT])
    lines = dict(frames.over_trials(means, "out_of_domain"))

    assert list(lines) == ["CARFT", "CLIPFineTune"]
    assert list(dict(frames.over_trials(means, "loss_kl"))) == ["CARFT"]

    for step in STEPS:
        rows = checkpoints[(checkpoints["algorithm"] == "CARFT") & (checkpoints["step"] == step)]
        trials = [
            rows[rows["trial"] == trial]["out_of_domain"].to_numpy().mean() for trial in range(3)
        ]
        line = lines["CARFT"].loc[step]
        expected = (np.mean(trials), np.std(trials) / 3**0.5)
        assert (line["mean"], line["error"]) == pytest.approx(expected)
