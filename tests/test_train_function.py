"""`domainbed_carft.train`: the command in a process, its lines, its run, signals and errors."""

import inspect
import os
import pathlib
import signal
import sys
import threading
import time

import domainbed
import pytest
from domainbed.lib import train_arguments
from runs_jobs import write_images

import domainbed_carft
from domainbed_carft.errors import CarftError

SHORT = {"hparams": {"batch_size": 4}, "steps": 2, "workers": 0}


def train(output_dir="out", **options):
    arguments = {"algorithm": "CARFT", "dataset": "Debug28", "test_envs": [0], **SHORT, **options}
    return domainbed_carft.train(output_dir=output_dir, **arguments)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_prints_the_lines_of_the_command_and_returns_the_run(here, capsys):
    write_images(here / "pets", count=4)
    hparams = {"clip_backbone": "tiny", "batch_size": 2, "contexts": "emoji"}

    run = train(pathlib.Path("out"), dataset=pathlib.Path("pets"), test_envs=1, hparams=hparams)

    assert run.path == pathlib.Path("out/model_best.pkl") and run.classes == ["cat", "wild dog"]
    assert (run.args["test_envs"], run.args["dataset"]) == ([1], "pets")
    assert (here / "out" / "done").exists()
    printed = capsys.readouterr().out
    assert printed.startswith("Environment:\n")
    assert printed == (here / "out" / "out.txt").read_text()


@pytest.mark.slow
def test_without_weights_there_is_no_run(here):
    assert train(keep_weights="none") is None
    assert (here / "out" / "done").exists() and not (here / "out" / "model.pkl").exists()


def test_defaults_are_those_of_the_command():
    of_command = vars(train_arguments.build_parser().parse_args([]))
    for name, parameter in inspect.signature(domainbed_carft.train).parameters.items():
        assert name in of_command
        if parameter.default not in (parameter.empty, None) and name != "hparams":
            assert parameter.default == of_command[name]


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        pytest.param(signal.SIGTERM, SystemExit, marks=pytest.mark.slow),
    ],
)
def test_a_signal_has_the_training_save_before_it_ends_this_process(here, number, error):
    def send_after_first_record():
        while not (here / "out" / "results.jsonl").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    threading.Thread(target=send_after_first_record, daemon=True).start()
    with pytest.raises(error):
        train(steps=1_000, checkpoint_freq=1_000)

    assert signal.getsignal(number) == handler
    assert (here / "out" / "state.pt").exists() and not (here / "out" / "done").exists()
    assert "stopped by SIGTERM; to resume" in (here / "out" / "err.txt").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "CARFTT"}, "no algorithm is called 'CARFTT'; did you mean CARFT"),
        ({"hparams": {"lr": {1}}}, "hparams has a value that JSON cannot hold"),
    ],
)
def test_errors_of_the_command_are_raised(here, changes, message):
    with pytest.raises(CarftError, match=message):
        train(**changes)


def test_a_training_that_was_killed_is_an_error(here, monkeypatch):
    killed = here / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(CarftError, match=r"killed by SIGKILL \(often: out of memory\)"):
        train()


def test_a_checkout_has_a_train_of_its_own(here, monkeypatch):
    monkeypatch.setattr(domainbed, "IS_CARFT_HARNESS", False)
    with pytest.raises(CarftError, match="is a checkout; run python -m domainbed.scripts"):
        train()
    assert not (here / "out").exists()
