"""`domainbed_carft.train`: the folder of the command, and a process that stays as it was."""

import argparse
import contextlib
import json
import os
import pathlib
import random
import signal
import sys
import warnings

import numpy as np
import pytest
import torch
import warm
from fake_checkout import run_python_with_torch, write_checkout
from runs_jobs import write_pictures

import domainbed_carft
from domainbed_carft.errors import CarftError, PassingError
from domainbed_carft.method.algorithms import CARFT

HPARAMS = {"batch_size": 4, "lr": 0.001}
SHORT = {"hparams": HPARAMS, "steps": 3, "workers": 0}
WORDS = ["--algorithm", "CARFT", "--dataset", "Debug28", "--test_envs", "0", "--steps", "3"]
WORDS += ["--hparams", json.dumps(HPARAMS), "--workers", "0", "--output_dir", "out"]


def train(output_dir="out", **options):
    arguments = {"algorithm": "CARFT", "dataset": "Debug28", "test_envs": [0], **SHORT, **options}
    return domainbed_carft.train(output_dir=output_dir, **arguments)


def records(folder):
    """The records without the times."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    times = ("step_time", "evaluation_time")
    return [{n: v for n, v in json.loads(line).items() if n not in times} for line in lines]


@pytest.fixture(scope="module")
def by_command(tmp_path_factory):
    """The folder that the command writes."""
    folder = tmp_path_factory.mktemp("by command")
    done = warm.run("-m", "domainbed.scripts.train", *WORDS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def require_same_folder(folder, expected):
    assert sorted(os.listdir(folder)) == sorted(os.listdir(expected))
    assert records(folder) == records(expected)
    for name in ("model.pkl", "model_best.pkl", "done", "err.txt"):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


def test_it_writes_the_folder_of_the_command_and_returns_the_run(by_command, here, capsys):
    run = train()

    require_same_folder(here / "out", by_command)
    printed = capsys.readouterr().out
    assert printed == (here / "out" / "out.txt").read_text()
    assert printed.startswith("Environment:\n")

    expected = domainbed_carft.load_run(by_command)
    assert type(run) is type(expected) and run.path == pathlib.Path("out/model_best.pkl")
    assert run.classes == ["zero", "one"] and run.hparams == expected.hparams
    pictures = torch.randn(2, 3, 28, 28)
    probabilities = run.predict(pictures).class_probabilities
    assert torch.equal(probabilities, expected.predict(pictures).class_probabilities)


def test_what_the_process_did_before_does_not_matter(by_command, here):
    random.seed(9)
    torch.manual_seed(9)
    domainbed_carft.build("CARFT", ["zero", "one"], hparams={"clip_backbone": "tiny"}, steps=3)
    train("another", steps=1)
    train()
    require_same_folder(here / "out", by_command)


def test_every_flag_of_the_command_is_an_argument():
    import inspect

    from domainbed.lib import train_arguments

    actions = train_arguments.build_parser()._actions
    flags = {action.dest for action in actions if action.help != argparse.SUPPRESS} - {"help"}
    assert {*inspect.signature(domainbed_carft.train).parameters} == flags


def test_defaults_are_those_of_the_command(here):
    import inspect

    from domainbed.lib import train_arguments

    from domainbed_carft.runs import training

    command = {**vars(train_arguments.build_parser().parse_args([]))}
    given = {
        name: parameter.default
        for name, parameter in inspect.signature(training.train).parameters.items()
        if parameter.default not in (inspect.Parameter.empty, None) and name != "hparams"
    }
    assert given == {name: command[name] for name in given}


def process_state():
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()
    handlers = {n: signal.getsignal(n) for n in signal.valid_signals()}
    return {
        "generators": json.dumps(generators, default=lambda words: words.tolist()),
        "threads": torch.get_num_threads(),
        "handlers": handlers,
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "variables": {n: v for n, v in os.environ.items() if n != "PYTEST_CURRENT_TEST"},
        "filters": list(warnings.filters),
        "streams": (id(sys.stdout), id(sys.stderr)),
        "folder": os.getcwd(),
    }


@pytest.fixture
def unusual_process(monkeypatch):
    """A process whose state is not what training sets."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # or train would set no threads
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    threads = torch.get_num_threads()
    former = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGCHLD)}
    for number in former:
        signal.signal(number, lambda number, frame: None)
    torch.set_num_threads(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="something of the user's")
        yield
    torch.set_num_threads(threads)
    for number, handler in former.items():
        signal.signal(number, handler)


def failing(error):
    def update(self, minibatches):
        random.random()
        np.random.rand()
        torch.rand(1)
        os.environ["LEFT_BY_TRAINING"] = "1"
        warnings.simplefilter("error")
        raise error

    return update


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"workers": 1}, None),  # torch's loader sets a handler
        ({"hparams": {"lr": "fast"}}, CarftError("lr is 'fast', expected a number > 0")),
        ({}, CarftError("this loss is not finite")),
        ({}, RuntimeError("a bug")),
        ({}, KeyboardInterrupt()),
    ],
)
def test_the_process_stays_as_it_was(unusual_process, here, monkeypatch, changes, error):
    if error and "hparams" not in changes:
        monkeypatch.setattr(CARFT, "update", failing(error))
        monkeypatch.setattr(CARFT, "step_on_device", failing(error))
    before = process_state()

    expectation = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with expectation as caught:
        train(**changes)

    after = process_state()
    assert {name: after[name] for name in before} == before
    if error:
        assert str(caught.value) == str(error)
        assert not (here / "out" / "lock").exists()
        reported = (here / "out" / "err.txt").read_text()
        words = "interrupted by Ctrl-C" if isinstance(error, KeyboardInterrupt) else str(error)
        assert words in reported


def test_a_signal_saves_the_state_and_then_does_what_it_does(by_command, here, monkeypatch):
    received = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    original = CARFT.step_on_device

    def step_and_stop(self, minibatches):
        if self.steps_taken == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, minibatches)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(CARFT, "step_on_device", step_and_stop)
            with pytest.raises(PassingError, match="stopped by SIGTERM; to resume, call train"):
                train()
    finally:
        signal.signal(signal.SIGTERM, former)
    assert received == [signal.SIGTERM]
    assert (here / "out" / "state.pt").exists() and not (here / "out" / "done").exists()

    train()  # resumes
    (here / "out" / "err.txt").write_bytes(b"")
    require_same_folder(here / "out", by_command)


def test_a_folder_of_ones_own_is_a_data_set(here):
    write_pictures(here / "pets", count=4)
    hparams = {"clip_backbone": "tiny", "batch_size": 2, "contexts": "emoji"}

    run = train(pathlib.Path("out"), dataset=pathlib.Path("pets"), test_envs=1, hparams=hparams)

    assert run.classes == ["cat", "wild dog"]
    assert run.args["test_envs"] == [1] and run.args["dataset"] == "pets"

    by_command = here / "by command"
    by_command.mkdir()
    (by_command / "pets").symlink_to(here / "pets")
    words = ["--algorithm", "CARFT", "--dataset", "pets", "--test_envs", "1", "--steps", "3"]
    words += ["--hparams", json.dumps(hparams, sort_keys=True), "--workers", "0"]
    done = warm.run("-m", "domainbed.scripts.train", *words, "--output_dir", "out", cwd=by_command)
    assert done.returncode == 0, done.stderr
    require_same_folder(here / "out", by_command / "out")


def test_without_weights_there_is_no_run(by_command, here):
    assert train(skip_model_save=True) is None
    assert records(here / "out")[-1]["loss"] == records(by_command)[-1]["loss"]
    assert not (here / "out" / "model.pkl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "CARFTT"}, "no algorithm is called 'CARFTT'; did you mean CARFT"),
        ({"dataset": "PACSS"}, "no data set is called 'PACSS'; did you mean PACS"),
        ({"test_envs": [7]}, "--test_envs 7: Debug28 has no such environment"),
        ({"hparams": {"lr": 0, "kl": 1}}, "2 problems, nothing was done\n"),
        ({"hparams": {"lr": {1}}}, "hparams has a value that JSON cannot hold"),
        ({"steps": "few"}, "steps is 'few', expected a whole number of at least 1"),
        ({"keep_weights": "some"}, "argument --keep_weights: invalid choice"),
        ({"task": "domain_adaptation"}, "invalid choice|is not included"),
        ({"dataset": 3}, "the path is 3, expected text"),
    ],
)
def test_wrong_arguments_are_carft_errors(here, changes, message, capsys):
    with pytest.raises(CarftError, match=message) as caught:
        train(**changes)
    reported = here / "out" / "err.txt"
    if reported.exists():  # the words were valid
        assert reported.read_text() == f"train: {caught.value}\n"
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_used_is_a_carft_error(here):
    (here / "file").touch()
    with pytest.raises(CarftError, match="--output_dir file/out cannot be used: .*directory"):
        train("file/out")


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
