"""Training runs, in this process."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from domainbed import datasets, hparams_registry
from domainbed.lib import preparation
from domainbed.scripts import train

from domainbed_carft import machine

from . import fakes

pytestmark = pytest.mark.usefixtures("registered")

QUICK = ["--dataset", "Debug28", "--algorithm", "LinearSGD", "--workers", "0", "--steps", "3"]


def run(folder: Path, *arguments: str) -> int:
    """The exit status of three steps of LinearSGD."""
    return train.main([*QUICK, "--output_dir", str(folder), *arguments])


def test_a_run_writes_upstreams_records_and_files(golden, tmp_path, capsys):
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

    # And the best weights, which upstream does not keep.
    files = sorted([*expected["files"], "model_best.pkl"])
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    content = torch.load(tmp_path / "model.pkl", weights_only=True)
    assert sorted(content) == sorted([*expected["model_keys"], "format"])

    printed = capsys.readouterr().out
    assert expected["header"] in printed.splitlines()
    assert (tmp_path / "out.txt").read_text() == printed
    assert (tmp_path / "done").read_text() == "done"


def test_train_prints_the_hyperparameters_that_differ_from_the_defaults(tmp_path, capsys):
    assert run(tmp_path, "--hparams", '{"lr": 0.5, "batch_size": 8}') == 0
    count = len(hparams_registry.default_hparams("LinearSGD", "Debug28")) - 2
    expected = f"HParams:\n\tbatch_size: 8\n\tlr: 0.5\n\t{count} others have their defaults\n"
    assert expected in capsys.readouterr().out


def test_an_environment_smaller_than_the_batch_trains_with_a_warning(tmp_path, capsys):
    assert run(tmp_path, "--test_envs", "1") == 0

    printed = capsys.readouterr().out
    for name in ("'0'", "'2'"):
        assert f"environment {name} has 13 training items, fewer than the batch size 64" in printed
    assert printed.count("Warning") == 2


def test_skipping_training_in_splits_changes_no_other_value(images, tmp_path, monkeypatch):
    # On images, which upstream augments in evaluation, too.
    arguments = ["--dataset", str(images), "--algorithm", "Still", "--steps", "2"]
    arguments += ["--hparams", '{"batch_size": 2}', "--test_envs", "1"]
    assert run(tmp_path / "complete", *arguments) == 0

    monkeypatch.setenv("DOMAINBED_SKIP_TRAINING_IN_SPLITS", "1")
    assert run(tmp_path / "short", *arguments) == 0

    complete_records = fakes.comparable_records(tmp_path / "complete")
    short_records = fakes.comparable_records(tmp_path / "short")
    for complete, short in zip(complete_records, short_records, strict=True):
        del complete["env0_in_acc"], complete["env2_in_acc"]
        del complete["args"], short["args"]
        assert short == complete


def test_all_problems_are_reported_at_once_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(datasets, "Debug28", None)
    arguments = ["--algorithm", "LinearSDG", "--hparams", "{'lr': 1}", "--holdout_fraction", "1"]

    assert run(tmp_path, *arguments, "--dataset", "Debug82", "--workers", "-1") == 2

    message = capsys.readouterr().err
    assert message.startswith("train: 5 problems, nothing was done\n- no algorithm is called")
    for part in (
        "no algorithm is called 'LinearSDG'; did you mean LinearSGD?",
        "no dataset is called 'Debug82'; did you mean Debug28",
        "--hparams is not valid JSON (",
        "--holdout_fraction must be at least 0 and less than 1, not 1.0",
        "--workers must be at least 0, not -1",
    ):
        assert part in message

    assert sorted(path.name for path in tmp_path.iterdir()) == ["err.txt", "out.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--test_envs 0 3", "--test_envs 3: Debug28 has no such environment. Valid: 0 (0), 1 (1)"),
        ("--test_envs 1 1", "--test_envs 1 1 names an environment twice"),
        ("--test_envs 0 1 2", "--test_envs 0 1 2 leaves no environment of Debug28 to train on"),
        ("--image_memory much", "--image_memory is 'much', expected a size such as 8G"),
        ("--dataset PACS", "PACS needs --data_dir, the folder that contains PACS"),
        ("--hparams kl_weight=3", """such as --hparams '{"kl_weight": 3}'"""),
        ("--hparams {lr:1}", """such as --hparams '{"lr": 0.1}'"""),
        ("--hparams [1]", "--hparams must be a JSON object"),
        ('--hparams {"lr":1,"lr":2}', "--hparams is not valid JSON (the key 'lr' appears twice"),
        ('--hparams {"lrr":1}', "no hyperparameter of LinearSGD is called 'lrr'; did you mean lr"),
        (
            '--hparams {"batch_size":0}',
            "batch_size is 0, expected a whole number",
        ),
        (
            '--hparams {"data_augmentation":"no"}',
            "data_augmentation is 'no', expected true",
        ),
    ],
)
def test_each_mistake_is_one_problem_before_anything_is_loaded(
    tmp_path, capsys, arguments, message
):
    assert run(tmp_path, *arguments.split()) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: ") and message in line


def test_a_signal_during_the_data_check_stops_the_job_cleanly(tmp_path, monkeypatch):
    def data_problems(root):
        os.kill(os.getpid(), signal.SIGUSR1)
        return []

    monkeypatch.setattr(datasets.Debug28, "data_problems", data_problems, raising=False)

    assert run(tmp_path) == 75
    assert not (tmp_path / "lock").exists()
    assert "stopped by SIGUSR1" in (tmp_path / "err.txt").read_text()


def test_no_loader_process_remains_after_a_failure(tmp_path, capsys):
    with fakes.before_step(2, lambda: int("broken on purpose")):
        assert run(tmp_path, "--workers", "2") == 1
    assert not multiprocessing.active_children()
    assert "ValueError" in capsys.readouterr().err


def test_hparams_seed_draws_upstreams_values_for_the_trial(golden):
    draw = golden("hparams.json")["Debug28"]["random"][1]
    hparams_seed, trial_seed = map(str, draw["seeds"])

    arguments = [*QUICK, "--hparams_seed", hparams_seed, "--trial_seed", trial_seed]
    args = train.build_parser().parse_args(arguments)
    assert preparation.choose_hparams(args, {"lr": 7}) == {**draw["hparams"], "lr": 7}


@pytest.mark.parametrize(
    ("flag", "keep", "names"),
    [
        ("--save_model_every_checkpoint", "both", "model model_best model_step0 model_step2"),
        ("--skip_model_save", "both", ""),
        ("--skip_training_in_splits", "last", "model"),
        ("--skip_training_in_splits", "best", "model_best"),
    ],
)
def test_a_flag_or_a_variable_chooses_which_weights_are_kept(
    tmp_path, monkeypatch, flag, keep, names
):
    monkeypatch.setenv("DOMAINBED_KEEP_WEIGHTS", keep)
    assert run(tmp_path, flag, "--checkpoint_freq", "2") == 0
    assert sorted(path.stem for path in tmp_path.glob("*.pkl")) == names.split()

    monkeypatch.setenv("DOMAINBED_KEEP_WEIGHTS", "all")
    assert run(tmp_path) == 2
    assert run(tmp_path / "new", "--keep_weights", "last") == 0
    assert [path.name for path in (tmp_path / "new").glob("*.pkl")] == ["model.pkl"]


def test_loaders_and_threads_share_the_cores(monkeypatch):
    monkeypatch.setattr(preparation.os, "sched_getaffinity", lambda _: {*range(6)}, raising=False)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    for requested, on_gpu, expected in ((None, False, 1), (None, True, 5), (12, False, 12)):
        assert preparation.share_cores(requested, datasets.Debug28, on_gpu) == expected
    monkeypatch.setenv("DOMAINBED_CORES", "4")
    assert preparation.share_cores(None, datasets.Debug28, False) == 1
    assert threads == [5, 1, 1, 3]

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the user's own stays
    preparation.share_cores(None, datasets.Debug28, False)
    assert len(threads) == 4


def test_links_in_the_output_folder_are_refused_or_replaced(tmp_path, capsys):
    victim = tmp_path / "bashrc"
    victim.write_text("precious\n")
    folder = tmp_path / "job"
    folder.mkdir()
    for name in ("lock", "out.txt", "err.txt"):  # a job begins by writing these
        (folder / name).symlink_to(victim)
        assert train.main(fakes.quick(folder)) == 1
        assert "it is a link, which is not written through" in capsys.readouterr().err
        (folder / name).unlink()

    (folder / "results.jsonl").symlink_to(victim)
    replaced = ("model.pkl", "model_best.pkl", "done")
    for name in replaced:
        (folder / name).symlink_to(tmp_path / "missing")
    assert train.main(fakes.quick(folder)) == 0

    assert victim.read_text() == "precious\n" and not (tmp_path / "missing").exists()
    assert not [path.name for path in folder.iterdir() if path.is_symlink()]


@pytest.mark.parametrize("name", ["out.txt", "lock", "results.jsonl"])
def test_a_pipe_in_the_output_folder_is_refused_without_waiting(tmp_path, capsys, name):
    os.mkfifo(tmp_path / name)
    signal.alarm(60)
    try:
        assert train.main(fakes.quick(tmp_path)) in (1, 2)
    finally:
        signal.alarm(0)
    stderr = capsys.readouterr().err
    assert str(tmp_path / name) in stderr and "Traceback" not in stderr


def test_names_from_elsewhere_are_printed_without_control_characters(tmp_path, capsys):
    folder = tmp_path / "a\x1b]0;owned\x07"
    assert train.main(fakes.quick(folder)) == 0
    printed = capsys.readouterr().out
    assert r"a\x1b]0;owned\x07" in printed
    assert not {"\x1b", "\x07"} & set(printed)
