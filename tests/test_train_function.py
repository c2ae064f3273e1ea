"""`domainbed_carft.train`: its output, run, signals and errors."""

import inspect
import os
import pathlib
import shlex
import signal
import sys
import threading
import time

import domainbed
import pytest
from domainbed.lib import train_arguments

import domainbed_carft
from domainbed_carft.errors import CarftError

SHORT = {"hparams": {"batch_size": 4}, "steps": 2, "workers": 0}


def train(output_dir="out", **options):
    arguments = {"algorithm": "CARFT", "dataset": "Debug28", "test_envs": [0], **SHORT, **options}
    return domainbed_carft.train(output_dir=output_dir, **arguments)


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """An empty folder, which becomes the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def replace_interpreter(cwd, monkeypatch):
    """Function that lets train run a shell script instead of Python."""

    def replace(script):
        (cwd / "python").write_text(f"#!/bin/sh\n{script}\n")
        (cwd / "python").chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(cwd / "python"))

    return replace


def test_train_prints_output_of_command_and_returns_run(pets, cwd, replace_interpreter, capsys):
    replace_interpreter(f"cp -r {shlex.quote(str(pets / 'CARFT'))} out; echo $*")
    options = {"dataset": pathlib.Path("pets"), "skip_training_in_splits": True}
    run = train(pathlib.Path("out"), test_envs=1, save_model_every_checkpoint=False, **options)
    assert run.path == pathlib.Path("out/model_best.pkl") and run.classes == ["cat", "wild dog"]
    printed = capsys.readouterr().out
    assert printed.startswith("-m domainbed.scripts.train --algorithm CARFT --dataset pets ")
    assert " --skip_training_in_splits --steps 2 " in printed
    assert "save_model_every_checkpoint" not in printed


@pytest.mark.slow
def test_train_without_weights_returns_none(cwd, capsys):
    assert train(keep_weights="none") is None
    assert (cwd / "out" / "done").exists() and not (cwd / "out" / "model.pkl").exists()
    printed = capsys.readouterr().out
    assert printed.startswith("Environment:\n")
    assert printed == (cwd / "out" / "out.txt").read_text()


def test_defaults_equal_defaults_of_command():
    command_defaults = vars(train_arguments.build_parser().parse_args([]))
    for name, parameter in inspect.signature(domainbed_carft.train).parameters.items():
        assert name in command_defaults
        if parameter.default not in (parameter.empty, None) and name != "hparams":
            assert parameter.default == command_defaults[name]


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signal_lets_the_command_save_before_process_ends(cwd, replace_interpreter, number, error):
    wait = "while true; do sleep 0.05; done"
    replace_interpreter(f"trap 'touch saved; exit 75' TERM; touch started; {wait}")

    def send_after_start():
        while not (cwd / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    handler = signal.getsignal(number)
    threading.Thread(target=send_after_start, daemon=True).start()
    with pytest.raises(error):
        train()

    assert signal.getsignal(number) == handler
    assert (cwd / "saved").exists()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no algorithm' >&2; exit 2", "^no algorithm$"),
        ("kill -9 $$", r"killed by SIGKILL \(often: out of memory\)"),
    ],
)
def test_failed_command_raises_its_error(replace_interpreter, script, message):
    replace_interpreter(script)
    with pytest.raises(CarftError, match=message):
        train()


def test_hparams_that_json_cannot_hold_raise_error(cwd):
    with pytest.raises(CarftError, match="hparams has a value that JSON cannot hold"):
        train(hparams={"lr": {1}})


def test_train_in_checkout_raises_error(cwd, monkeypatch):
    monkeypatch.setattr(domainbed, "IS_CARFT_HARNESS", False)
    with pytest.raises(CarftError, match="is a checkout"):
        train()
    assert not (cwd / "out").exists()
