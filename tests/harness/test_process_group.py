"""Several processes train a job as one would: on the processor, with gloo."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import warm
from domainbed import hparams_registry
from domainbed.lib import checks, job_batches, picture_batches, preparation, stopping
from domainbed.lib.process_group import ProcessGroup, attach_process_group
from domainbed.scripts import train
from sweep_jobs import wait_until

from domainbed_carft import launchers
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.launchers.attempt import run_commands
from domainbed_carft.machine import devices
from domainbed_carft.method.carft import CARFT
from domainbed_carft.method.starft import StarFT
from domainbed_carft.pictures.protocols import plan_for

from . import fakes

TERMS = {"sp_weight": 1e-4, "fd_weight": 0.1, "ldifs_weight": 1, "lipsum_weight": 0.1}
HPARAMS = {
    "CARFT": {**TERMS, "miro_weight": 0.1, "grad_clip": 1, "average": "ema", "micro_batch": 4},
    "CLIPLPFT": {"lp_steps": 2, "average": "swad", "swad_converge": 1},
    "CLIPZeroShot": {},
    "FLYP": {},
}


def train_arguments(
    pictures: Path, folder: Path, algorithm: str = "CARFT", **changed: object
) -> list[str]:
    hparams = {"batch_size": 4, "clip_backbone": "tiny", "contexts": "emoji", "total_steps": 5}
    hparams |= {"warmup_steps": 0, "lr": 1e-3, **HPARAMS[algorithm], **changed}
    fixed = ("--algorithm", algorithm, "--steps", "5", "--hparams", json.dumps(hparams))
    return fakes.quick(folder, *fixed, "--dataset", str(pictures))


def start(size: int, command: list[str]) -> list[warm.Process]:
    """The processes of a job, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    variables = (
        {**os.environ, **shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(size)
    )
    return [warm.start(*command, env=env) for env in variables]


TRAIN = ("-m", "domainbed.scripts.train")


def train_jobs(size: int, arguments: list[str]) -> list[int]:
    """The exit statuses of the processes of a job, started as torchrun does."""
    return [process.wait() for process in start(size, [*TRAIN, *arguments])]


class Outcome(NamedTuple):
    """What a job has written, without what differs between two runs."""

    numbers: list[dict[str, float]]  # of its records
    settings: list[dict[str, object]]  # hyperparameters and arguments of its records
    weights: dict[str, torch.Tensor]


def outcome(folder: Path) -> Outcome:
    records = fakes.records(folder)
    return Outcome(
        numbers=[
            {
                name: value
                for name, value in record.items()
                if isinstance(value, float) and not name.endswith("_time")
            }
            for record in records
        ],
        settings=[
            {"hparams": record["hparams"], "args": {**record["args"], "output_dir": None}}
            for record in records
        ],
        weights=torch.load(folder / "model.pkl", weights_only=True)["model_dict"],
    )


def assert_same(folder: Path, alone: Path) -> None:
    """Assert that two jobs have written the same, up to the rounding of sums."""
    actual = outcome(folder)
    expected = outcome(alone)
    assert actual.settings == expected.settings
    for numbers, expected_numbers in zip(actual.numbers, expected.numbers, strict=True):
        assert numbers == pytest.approx(expected_numbers, rel=1e-3, abs=1e-5)

    assert [*actual.weights] == [*expected.weights]
    for name, weight in actual.weights.items():
        expected_weight = expected.weights[name]
        if name.endswith("in_proj_bias"):  # Adam takes keys' biases, whose gradients are 0, for any
            for bias in (weight, expected_weight):
                bias.view(3, -1)[1] = 0.0
        torch.testing.assert_close(weight, expected_weight, rtol=1e-3, atol=2e-5)
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory) -> Path:
    """A job of one process, whose weights move far more than rounding does."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert train_jobs(1, train_arguments(pictures, folder)) == [0]
    losses = [record["loss"] for record in outcome(folder).numbers]
    assert max(losses) - min(losses) > 0.05
    return folder


@pytest.mark.parametrize("size", [2, 3])
def test_batch_slices_of_all_processes_make_up_the_batches_of_one(pictures, size):
    """Its pictures to the bit, augmented, whatever of a batch is left for a process."""
    args = train.build_parser().parse_args(train_arguments(pictures, Path("unused")))
    hparams = preparation.choose_hparams(args, checks.parse_hparams(args.hparams))
    _, environments = preparation.load_environments(args, hparams)
    splits = [environment.in_split for environment in environments]
    plan = dataclasses.replace(plan_for("domainbed", 224, augment=True), mode="fast")
    evaluated = {"a": splits[0], "b": torch.utils.data.Subset(splits[1], [3])}

    def batches(process_group):
        torch.manual_seed(0)
        loaded = job_batches.JobBatches(splits, evaluated, hparams, 1, 1, 0, "cpu", process_group)
        loaded.begin(0, False, False, 0, picture_batches.Pictures(plan))
        return [*loaded.step_batches(), *loaded.split_batches("a"), *loaded.split_batches("b")]

    together = [batches(ProcessGroup(rank, size)) for rank in range(size)]
    for batch, *parts in zip(batches(ProcessGroup()), *together, strict=True):
        for n in (0, 1):
            assert torch.equal(batch[n], torch.cat([part[n] for part in parts if part]))
    assert sum(parts is None for parts in [environment[-1] for environment in together]) == size - 1


def test_three_processes_train_to_the_weights_of_one(pictures, alone, tmp_path):
    assert train_jobs(3, train_arguments(pictures, tmp_path / "three")) == [0, 0, 0]
    assert_same(tmp_path / "three", alone)


@pytest.mark.parametrize("algorithm", ["CLIPLPFT", "CLIPZeroShot"])
def test_two_processes_train_to_the_weights_of_one(pictures, tmp_path, algorithm):
    for size in (1, 2):
        command = train_arguments(pictures, tmp_path / str(size), algorithm)
        assert train_jobs(size, command) == [0] * size
    assert_same(tmp_path / "2", tmp_path / "1")


@pytest.mark.gpu
def test_two_gpus_train_to_the_weights_of_one(pictures, tmp_path):
    """Within a tenth of the way of training: kernels of a GPU add up in any order."""
    if devices.gpu_count() < 2:
        pytest.skip("there is one GPU")
    for size in (1, 2):
        assert train_jobs(size, train_arguments(pictures, tmp_path / str(size))) == [0] * size
    one_step = [*train_arguments(pictures, tmp_path / "begun"), "--steps", "1"]
    assert train_jobs(1, one_step) == [0]

    one, two, start = (outcome(tmp_path / name).weights for name in ("1", "2", "begun"))
    way, apart = (
        sum(float((weights[name] - one[name]).square().sum()) for name in one)
        for weights in (start, two)
    )
    assert apart <= 0.01 * way


DISTURBED = """
import os, sys
from domainbed.scripts import train
from domainbed_carft.method.algorithms import CARFT
from domainbed_carft.pictures.protocols import plan_for

method, call_number, statement, *arguments = sys.argv[1:]
owner = next(cls for cls in CARFT.__mro__ if method in vars(cls))
original = getattr(owner, method)
calls = []

def disturbed(self, *args, **kwargs):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == int(call_number):
        exec(statement)
    return original(self, *args, **kwargs)

setattr(owner, method, disturbed)
sys.exit(train.main(arguments))
"""


def start_disturbed(
    arguments: list[str], method: str, call_number: int, statement: str
) -> list[warm.Process]:
    """Start a job of two processes; the second runs ``statement`` before a call of a method."""
    return start(2, ["-c", DISTURBED, method, str(call_number), statement, *arguments])


@pytest.mark.parametrize("method, call_number", [("step_on_device", 3), ("predict", 10)])
def test_a_signal_to_one_process_stops_all_and_one_process_resumes(
    pictures, alone, tmp_path, method, call_number
):
    """In a step and in an evaluation; then by one process to the end of the same run."""
    arguments = train_arguments(pictures, tmp_path / "job")
    statement = f"os.kill(os.getpid(), {int(signal.SIGUSR1)})"
    processes = start_disturbed(arguments, method, call_number, statement)
    assert [process.wait() for process in processes] == [75, 75]

    message = (tmp_path / "job" / "err.txt").read_text().splitlines()[-1]
    assert message == "train: stopped by SIGUSR1; to resume, rerun the command"
    assert train_jobs(1, arguments) == [0]
    assert_same(tmp_path / "job", alone)


def test_the_first_process_reports_why_another_has_failed(pictures, tmp_path):
    refused = train_arguments(pictures, tmp_path / "refused", "FLYP")
    assert train_jobs(2, refused) == [2, 2]

    message = (tmp_path / "refused" / "err.txt").read_text()
    assert "FLYP cannot be trained by 2 processes: its loss compares each picture" in message

    arguments = train_arguments(pictures, tmp_path / "other")
    processes = start_disturbed(arguments, "recorded_facts", 1, "self.facts['amp'] = 'bf16'")
    assert [process.wait() for process in processes] == [2, 2]

    message = (tmp_path / "other" / "err.txt").read_text()
    assert (
        "process 1 of 2 has other settings than the first: amp is 'bf16', expected 'off'" in message
    )

    arguments = train_arguments(pictures, tmp_path / "broken")
    statement = "raise RuntimeError('broken on purpose')"
    processes = start_disturbed(arguments, "step_on_device", 2, statement)
    assert [process.wait() for process in processes] == [1, 1]

    message = processes[0].communicate()[1]
    assert message == (tmp_path / "broken" / "err.txt").read_text()
    assert message.startswith("train: process 1 of 2: Traceback")
    assert message.endswith("\nRuntimeError: broken on purpose\n")


class OwnStep(CARFT):
    """A user's, that knows nothing of slices."""

    def update(self, minibatches, unlabeled=None):
        return super().update(minibatches)


def test_algorithms_and_batches_that_cannot_be_split_are_refused():
    def refusal(algorithm_class, batch_size=4, change=lambda algorithm: None, **changed):
        hparams = hparams_registry.default_hparams("CARFT", "EmojiStyles")
        values = {"clip_backbone": "tiny", "contexts": "emoji", **changed}
        chosen = {**hparams, **values}
        algorithm = algorithm_class((3, 48, 48), 10, 3, chosen)
        change(algorithm)
        with pytest.raises(CarftError) as raised:
            attach_process_group(algorithm, ProcessGroup(0, 3), batch_size)
        return str(raised.value)

    problem = "cannot be trained by 3 processes"
    assert f"batches of 2 {problem}; give them that many" in refusal(CARFT, 2)
    assert f"StarFT {problem}: its KL draws captions" in refusal(StarFT)
    assert f"OwnStep {problem}: its step does not add up" in refusal(OwnStep)

    dropout = torch.nn.Dropout(0.1)
    dropped = refusal(CARFT, change=lambda algorithm: algorithm.encoder.add_module("drop", dropout))
    assert "its encoder has dropout" in dropped


def start_two(arguments: list[str]) -> tuple[warm.Process, int]:
    """A job of two processes, the first of which has started the second, and the second's id."""
    first = warm.start(*TRAIN, *arguments, "--processes", "2")
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
    wait_until(children.read_text)
    (second,) = map(int, children.read_text().split())
    return first, second


KILLED = "process 1 of 2 was killed by "


@pytest.mark.parametrize("killed", ["first", "second"])
def test_if_one_process_is_killed_all_end_and_resume(pictures, alone, tmp_path, killed):
    """If it is not the first, err.txt has the reason once; then one process trains to the end."""
    arguments = train_arguments(pictures, tmp_path / "job")
    first, second = start_two(arguments)
    wait_until((tmp_path / "job" / "state.pt").exists)
    os.kill(first.pid if killed == "first" else second, signal.SIGKILL)
    assert first.wait() == (-signal.SIGKILL if killed == "first" else 1)

    wait_until(lambda: not Path(f"/proc/{second}").exists())
    assert (tmp_path / "job" / "state.pt").exists()
    lines = (tmp_path / "job" / "err.txt").read_text().splitlines()
    assert lines.count(f"train: {KILLED}SIGKILL") == (killed == "second")

    assert train_jobs(1, arguments) == [0]
    assert_same(tmp_path / "job", alone)


def test_a_signal_to_the_first_process_has_all_save_and_stop(pictures, alone, tmp_path):
    """The signals one after another, each as the job begins to train; then to the end."""
    arguments = train_arguments(pictures, tmp_path / "job")
    output = tmp_path / "job" / "out.txt"
    expected = ""
    for number in stopping.SIGNALS:
        first, second = start_two(arguments)
        n_stops = expected.count("\n")
        wait_until(lambda n=n_stops: output.exists() and output.read_text().count("Workers:") > n)
        os.kill(first.pid, number)
        assert first.wait() == 75
        assert not Path(f"/proc/{second}").exists()

        expected += f"train: stopped by {number.name}; to resume, rerun the command\n"
        assert (tmp_path / "job" / "err.txt").read_text() == expected

    assert train_jobs(1, arguments) == [0]
    assert_same(tmp_path / "job", alone)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGKILL, 1)])
def test_a_process_that_is_lost_while_they_join_ends_the_job(pictures, tmp_path, number, status):
    first, second = start_two(train_arguments(pictures, tmp_path / "job"))
    os.kill(second, number)
    assert first.wait(60) == status
    message = f"train: {KILLED}{number.name}\n"
    assert (tmp_path / "job" / "err.txt").read_text() == message


@pytest.mark.slow
def test_the_pool_retries_a_job_whose_first_process_was_killed(
    pictures, alone, tmp_path, monkeypatch
):
    """The pool then tries again, and the job is what it would have been."""
    monkeypatch.setenv("DOMAINBED_PROCESSES", "2")
    folder = JobFolder(tmp_path / "job")

    def kill_the_first() -> None:
        wait_until(folder.state_path.exists)
        os.kill(folder.holder().pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_first, daemon=True)
    killer.start()
    command = shlex.join(["python", *TRAIN, *train_arguments(pictures, folder.path)])
    assert run_commands(launchers.make("pool", {}), [command]) == []

    killer.join()
    assert [attempt.status for attempt in folder.attempts()] == [-signal.SIGKILL, 0]

    (folder.path / "attempts.jsonl").unlink()  # which a job without a launcher has not
    assert_same(folder.path, alone)


@pytest.mark.slow
def test_torchrun_trains_and_saves_when_stopped(pictures, alone, tmp_path):
    """Told to stop, it gives them time to save."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [
        sys.executable,
        "-m",
        *launcher,
        *TRAIN,
        *train_arguments(pictures, tmp_path / "job"),
    ]
    process = subprocess.Popen(command)
    wait_until((tmp_path / "job" / "state.pt").exists)
    process.terminate()
    assert process.wait() != 0

    message = (tmp_path / "job" / "err.txt").read_text().splitlines()[-1]
    assert message == "train: stopped by SIGTERM; to resume, rerun the command"
    assert subprocess.run(command, check=False).returncode == 0

    assert_same(tmp_path / "job", alone)


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2', expected a whole number of at least 1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', expected a whole number of at least 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1', expected a whole number"),
        (
            {"WORLD_SIZE": "2", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"},
            "MASTER_ADDR 'nowhere.invalid' does not resolve",
        ),
    ],
)
def test_wrong_variables_of_torchrun_are_refused(tmp_path, monkeypatch, capsys, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train.main(fakes.quick(tmp_path)) == 2
    assert message in capsys.readouterr().err
