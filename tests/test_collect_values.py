"""``carft collect`` says what DomainBed says, to the last printed digit."""

import json
from pathlib import Path

import collect_sweeps
import numpy as np
import pytest
from domainbed import datasets
from domainbed.scripts import collect_results
from harness import synthetic_records

from domainbed_carft.cli import results
from domainbed_carft.jobs import records
from domainbed_carft.results import formats, selection
from domainbed_carft.results.method_names import METHOD_NAMES

GOLDEN = Path(__file__).parent / "golden" / "upstream"
collect_script = collect_sweeps.benchmark("collect")


def our_tables(folder):
    methods = list(collect_script.METHODS.values())
    entries = collect_sweeps.collect(folder, methods=methods).as_dict()["tables"]
    return collect_script.read_json(entries)


@pytest.mark.parametrize("kind", synthetic_records.KINDS)
def test_tables_equal_upstreams(tmp_path, kind):
    synthetic_records.write_sweep(tmp_path, kind)
    expected = collect_script.read_printed((GOLDEN / f"tables_{kind}.txt").read_text())
    assert len(expected) == 9
    assert collect_script.differences(our_tables(tmp_path), expected) == []


@pytest.mark.parametrize("kind", synthetic_records.KINDS)
def test_rankings_equal_upstreams_to_the_bit(tmp_path, kind):
    synthetic_records.write_sweep(tmp_path, kind)
    candidates = {
        (of_target.trial, of_target.dataset, of_target.row, of_target.target): of_target
        for of_target in selection.candidates_by_target(records.read([tmp_path]).runs)
    }
    expected = json.loads((GOLDEN / f"selections_{kind}.json").read_text())
    by_title = {method.title: method for method in selection.METHODS.values()}

    assert len(expected) == 3 * len(candidates)

    for entry in expected:
        keys = ("trial_seed", "dataset", "algorithm", "test_env")
        outcomes = selection.ranked_outcomes(
            candidates[tuple(entry[key] for key in keys)], by_title[entry["method"]]
        )
        ranking = [
            [outcome.hparams_seed, outcome.validation, outcome.accuracy] for outcome in outcomes
        ]
        assert ranking == entry["ranking"]


def check_against_the_harness(folder, capsys):
    assert collect_results.main(["--input_dir", str(folder)]) == 0
    harness_tables = collect_script.read_printed(capsys.readouterr().out)
    assert harness_tables and collect_script.differences(our_tables(folder), harness_tables) == []


@pytest.mark.parametrize("seed", range(2))
def test_tables_equal_the_harnesss_on_other_sweeps(tmp_path, capsys, seed):
    """With jobs lacking, and with a checkpoint that only some of the jobs have."""
    collect_sweeps.write_sweep(tmp_path, trials=3, choices=4, pairs=True, seed=seed)
    for name in ("ERM-0-1-1", "Mixup-0-1-2-3", "ERM-2-0-0"):
        (tmp_path / name / "results.jsonl").unlink()
    path = tmp_path / "ERM-0-1-0-0" / "results.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True)[1:])))
    check_against_the_harness(tmp_path, capsys)


def test_ten_environments_are_summed_in_numpys_order(tmp_path, capsys):
    """From eight on, numpy sums a list in another order than from left to right."""
    labels = list(datasets.SVIRO.ENVIRONMENTS)
    for trial in range(3):
        for envs in [[0], *([0, i] for i in range(1, 10))]:
            collect_sweeps.write_job(
                tmp_path,
                f"{envs}-{trial}",
                dataset="SVIRO",
                test_envs=envs,
                trial_seed=trial,
                environments=labels,
                at=range(0, 500, 20),
            )

    check_against_the_harness(tmp_path, capsys)


def test_jobs_without_targets_are_averaged_over_trials(tmp_path):
    """In each trial the choice with the highest mean over out-splits at the last step."""
    trials = []
    for trial in range(2):
        accuracies = []
        for choice in range(3):
            job = collect_sweeps.write_job(
                tmp_path, f"{trial}-{choice}", test_envs=[], trial_seed=trial, hparams_seed=choice
            )
            last_record = json.loads((job / "results.jsonl").read_text().splitlines()[-1])
            accuracies.append([last_record[f"env{i}_out_acc"] for i in range(4)])
        trials.append(max(accuracies, key=sum))

    (table,) = collect_sweeps.tables(tmp_path).values()
    cells = table["rows"][0]["cells"]
    assert [cell["mean"] for cell in cells] == pytest.approx(100 * np.mean(trials, axis=0))

    errors = 100 * np.std(trials, axis=0) / 2**0.5
    assert [cell["standard_error"] for cell in cells] == pytest.approx(errors)


def test_names_are_those_of_the_modules_that_know_them():
    assert tuple(selection.METHODS) == METHOD_NAMES
    assert tuple(formats.FORMATS) == results.FORMATS
