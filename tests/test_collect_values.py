"""Tables equal DomainBed's own collector and the golden tables, to the digit."""

import json
import lzma
from dataclasses import asdict
from pathlib import Path

import collect_sweeps
import numpy as np
import packed_records
import pandas as pd
import pytest
from domainbed.scripts import collect_results
from harness import synthetic_records

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import records
from domainbed_carft.results import collection, selection
from domainbed_carft.results.collect import collect
from domainbed_carft.results.rule_names import RULE_NAMES
from domainbed_carft.results.top import top

GOLDEN = Path(__file__).parent / "golden"
PACKS = sorted(path.name.removesuffix(".json.xz") for path in GOLDEN.glob("tables/*.json.xz"))
collect_script = collect_sweeps.load_benchmark("collect")


def find_differences(folder, printed):
    """Return the differences between our tables and the tables printed by DomainBed's collector."""
    expected = collect_script.read_printed(printed)
    methods = list(collect_script.METHODS.values())
    entries = collect(folder, select=methods).as_dict()["tables"]
    assert len(expected) >= 6
    return collect_script.differences(collect_script.read_json(entries), expected)


@pytest.mark.parametrize("kind", synthetic_records.KINDS)
def test_tables_and_rankings_equal_upstream(tmp_path, kind):
    synthetic_records.write_sweep(tmp_path, kind)
    printed = (GOLDEN / "upstream" / f"tables_{kind}.txt").read_text()
    assert find_differences(tmp_path, printed) == []

    candidates = {
        (each.trial, each.dataset, each.row, each.target): each
        for each in selection.candidates_by_target(records.read([tmp_path]).runs)
    }
    by_title = {method.title: method for method in selection.RULES.values()}
    expected = json.loads((GOLDEN / "upstream" / f"selections_{kind}.json").read_text())
    assert len(expected) == 3 * len(candidates)
    for entry in expected:
        keys = ("trial_seed", "dataset", "algorithm", "test_env")
        key = tuple(entry[name] for name in keys)
        outcomes = selection.rank_outcomes(candidates[key], by_title[entry["method"]])
        ranking = [[o.hparams_seed, o.validation, o.accuracy] for o in outcomes]
        assert ranking == entry["ranking"]  # to the bit


def write_with_gaps(folder):
    """Write a sweep without some jobs and a checkpoint, and with one job's records reversed."""
    collect_sweeps.write_sweep(folder, trials=3, choices=4, pairs=True)
    for name in ("ERM-0-1-1", "Mixup-0-1-2-3", "ERM-2-0-0"):
        (folder / name / "results.jsonl").unlink()
    path = folder / "ERM-0-1-0-0" / "results.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True)[1:])))


def write_ten_environments(folder):
    """Write ten environments, because numpy sums eight or more values in another order."""
    labels = [f"environment {number}" for number in range(10)]
    for trial in range(3):
        for targets in [[0], *([0, env] for env in range(1, 10))]:
            facts = {"test_envs": targets, "trial_seed": trial, "environments": labels}
            collect_sweeps.write_job(
                folder, f"{targets}-{trial}", dataset="SVIRO", at=range(0, 500, 20), **facts
            )


@pytest.mark.parametrize("write", [write_with_gaps, write_ten_environments])
def test_tables_equal_the_harness(tmp_path, capsys, write):
    write(tmp_path)
    assert collect_results.main(["--input_dir", str(tmp_path)]) == 0
    assert find_differences(tmp_path, capsys.readouterr().out) == []


def test_jobs_without_targets_are_averaged_over_trials(tmp_path):
    """In each trial the choice with the highest mean over out-splits at the last step.

    The record of that step is not the last line.
    """
    trials = []
    for trial in range(2):
        accuracies = []
        for choice in range(3):
            job = collect_sweeps.write_job(
                tmp_path, f"{trial}-{choice}", test_envs=[], trial_seed=trial, hparams_seed=choice
            )
            lines = (job / "results.jsonl").read_text().splitlines(keepends=True)
            last_record = json.loads(lines[-1])
            (job / "results.jsonl").write_text("".join(reversed(lines)))
            accuracies.append([last_record[f"env{env}_out_acc"] for env in range(4)])
        trials.append(max(accuracies, key=sum))

    (table,) = collect(tmp_path).tables
    (row,) = table.rows.values()
    cells = [row[column] for column in table.accuracies]
    errors = 100 * np.std(trials, axis=0) / 2**0.5
    assert [cell.mean for cell in cells] == pytest.approx(100 * np.mean(trials, axis=0))
    assert [cell.standard_error for cell in cells] == pytest.approx(errors)


@pytest.mark.parametrize(("labels", "has_value"), [("a", False), ("ab", True)])
def test_training_domain_validation_needs_another_environment(tmp_path, labels, has_value):
    collect_sweeps.write_job(tmp_path, dataset="own", environments=list(labels))
    cell = collect(tmp_path, select=["training-domain"]).tables[0].accuracy_cells[0]
    assert (cell.mean is not None) == has_value


@pytest.mark.parametrize("pack", PACKS)
def test_tables_of_packed_records_equal_the_golden_tables(pack, peers_emoji, tmp_path, monkeypatch):
    golden = json.loads(lzma.decompress((GOLDEN / "tables" / f"{pack}.json.xz").read_bytes()))
    folder = peers_emoji.parent
    if pack != peers_emoji.name:
        folder = tmp_path
        packed_records.unpack(folder, pack)
    monkeypatch.chdir(folder)  # warnings and entries contain the folders
    methods = ["training-domain", "oracle"]
    plain = collection.gather([pack], methods)
    all_columns = collect(plain, columns=["all"])
    assert collect(plain).write("csv") == golden["csv"]
    assert all_columns.write("csv") == golden["columns_csv"]
    assert [list(grid) for grid in all_columns.grids] == golden["text"]

    entries = json.loads(json.dumps([asdict(entry) for entry in top(plain).entries]))
    names = golden["top"][0].keys()
    assert [{name: entry[name] for name in names} for entry in entries] == golden["top"]

    joint = collection.gather([pack], methods, by=golden["options"]["by"])
    results = collect(joint, columns=["all"], against=golden["options"]["against"])
    content = json.loads(results.write("json"))
    del content["caption"], content["notes"]
    assert content == golden["json"]


def test_clipood_selection_equals_a_computation_by_pandas(tmp_path):
    """The last step and the target's out-split; rows by variant, means over trials and targets."""
    packed_records.unpack(tmp_path, "fresh-emoji")
    table = collect(tmp_path / "fresh-emoji", select=["clipood"], by=["variant"]).tables[0]
    lines = []
    for path in (tmp_path / "fresh-emoji").glob("*/*/results.jsonl"):
        records_of_run = map(json.loads, path.read_text().splitlines())
        record = max(records_of_run, key=lambda line: line["step"])
        algorithm = record["args"]["algorithm"]
        row = f"{algorithm} ({path.parts[-3]})" if algorithm == "CARFT" else algorithm
        (target,) = record["args"]["test_envs"]
        accuracy = 100 * record[f"env{target}_out_acc"]
        lines.append([row, target, record["args"]["trial_seed"], accuracy])
    frame = pd.DataFrame(lines, columns=["row", "target", "trial", "accuracy"])

    by_target = frame.groupby(["row", "target"])["accuracy"].mean().unstack()
    by_trial = frame.groupby(["row", "trial"])["accuracy"].mean()
    assert {*by_target.index} == {*table.rows} and len(frame) == 280
    for row, cells in table.rows.items():
        accuracies = [cells[column].mean for column in table.accuracies]
        assert accuracies == pytest.approx(by_target.loc[row].tolist())
        out_of_domain = table.get_column("out-of-domain")[row]
        assert out_of_domain.mean == pytest.approx(by_trial[row].mean())
        assert out_of_domain.standard_error == pytest.approx(by_trial[row].std(ddof=0) / 10**0.5)


def test_clipood_selection_refuses_a_choice(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], choices=2)
    with pytest.raises(CarftError, match="ERM on PACS has 2 choices of hyperparameters in trial 0"):
        collect(tmp_path, select=["clipood"])


def test_rule_names_equal_the_rules():
    assert tuple(selection.RULES) == RULE_NAMES


@pytest.mark.parametrize("rule", ["training-domain", "leave-one-domain-out"])
def test_last_checkpoint_of_swad_is_selected(tmp_path, rule):
    """The validation accuracy of the first checkpoint is the highest."""
    facts = {"choices": 1, "trials": 1, "pairs": True, "recorded": {"average": "swad"}}
    collect_sweeps.write_sweep(tmp_path, ["CARFT"], **facts)
    for path in tmp_path.iterdir():
        collect_sweeps.change_records(path, make_first_best)
    group = collection.gather([tmp_path], [rule]).groups[0]
    selected = group.select(rule)
    assert len(selected) == 4
    assert {entry.outcome.step for entry in selected} == {200}


def make_first_best(record):
    """Make all accuracies of the first record the highest ones."""
    best = {name: 1.0 for name in record if name.endswith("_acc")}
    return record | best if record["step"] == 0 else record
