"""`domainbed_carft.train`: the command in a process, its lines, its run, signals and errors."""

import argparse
import inspect
import os
import pathlib
import signal
import sys
import threading
import time

import pytest
import torch_interpreter
from fake_checkout import run_python_with_torch, write_checkout
from runs_jobs import write_pictures

import domainbed_carft
from domainbed_carft.errors import CarftError

SHORT = {"hparams": {"batch_size": 4}, "steps": 2, "workers": 0}


def train(output_dir="out", **options):
    arguments = {"algorithm": "CARFT", "dataset": "Debug28", "test_envs": [0], **SHORT, **options}
    return domainbed_carft.train(output_dir=output_dir, **arguments)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder; what `train` starts need not import torch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", torch_interpreter.executable(sys.executable))
    return tmp_path


def test_it_prints_the_lines_of_the_command_and_returns_the_run(here, capsys):
    write_pictures(here / "pets", count=4)
    hparams = {"clip_backbone": "tiny", "batch_size": 2, "contexts": "emoji"}

    run = train(pathlib.Path("out"), dataset=pathlib.Path("pets"), test_envs=1, hparams=hparams)

    assert run.path == pathlib.Path("out/model_best.pkl") and run.classes == ["cat", "wild dog"]
    assert (run.args["test_envs"], run.args["dataset"]) == ([1], "pets")
    assert (here / "out" / "done").exists()
    printed = capsys.readouterr().out
    assert printed.startswith("Environment:\n")
    assert printed == (here / "out" / "out.txt").read_text()


def test_without_weights_there_is_no_run(here):
    assert train(keep_weights="none") is None
    assert (here / "out" / "done").exists() and not (here / "out" / "model.pkl").exists()


def test_arguments_and_defaults_are_those_of_the_command():
    from domainbed.lib import train_arguments

    parser = train_arguments.build_parser()
    parameters = inspect.signature(domainbed_carft.train).parameters
    shown = {action.dest for action in parser._actions if action.help != argparse.SUPPRESS}
    assert {*parameters} == shown - {"help"}

    of_command = vars(parser.parse_args([]))
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default not in (inspect.Parameter.empty, None) and name != "hparams"
    }
    assert defaults == {name: of_command[name] for name in defaults}


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
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
        ({"keep_weights": "some"}, "argument --keep_weights: invalid choice"),
        ({"output_dir": "file/out"}, "--output_dir file/out cannot be used: .*directory"),
        ({"hparams": {"lr": {1}}}, "hparams has a value that JSON cannot hold"),
    ],
)
def test_errors_of_the_command_are_raised(here, changes, message):
    (here / "file").touch()
    with pytest.raises(CarftError, match=message):
        train(**changes)


def test_a_training_that_was_killed_is_an_error(here, monkeypatch):
    killed = here / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(CarftError, match=r"killed by SIGKILL \(often: out of memory\)"):
        train()


def test_a_checkout_has_a_train_of_its_own(tmp_path):
    write_checkout(tmp_path, "classic")
    code = """if True:
        import domainbed_carft
        try:
            domainbed_carft.train("CARFT", "PACS", [0], "out")
        except domainbed_carft.errors.CarftError as error:
            print(error)
    """
    done = run_python_with_torch("-c", code, cwd=tmp_path)
    assert "in use is a checkout; run its own: python -m domainbed.scripts.train" in done.stdout
    assert not (tmp_path / "out").exists()
