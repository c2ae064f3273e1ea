"""What figures are drawn from, against DomainBed's own selection and sums by hand."""

import json
import random
import shutil

import collect_sweeps
import numpy as np
import pytest
import report_page
from domainbed.lib import reporting
from domainbed.model_selection import IIDAccuracySelectionMethod

from domainbed_carft.report import frames
from domainbed_carft.results import collection, selection
from domainbed_carft.results.collect import collect

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
    checkpoints = frames.checkpoints(selection.select(runs, "training-domain"))

    assert len(checkpoints) == 2 * 3 * ENVIRONMENTS * len(STEPS)

    chosen = checkpoints[checkpoints["selected"]]
    assert len(chosen) == 2 * 3 * ENVIRONMENTS

    for row in chosen.itertuples():
        assert row.out_of_domain == 100 * harness_accuracies[row.algorithm, row.target, row.trial]
    for row in checkpoints.itertuples():
        key = (row.algorithm, f"[{row.target}]", str(row.trial))
        choices = [records[(*key, str(choice), row.step)] for choice in range(2)]
        drift = (row.loss_kl, row.context_agreement / 100)
        values = [row.out_of_domain / 100, *drift]
        names = (f"env{row.target}_in_acc", *frames.DRIFT)
        training = [f"env{env}_out_acc" for env in range(ENVIRONMENTS) if env != row.target]
        assert any(
            [record.get(name, np.nan) for name in names] == pytest.approx(values, nan_ok=True)
            and np.mean([record[name] for name in training]) == pytest.approx(row.in_domain / 100)
            for record in choices
        )

    oracle = frames.checkpoints(selection.select(runs, "oracle"))
    assert set(oracle[oracle["selected"]]["step"]) == {STEPS[-1]}
    # Of the pairs there is but (0, 1), so that no target has all that this method needs.
    assert frames.checkpoints(selection.select(runs, "leave-one-domain-out")).empty


def test_means_in_figures_are_the_tables_also_of_incomplete_rows(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["CARFT", "CLIPFineTune"], trials=3, choices=1)
    shutil.rmtree(tmp_path / "CARFT-1-2-0")
    results = collect(tmp_path, methods=["training-domain"], columns=["out-of-domain", "in-domain"])
    (group,) = results.collection.groups
    checkpoints = frames.checkpoints(group.selected("training-domain"))
    at_selection = checkpoints[checkpoints["selected"]].drop(columns="step")
    means = frames.means_of_trials(frames.over_targets(at_selection, frames.ACCURACIES))

    for row in means.itertuples():
        (cells,) = (r.printed_cells for r in results.tables[0].rows if r.algorithm == row.algorithm)
        assert [row.out_of_domain, row.in_domain] == pytest.approx([cell.mean for cell in cells])
        errors = [row.out_of_domain_error, row.in_domain_error]
        assert errors == pytest.approx([cell.standard_error for cell in cells])
        assert row.trials == 3


def test_means_over_targets_then_over_trials(runs):
    checkpoints = frames.checkpoints(selection.select(runs, "training-domain"))
    means = frames.over_targets(checkpoints, ["out_of_domain", *frames.DRIFT])
    lines = frames.over_trials(means, ["out_of_domain", "loss_kl"]).set_index(
        ["panel", "algorithm"]
    )

    assert {*lines.loc["out_of_domain"].index} == {"CARFT", "CLIPFineTune"}
    assert {*lines.loc["loss_kl"].index} == {"CARFT"}
    line = lines.loc["out_of_domain", "CARFT"].set_index("step")

    for step in STEPS:
        rows = checkpoints[(checkpoints["algorithm"] == "CARFT") & (checkpoints["step"] == step)]
        trials = [
            rows[rows["trial"] == trial]["out_of_domain"].to_numpy().mean() for trial in range(3)
        ]
        expected = (np.mean(trials), np.std(trials) / 3**0.5)
        assert tuple(line.loc[step, ["mean", "error"]]) == pytest.approx(expected)
