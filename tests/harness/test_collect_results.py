"""Records, selection rules and tables."""

import json
import multiprocessing
import os
import sys

import pytest
from domainbed import algorithms
from domainbed.lib import reporting
from domainbed.lib.query import Q
from domainbed.model_selection import SELECTION_METHODS, LeaveOneOutSelectionMethod
from domainbed.scripts import collect_results, list_top_hparams

from . import synthetic_records


@pytest.mark.parametrize("kind", synthetic_records.KINDS)
def test_selection_methods_rank_like_upstream(golden, tmp_path, kind):
    synthetic_records.write_sweep(tmp_path, kind)
    keys = ("trial_seed", "dataset", "algorithm", "test_env")
    groups = {
        tuple(group[key] for key in keys): group["records"]
        for group in reporting.get_grouped_records(reporting.load_records(str(tmp_path)))
    }
    methods = {method.name: method for method in SELECTION_METHODS}

    expected = golden(f"selections_{kind}.json")
    assert len(expected) == 3 * len(groups)
    for entry in expected:
        method = methods[entry["method"]]
        records = groups[tuple(entry[key] for key in keys)]
        ranking = [
            [chosen[0]["args"]["hparams_seed"], outcome["val_acc"], outcome["test_acc"]]
            for outcome, chosen in method.hparams_accs(records)
        ]

        assert ranking == entry["ranking"]
        assert method.sweep_acc(records) == entry["sweep_acc"]


@pytest.mark.parametrize("kind", synthetic_records.KINDS)
@pytest.mark.parametrize(("flags", "suffix"), [([], "txt"), (["--latex"], "tex")])
def test_tables_equal_upstream_to_the_byte(golden, tmp_path, capsys, kind, flags, suffix):
    synthetic_records.write_sweep(tmp_path, kind)

    assert collect_results.main(["--input_dir", str(tmp_path), *flags]) == 0

    expected = golden(f"tables_{kind}.{suffix}")
    assert capsys.readouterr().out == expected
    assert (tmp_path / f"results.{suffix}").read_text() == expected


def test_collect_results_into_closed_pipe_exits_quietly(tmp_path, capfd):
    synthetic_records.write_sweep(tmp_path, "single")
    read_end, write_end = os.pipe()
    os.close(read_end)

    def collect():
        os.dup2(write_end, 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.exit(collect_results.main(["--input_dir", str(tmp_path), "--latex"]))

    process = multiprocessing.get_context("fork").Process(target=collect)
    process.start()
    process.join()
    os.close(write_end)
    assert process.exitcode == 0
    assert "Error" not in capfd.readouterr().err
    assert (tmp_path / "results.tex").read_text().endswith("\\end{document}\n")


def test_rows_have_upstreams_order_then_order_of_appearance(capsys, monkeypatch):
    monkeypatch.setattr(algorithms, "ALGORITHMS", ["ERM", "CARFT", "CLIPZeroShot"])
    names = ("Zeta", "URM", "CLIPZeroShot", "CORAL", "CARFT", "Mixup", "Alpha", "IRM", "ERM")
    record = {f"env{i}_{part}_acc": 0.5 for i in range(3) for part in ("in", "out")} | {"step": 0}
    args = {"dataset": "Debug28", "test_envs": [0], "seed": 3, "trial_seed": 0, "hparams_seed": 0}
    records = Q([{**record, "args": {**args, "algorithm": name}} for name in names])

    collect_results.print_results_tables(records, SELECTION_METHODS[0], False)

    lines = capsys.readouterr().out.splitlines()
    order = "ERM IRM Mixup CORAL URM CARFT CLIPZeroShot Zeta Alpha"
    assert [line.split()[0] for line in lines[3:12]] == order.split()


def make_record(step=0, accuracy=0.5, test_envs=(0,), **args):
    """Return a record on Debug28 with the same accuracy on all splits."""
    accuracies = {f"env{i}_{part}_acc": accuracy for i in range(3) for part in ("in", "out")}
    names = {"dataset": "Debug28", "algorithm": "ERM", "test_envs": [*test_envs], "seed": 0}
    seeds = {"trial_seed": 0, "hparams_seed": 0}
    return {**accuracies, "step": step, "args": {**names, **seeds, **args}, "hparams": {}}


def test_averages_are_computed_in_the_order_of_the_trials(capsys):
    """Their last bit decides about the rounding here: 52.25, but 52.25000000000001 reversed."""
    accuracies = {2: 270 / 400, 1: 144 / 400, 0: 213 / 400}
    records = Q([make_record(accuracy=a, trial_seed=trial) for trial, a in accuracies.items()])
    collect_results.print_results_tables(records, SELECTION_METHODS[0], False)
    table, averages = capsys.readouterr().out.split("-------- Averages")
    assert "52.3 +/-" in table and "52.2 +/-" in averages


def test_steps_with_several_records_do_not_count_for_leave_one_out():
    pairs = [make_record(step, 0.1 + step, (0, env)) for env in (1, 2) for step in (0, 0.1)]
    records = [make_record(0, 0.3), make_record(0.1, 0.4), make_record(0.1, 0.6), *pairs]
    outcomes = [LeaveOneOutSelectionMethod.run_acc(Q(r)) for r in (records, records[:2] + pairs)]
    assert [outcome["test_acc"] for outcome in outcomes] == [0.3, 0.4]


def test_list_top_hparams_prints_trials_in_their_order(tmp_path, capsys):
    for trial in (2, 0, 1):
        folder = tmp_path / f"{2 - trial}"  # the folders are read in the order of their names
        folder.mkdir()
        line = json.dumps(make_record(trial_seed=trial, output_dir="x"))
        (folder / "results.jsonl").write_text(line + "\n")
    words = ["--dataset", "Debug28", "--algorithm", "ERM", "--test_env", "0"]
    assert list_top_hparams.main(["--input_dir", str(tmp_path), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    trials = [line for line in lines if line.startswith("trial_seed")]
    assert trials == ["trial_seed: 0", "trial_seed: 1", "trial_seed: 2"] * len(SELECTION_METHODS)


def test_list_top_hparams_prints_best_first(tmp_path, capsys):
    synthetic_records.write_sweep(tmp_path, "complete")
    group = ["--dataset", "PACS", "--algorithm", "ERM", "--test_env", "1"]

    assert list_top_hparams.main(["--input_dir", str(tmp_path), *group]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Total records: 576"
    outcomes = [float(line.split()[1].strip(",")) for line in lines[3:18] if "val_acc" in line]
    assert len(outcomes) == 3
    assert outcomes == sorted(outcomes, reverse=True)
    expected = ["\t\thparams:", lines[5], "\t\toutput_dirs:", "\t\t\tsweep/PACS/ERM"]
    assert lines[4:8] == expected


def test_names_in_records_stay_in_their_line(tmp_path, capsys):
    name = "A\nB\x1b[31m"
    accuracies = {f"env{i}_{part}_acc": 0.5 for i in range(3) for part in ("in", "out")}
    args = {"dataset": name, "test_envs": [0], "seed": 3, "trial_seed": 0, "hparams_seed": 0}
    args |= {"algorithm": name, "output_dir": name}
    record = {**accuracies, "step": 0, "args": args, "hparams": {"contexts": name}}
    record["environments"] = [name, "b", "c"]
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "results.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "job" / "done").write_text("done")

    group = ["--dataset", name, "--algorithm", name, "--test_env", "0"]
    for main, words in ((collect_results.main, []), (list_top_hparams.main, group)):
        assert main(["--input_dir", str(tmp_path), *words]) == 0
        printed = capsys.readouterr().out
        assert r"A\nB\x1b[31m" in printed and "\x1b" not in printed
        assert not any(line.startswith("B") for line in printed.splitlines())
