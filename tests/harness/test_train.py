"""The command `train`, in this process."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from domainbed import datasets
from domainbed.lib import preparation, train_arguments
from domainbed.scripts import train

from domainbed_carft import machine
from domainbed_carft.jobs.hparams import get_draw_seed

from . import fakes

pytestmark = pytest.mark.usefixtures("registered")

QUICK = ["--dataset", "Debug28", "--algorithm", "LinearSGD", "--workers", "0", "--steps", "3"]


def run(folder: Path, *arguments: str) -> int:
    """Train LinearSGD for three steps, and return the exit status."""
    return train.main([*QUICK, "--output_dir", str(folder), *arguments])


def test_train_writes_upstreams_records_and_files(golden, tmp_path, capsys):
    expected = golden("train_run.json")
    arguments = [*expected["arguments"], "--workers", "0", "--output_dir", str(tmp_path)]

    assert train.main(arguments) == 0

    records = fakes.comparable_records(tmp_path)
    for record in records:
        assert record.pop("device") == machine.get_cpu_name()
        assert record.pop("trained_parameters") == 0
        for name in ("keep_weights", "skip_training_in_splits"):
            del record["args"][name]
    assert records == expected["records"]

    # Upstream does not save the best weights.
    files = sorted([*expected["files"], "model_best.pkl"])
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    content = torch.load(tmp_path / "model.pkl", weights_only=True)
    assert sorted(content) == sorted([*expected["model_keys"], "format", "training_only_names"])

    printed = capsys.readouterr().out
    assert expected["header"] in printed.splitlines()
    assert (tmp_path / "out.txt").read_text() == printed
    assert (tmp_path / "done").read_text() == "done"


def test_train_prints_changed_hyperparameters_and_warns_of_small_environments(tmp_path, capsys):
    assert run(tmp_path, "--test_envs", "1", "--hparams", '{"lr": 0.5, "batch_size": 64}') == 0

    printed = capsys.readouterr().out
    assert "HParams:\n\tlr: 0.5\n\t" in printed
    for name in ("'0'", "'2'"):
        assert f"environment {name} has 13 training items, fewer than the batch size 64" in printed


def test_skipping_training_in_splits_changes_no_other_value(images, tmp_path, monkeypatch):
    # On images: upstream augments them in evaluation as well.
    arguments = ["--dataset", str(images), "--algorithm", "Still", "--steps", "2"]
    arguments += ["--hparams", '{"batch_size": 2}', "--test_envs", "1"]
    assert run(tmp_path / "complete", *arguments) == 0

    monkeypatch.setenv("DOMAINBED_SKIP_TRAINING_IN_SPLITS", "1")
    assert run(tmp_path / "short", *arguments) == 0

    records = (fakes.comparable_records(tmp_path / name) for name in ("complete", "short"))
    for complete, short in zip(*records, strict=True):
        del complete["env0_in_acc"], complete["env2_in_acc"]
        del complete["args"], short["args"]
        assert short == complete


def test_all_problems_are_reported_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets, "Debug28", None)
    arguments = ["--algorithm", "LinearSDG", "--hparams", "{'lr': 1}", "--holdout_fraction", "1"]

    assert run(tmp_path, *arguments, "--dataset", "Debug82", "--workers", "-1") == 2

    message = capsys.readouterr().err
    assert message.startswith("train: 5 problems, nothing was done\n")
    names = ("LinearSDG", "Debug82", "--hparams", "--holdout_fraction", "--workers")
    assert not [name for name in names if name not in message]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err.txt", "out.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--test_envs 0 3", "--test_envs 3: Debug28 has no such environment. Valid numbers or na"),
        ("--test_envs 1 1", "--test_envs 1 1 names an environment twice"),
        ("--test_envs 0 1 2", "--test_envs 0 1 2 leaves no environment of Debug28 to train on"),
        ("--steps 0", "--steps must be at least 1, not 0"),
        ("--checkpoint_freq 0", "--checkpoint_freq must be at least 1, not 0"),
        ("--workers 1000000", "--workers must be at least 0 and less than 257, not 1000000"),
        ("--processes 0", "--processes (or DOMAINBED_PROCESSES) must be at least 1, not 0"),
        ("--image_memory much", "_IMAGE_MEMORY is 'much', expected a size such as 8G"),
        ("--dataset PACS", "PACS needs --data_dir, the folder that contains PACS"),
        ("--hparams kl_weight=3", """such as --hparams '{"kl_weight": 3}'"""),
        ("--hparams {lr:1}", """such as --hparams '{"lr": 0.1}'"""),
        ("--hparams [1]", "--hparams must be a JSON object"),
        ('--hparams {"lr":1,"lr":2}', "--hparams is not valid JSON (the key 'lr' appears twice"),
        ('--hparams {"lrr":1}', "no hyperparameter of LinearSGD is called 'lrr'; did you mean lr"),
        ('--hparams {"batch_size":0}', "batch_size is 0, expected a whole number"),
        ('--hparams {"data_augmentation":"no"}', "data_augmentation is 'no', expected true"),
    ],
)
def test_mistake_is_reported_as_one_problem(tmp_path, capsys, arguments, message):
    assert run(tmp_path, *arguments.split()) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: ") and message in line


def test_hparams_are_checked_although_the_dataset_is_unknown(tmp_path, capsys):
    arguments = ["--dataset", "Debug82", "--hparams", '{"lrr": 1, "batch_size": 0}']
    assert run(tmp_path, *arguments) == 2

    headline, *lines = capsys.readouterr().err.splitlines()
    assert headline == "train: 3 problems, nothing was done"
    for line, words in zip(lines, ("'Debug82'", "batch_size is 0", "'lrr'"), strict=True):
        assert words in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [("P A", [2, 0]), ("1 S", [1, 3]), ("X 2", ["X", 2]), ("-1", [-1]), ("", [])],
)
def test_test_environments_can_be_named(words, expected):
    command_line = ["--dataset", "PACS", "--test_envs", *words.split()]
    assert train_arguments.parse(command_line)[0].test_envs == expected


def test_loader_processes_end_after_a_failure(tmp_path, capsys):
    with fakes.before_step(2, lambda: int("broken on purpose")):
        assert run(tmp_path, "--workers", "2") == 1
    assert not multiprocessing.active_children()
    assert "ValueError" in capsys.readouterr().err


def test_hparams_seed_and_trial_seed_draw_upstreams_values(golden):
    default = golden("hparams.json")["Debug28"]["default"]
    draw = golden("hparams.json")["Debug28"]["random"][1]
    seed = get_draw_seed(dict(zip(("hparams_seed", "trial_seed"), draw["seeds"])))
    hparams = fakes.LinearSGD.resolve_hparams("Debug28", {"lr": 7}, seed)
    assert hparams.values == {**draw["hparams"], "lr": 7}
    drawn = {name for name in draw["hparams"] if draw["hparams"][name] != default[name]}
    assert hparams.changed.keys() == {*drawn, "lr"}


@pytest.mark.parametrize(
    ("flag", "keep", "names"),
    [
        ("--save_model_every_checkpoint", "both", "model model_best model_step0 model_step2"),
        ("--skip_model_save", "both", ""),
        ("--skip_training_in_splits", "last", "model"),
        ("--skip_training_in_splits", "best", "model_best"),
    ],
)
def test_flag_or_variable_chooses_the_saved_weights(tmp_path, monkeypatch, flag, keep, names):
    monkeypatch.setenv("DOMAINBED_KEEP_WEIGHTS", keep)
    assert run(tmp_path, flag, "--checkpoint_freq", "2") == 0
    assert sorted(path.stem for path in tmp_path.glob("*.pkl")) == names.split()

    monkeypatch.setenv("DOMAINBED_KEEP_WEIGHTS", "all")
    assert run(tmp_path) == 2


def test_loaders_and_threads_share_the_cores(monkeypatch):
    monkeypatch.setattr(preparation.os, "sched_getaffinity", lambda _: {*range(6)}, raising=False)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    for requested, on_gpu, expected in ((None, False, 1), (None, True, 5), (12, False, 12)):
        assert preparation.share_cores(requested, datasets.Debug28, on_gpu) == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the user's value is not overridden
    preparation.share_cores(None, datasets.Debug28, False)
    assert threads == [5, 1, 1]


def test_links_in_the_output_folder_are_refused_or_replaced(tmp_path):
    link_target = tmp_path / "bashrc"
    link_target.write_text("content\n")
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("lock", "out.txt", "err.txt"):  # opened at the start
        (folder / name).symlink_to(link_target)
        assert train.main(fakes.quick_arguments(folder)) == 1
        (folder / name).unlink()

    for name in ("results.jsonl", "model.pkl", "model_best.pkl", "done"):
        (folder / name).symlink_to(link_target if name == "results.jsonl" else tmp_path / "missing")
    assert train.main(fakes.quick_arguments(folder)) == 0

    assert link_target.read_text() == "content\n" and not (tmp_path / "missing").exists()
    assert not [path.name for path in folder.iterdir() if path.is_symlink()]


@pytest.mark.parametrize("name", ["out.txt", "lock", "results.jsonl"])
def test_pipe_in_the_output_folder_is_refused_without_waiting(tmp_path, capsys, name):
    os.mkfifo(tmp_path / name)
    signal.alarm(60)
    try:
        assert train.main(fakes.quick_arguments(tmp_path)) in (1, 2)
    finally:
        signal.alarm(0)
    stderr = capsys.readouterr().err
    assert str(tmp_path / name) in stderr and "Traceback" not in stderr


def test_control_characters_of_names_are_escaped_in_output(tmp_path, capsys):
    folder = tmp_path / "a\x1b]0;owned\x07"
    assert train.main(fakes.quick_arguments(folder)) == 0
    printed = capsys.readouterr().out
    assert printed == (folder / "out.txt").read_text()
    assert r"a\x1b]0;owned\x07" in printed
    assert not {"\x1b", "\x07"} & set(printed)
