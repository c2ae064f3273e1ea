"""Tables."""

from __future__ import annotations

import os
import re

import pytest
import warm
from domainbed import algorithms
from domainbed.lib.query import Q
from domainbed.scripts import collect_results, list_top_hparams

from . import synthetic_records


@pytest.mark.parametrize("kind", synthetic_records.KINDS)
@pytest.mark.parametrize(("flags", "suffix"), [([], "txt"), (["--latex"], "tex")])
def test_tables_are_upstreams_to_the_byte(golden, tmp_path, capsys, kind, flags, suffix):
    synthetic_records.write_sweep(tmp_path, kind)
    assert collect_results.main(["--input_dir", str(tmp_path), *flags]) == 0
    expected = golden(f"tables_{kind}.{suffix}")
    assert capsys.readouterr().out == expected
    assert (tmp_path / f"results.{suffix}").read_text() == expected


def test_a_closed_pipe_ends_it_quietly(tmp_path):
    synthetic_records.write_sweep(tmp_path, "single")
    read, write = os.pipe()
    os.close(read)
    command = ["-m", "domainbed.scripts.collect_results", "--input_dir", tmp_path, "--latex"]
    done = warm.run(*command, stdout=write)
    os.close(write)
    assert done.returncode == 0 and not re.search("Error|Exception", done.stderr)
    # What nobody reads is in the file all the same.
    assert (tmp_path / "results.tex").read_text().endswith("\\end{document}\n")


def job(algorithm, dataset="Debug28", test_env=0):
    accuracies = {f"env{i}_{part}_acc": 0.5 for i in range(3) for part in ("in", "out")}
    args = {"algorithm": algorithm, "dataset": dataset, "test_envs": [test_env]}
    return {"step": 0, **accuracies, "args": {**args, "trial_seed": 0, "hparams_seed": 0}}


def test_unlisted_algorithms_come_after_the_listed_ones(capsys, monkeypatch):
    """Upstream's in the order of its own list, though they are not here; a plugin's stand last."""
    monkeypatch.setattr(algorithms, "ALGORITHMS", ["ERM", "CARFT", "CLIPZeroShot"])
    names = ("Zeta", "URM", "CLIPZeroShot", "CORAL", "CARFT", "Mixup", "Alpha", "IRM", "ERM")
    records = [job(name) for name in names]
    collect_results.print_results_tables(Q(records), collect_results.SELECTION_METHODS[0], False)
    lines = capsys.readouterr().out.splitlines()
    order = "ERM IRM Mixup CORAL URM CARFT CLIPZeroShot Zeta Alpha"
    assert [line.split()[0] for line in lines[3:12]] == order.split()


def top(folder, dataset="PACS", algorithm="ERM", test_env=1):
    arguments = ["--dataset", dataset, "--algorithm", algorithm, "--test_env", str(test_env)]
    return list_top_hparams.main(["--input_dir", str(folder), *arguments])


def test_top_hparams_are_listed_best_first(tmp_path, capsys):
    synthetic_records.write_sweep(tmp_path, "complete")
    assert top(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Total records: 576"
    assert lines[1] == "Model selection: training-domain validation set"
    assert lines[2] == "trial_seed: 0"
    outcomes = [float(line.split()[1].strip(",")) for line in lines[3:18] if "val_acc" in line]
    assert len(outcomes) == 3
    assert outcomes == sorted(outcomes, reverse=True)
    assert lines[5] in {f"\t\t\tlr: {0.1 ** (1 + seed)}" for seed in range(3)}
    assert lines[4:8] == [
        "\t\thparams:",
        lines[5],
        "\t\toutput_dirs:",
        "\t\t\tsweep/PACS/ERM",
    ]
