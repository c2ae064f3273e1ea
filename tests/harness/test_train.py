"""Training runs, in this process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from domainbed import algorithms, datasets
from domainbed.lib import preparation
from domainbed.scripts import train

from . import fakes

pytestmark = pytest.mark.usefixtures("registered")

QUICK = ["--dataset", "Debug28", "--algorithm", "LinearSGD", "--workers", "0", "--steps", "3"]


def run(folder: Path, *arguments: str) -> int:
    return train.main([*QUICK, "--output_dir", str(folder), *arguments])


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_run_leaves_what_upstreams_leaves(golden, tmp_path, capsys):
    """Same data, splits, accuracies, epochs, checkpoints, header and files, to the last bit."""
    expected = golden("train_run.json")
    arguments = [*expected["arguments"], "--workers", "0", "--output_dir", str(tmp_path)]
    assert train.main(arguments) == 0
    found = records(tmp_path)
    for record in found:
        assert isinstance(record.pop("step_time"), float)
        for ours in ("output_dir", "workers", "keep_weights", "skip_training_in_splits"):
            del record["args"][ours]
    assert found == expected["records"]
    # And the best weights, which upstream does not keep.
    files = sorted([*expected["files"], "model_best.pkl"])
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert sorted(torch.load(tmp_path / "model.pkl", weights_only=True)) == expected["model_keys"]
    printed = capsys.readouterr().out
    assert expected["header"] in printed.splitlines()
    assert (tmp_path / "out.txt").read_text() == printed
    assert (tmp_path / "done").read_text() == "done"


def test_the_printed_head_names_versions_arguments_and_hparams(tmp_path, capsys):
    assert run(tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Environment:\n\tPython: ")
    assert f"\tPyTorch: {torch.__version__}\n" in printed
    assert "\nArgs:\n\talgorithm: LinearSGD\n" in printed
    assert "\nHParams:\n\tbatch_size: 64\n" in printed


def test_an_environment_smaller_than_the_batch_trains_with_a_warning(tmp_path, capsys):
    assert run(tmp_path, "--test_envs", "1") == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "Warning" in line]
    assert len(warnings) == 2
    for warning, name in zip(warnings, ("'0'", "'2'"), strict=True):
        assert f"environment {name} has 13 items" in warning
        assert "batch size 64" in warning


@pytest.mark.parametrize("by_flag", [True, False])
def test_without_the_training_in_splits_all_else_is_the_same(tmp_path, monkeypatch, by_flag):
    """EmojiStyles, since its pictures are augmented in evaluation as upstream does it."""
    arguments = ["--dataset", "EmojiStyles", "--algorithm", "Still", "--steps", "2"]
    arguments += ["--hparams", '{"batch_size": 2}', "--test_envs", "1"]
    assert run(tmp_path / "all", *arguments) == 0
    if not by_flag:
        monkeypatch.setenv("DOMAINBED_SKIP_TRAINING_IN_SPLITS", "1")
    skip = ["--skip_training_in_splits"] if by_flag else []
    assert run(tmp_path / "some", *arguments, *skip) == 0
    for every, some in zip(records(tmp_path / "all"), records(tmp_path / "some"), strict=True):
        for index in (0, 2, 3):
            del every[f"env{index}_in_acc"]
        for record in (every, some):
            for name in ("step_time", "args"):
                record.pop(name, None)
        assert some == every and {"env1_in_acc", "env0_out_acc"} < some.keys()


def test_all_mistakes_are_told_at_once_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets, "Debug28", None)
    arguments = ["--algorithm", "LinearSDG", "--hparams", "{'lr': 1}", "--holdout_fraction", "1"]
    assert run(tmp_path, *arguments, "--dataset", "Debug82", "--workers", "-1") == 2
    message = capsys.readouterr().err
    assert message.startswith("train: 5 problems, nothing was done\n- no algorithm is called")
    for part in (
        "no algorithm is called 'LinearSDG'; did you mean LinearSGD?",
        "no data set is called 'Debug82'; did you mean Debug28",
        "--hparams is not valid JSON (",
        "--holdout_fraction must be at least 0 and less than 1, not 1.0",
        "--workers must be at least 0, not -1",
    ):
        assert part in message
    assert (tmp_path / "err.txt").read_text() == message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err.txt", "out.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--test_envs 0 3", "--test_envs 3: Debug28 has no such environment. Valid: 0 (0), 1 (1)"),
        ("--test_envs -1", "--test_envs -1: Debug28 has no such environment"),
        ("--test_envs 1 1", "--test_envs 1 1 names an environment twice"),
        ("--test_envs 0 1 2", "--test_envs 0 1 2 leaves Debug28 no environment to train on"),
        ("--seed -1", "--seed must be at least 0 and less than 4294967296, not -1"),
        (f"--seed {2**32}", f"--seed must be at least 0 and less than 4294967296, not {2**32}"),
        ("--dataset PACS", "PACS needs --data_dir, the folder that holds PACS"),
        ("--dataset PACS --data_dir /no", "PACS is not in /no/PACS; give the --data_dir"),
        ("--hparams [1]", "--hparams must be a JSON object"),
        ('--hparams {"lr":1,"lr":2}', "--hparams is not valid JSON (the key 'lr' is there twice"),
        ('--hparams {"lrr":1}', "no hyperparameter of LinearSGD is called 'lrr'; did you mean lr"),
        ('--hparams {"batch_size":0}', "batch_size must be a whole number of at least 1, not 0"),
        ('--hparams {"data_augmentation":"no"}', "data_augmentation must be true or false, not"),
        ('--hparams {"class_balanced":null}', "class_balanced must be true or false, not None"),
        ("--hparams " + "[" * 100_000, "--hparams is not valid JSON ("),
        ('--hparams {"lr":' + "1" * 5000 + "}", "--hparams is not valid JSON ("),
    ],
)
def test_each_mistake_is_one_problem_told_before_anything_is_loaded(
    tmp_path, capsys, arguments, message
):
    assert run(tmp_path, *arguments.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("train: 1 problem, nothing was done\n- ") and message in said
    assert "Traceback" not in said and len(said) < 600


def test_zero_steps_are_the_data_sets_own_and_the_help_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets.Debug28, "N_STEPS", 4)
    monkeypatch.setattr(datasets.Debug28, "CHECKPOINT_FREQ", 2)
    assert run(tmp_path, "--steps", "0", "--checkpoint_freq", "0") == 0
    assert [record["step"] for record in records(tmp_path)] == [0, 2, 3]
    with pytest.raises(SystemExit):
        train.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--steps STEPS 0, and the default: the data set's own" in said
    assert "steps between checkpoints; 0, and the default: the data set's own" in said


def test_a_failing_algorithm_leaves_its_traceback_and_no_done(tmp_path, capsys):
    assert run(tmp_path, "--algorithm", "Breaks") == 1
    last = (tmp_path / "err.txt").read_text().splitlines()[-1]
    assert last == "RuntimeError: broken on purpose"
    assert not (tmp_path / "done").exists()


def test_faulty_data_is_told_without_a_traceback(tmp_path, capsys):
    (tmp_path / "PACS" / "art").mkdir(parents=True)
    arguments = ["--dataset", "PACS", "--data_dir", str(tmp_path)]
    assert run(tmp_path / "run", *arguments) == 2
    err = capsys.readouterr().err
    assert f"one sub-folder a class, pictures in each: {tmp_path}/PACS/art (" in err
    assert "Traceback" not in err


def test_an_interrupted_run_leaves_a_line(tmp_path, monkeypatch):
    def interrupt(self, minibatches, unlabeled=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(fakes.LinearSGD, "update", interrupt)
    assert run(tmp_path) == 130
    line = "train: interrupted by Ctrl-C; the same command goes on from the last checkpoint\n"
    assert (tmp_path / "err.txt").read_text() == line
    assert not (tmp_path / "done").exists()


def test_a_signal_while_the_data_is_looked_at_stops_in_good_order(tmp_path, monkeypatch):
    def look(root):
        os.kill(os.getpid(), signal.SIGUSR1)
        return []

    monkeypatch.setattr(datasets.Debug28, "data_problems", look, raising=False)
    assert run(tmp_path) == 75
    assert not (tmp_path / "lock").exists()
    assert "stopped by SIGUSR1" in (tmp_path / "err.txt").read_text()


@pytest.mark.parametrize("way", ["whole", "stopped", "failing"])
def test_no_loaders_process_is_left_at_the_end(tmp_path, monkeypatch, way):
    def end(self, *args):
        if way == "failing":
            raise ValueError
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    if way != "whole":
        monkeypatch.setattr(fakes.LinearSGD, "update", end)
    statuses = {"whole": 0, "stopped": 75, "failing": 1}
    assert run(tmp_path, "--workers", "2") == statuses[way]
    assert not multiprocessing.active_children()


def test_data_set_and_algorithm_share_one_hparams_dict(tmp_path, monkeypatch):
    seen = []

    class Data(datasets.Debug28):
        def __init__(self, root, test_envs, hparams):
            super().__init__(root, test_envs, hparams)
            seen.append(hparams)

    class Algorithm(fakes.Still):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            seen.append(arguments[3])

    monkeypatch.setattr(datasets, "Debug28", Data)
    monkeypatch.setattr(algorithms, "Still", Algorithm)
    assert run(tmp_path, "--algorithm", "Still") == 0
    assert seen[0] is seen[1]


def test_data_with_other_environments_than_declared_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.Debug28, "__len__", lambda self: 4)
    assert run(tmp_path) == 2
    message = "Debug28 has 3 environments (0, 1, 2), but the data has 4"
    assert message in capsys.readouterr().err


def test_an_empty_split_is_refused_by_name(tmp_path, capsys):
    assert run(tmp_path, "--holdout_fraction", "0.05") == 2
    message = capsys.readouterr().err
    assert message.count("has 16 in-split and 0 out-split items") == 3
    assert "environment '2'" in message


def test_hparams_seed_draws_what_upstream_draws_for_the_trial(golden):
    draw = golden("hparams.json")["Debug28"]["random"][1]
    hparams_seed, trial_seed = map(str, draw["seeds"])
    arguments = [*QUICK, "--hparams_seed", hparams_seed, "--trial_seed", trial_seed]
    args = train.build_parser().parse_args([*arguments, "--hparams", '{"lr": 7}'])
    assert preparation.choose_hparams(args) == {**draw["hparams"], "lr": 7}


def test_learning_happens(tmp_path):
    assert run(tmp_path, "--steps", "100", "--hparams", '{"lr": 0.1}') == 0
    start, end = records(tmp_path)
    assert (start["step"], end["step"]) == (0, 99)
    assert end["loss"] < start["loss"]
    assert end["env1_in_acc"] == end["env2_in_acc"] == 1.0


def test_models_are_saved_when_asked(tmp_path):
    arguments = ["--save_model_every_checkpoint", "--checkpoint_freq", "2"]
    assert run(tmp_path / "every", *arguments) == 0
    assert run(tmp_path / "none", *arguments, "--skip_model_save") == 0
    models = {
        folder: sorted(p.name for p in (tmp_path / folder).glob("*.pkl*"))
        for folder in ("every", "none")
    }
    assert models == {
        "every": ["model.pkl", "model_best.pkl", "model_step0.pkl", "model_step2.pkl"],
        "none": [],
    }


def test_domain_adaptation_is_not_included_but_its_splits_are(tmp_path, capsys):
    assert run(tmp_path / "no", "--task", "domain_adaptation", "--steps", "-1") == 2
    said = capsys.readouterr().err
    assert "2 problems" in said and "--task domain_adaptation is not included" in said
    assert "checkout of facebookresearch/DomainBed" in said
    assert run(tmp_path, "--uda_holdout_fraction", "0.5") == 0
    assert 0 <= records(tmp_path)[-1]["env0_uda_acc"] <= 1


def test_a_cut_off_line_does_not_spoil_the_next(tmp_path):
    """A run in a folder with records appends to them, as upstream's does."""
    path = tmp_path / "results.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    assert run(tmp_path, "--steps", "1") == 0
    first, cut, record = path.read_text().splitlines()
    assert (first, cut) == ('{"step": 1}', '{"ste')
    assert json.loads(record)["step"] == 0


def test_workers_default_to_the_data_sets_number_but_not_beyond_the_cpus(monkeypatch):
    monkeypatch.setattr(preparation.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert preparation.workers_for(None, datasets.Debug28) == 3
    assert preparation.workers_for(12, datasets.Debug28) == 12
    monkeypatch.setenv("DOMAINBED_CORES", "2")
    assert preparation.workers_for(None, datasets.Debug28) == 2
    monkeypatch.setattr(datasets.Debug28, "N_WORKERS", 0)
    assert preparation.workers_for(None, datasets.Debug28) == 0
