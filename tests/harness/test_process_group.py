"""Several processes train a job to the same results as a single one (on the CPU, with gloo)."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from domainbed import algorithms, hparams_registry
from domainbed.lib import checks, fast_data_loader, preparation
from domainbed.lib.process_group import ProcessGroup, attach_process_group
from domainbed.scripts import train
from sweep_jobs import wait_until

from domainbed_carft.errors import CarftError
from domainbed_carft.machine import devices
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.carft import CARFT
from domainbed_carft.method.starft import StarFT

from . import fakes

TERMS = {"sp_weight": 1e-4, "fd_weight": 0.1, "ldifs_weight": 1, "lipsum_weight": 0.1}
TERMS |= {"miro_weight": 0.1, "grad_clip": 1, "average": "ema", "micro_batch": 4}


def train_arguments(
    images: Path, folder: Path, algorithm: str = "CARFT", **changed: object
) -> list[str]:
    hparams = {"batch_size": 4, "clip_backbone": "tiny", "contexts": "emoji", "total_steps": 5}
    hparams |= {"warmup_steps": 0, "lr": 1e-3, **(TERMS if algorithm == "CARFT" else {}), **changed}
    fixed = ("--algorithm", algorithm, "--steps", "5", "--hparams", json.dumps(hparams))
    return fakes.quick_arguments(folder, *fixed, "--dataset", str(images))


def train_job(size: int, arguments: list[str], **begin) -> list[int]:
    """Train a job in several processes, with torchrun's variables, and return the exit statuses.

    The second process first calls the function `begin`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    processes = [
        fakes.start_train(
            arguments, RANK=str(n), LOCAL_RANK=str(n), **shared, **(begin if n == 1 else {})
        )
        for n in range(size)
    ]
    return [fakes.wait_for(process) for process in processes]


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(folder / "model.pkl", weights_only=True)
    return weights["model_dict"]


def assert_same(folder: Path, alone: Path) -> None:
    """Assert that two jobs have equal records and weights, up to the rounding of sums."""
    records = zip(fakes.comparable_records(folder), fakes.comparable_records(alone), strict=True)
    for record, expected in records:
        for facts in (record, expected):
            del facts["device"]
            facts.update(facts.pop("args"), **facts.pop("hparams"))
        numbers, expected_numbers = (
            {name: value for name, value in facts.items() if isinstance(value, float)}
            for facts in (record, expected)
        )
        assert numbers == pytest.approx(expected_numbers, rel=1e-3, abs=1e-5)
        assert {**record, **numbers} == {**expected, **numbers}

    weights, expected_weights = load_weights(folder), load_weights(alone)
    assert [*weights] == [*expected_weights]
    for name, weight in weights.items():
        expected_weight = expected_weights[name]
        # The gradients of keys' biases are 0, and Adam amplifies their rounding errors.
        if name.endswith("in_proj_bias"):
            for bias in (weight, expected_weight):
                bias.view(3, -1)[1] = 0.0
        torch.testing.assert_close(weight, expected_weight, rtol=1e-3, atol=2e-5)
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory) -> Path:
    """Train a job in one process; its losses differ by far more than rounding errors."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    assert fakes.wait_for(fakes.start_train(train_arguments(images, folder))) == 0
    losses = [record["loss"] for record in fakes.records(folder)]
    assert max(losses) - min(losses) > 0.05
    return folder


@pytest.mark.parametrize("size", [2, 3])
def test_batch_slices_of_all_processes_add_up_to_the_batches_of_one(images, size):
    args = train.parse(train_arguments(images, Path("unused")))[0]
    given = checks.parse_hparams(args.hparams)
    algorithm_class = algorithms.get_algorithm_class(args.algorithm)
    hparams = algorithm_class.resolve_hparams(args.dataset, given, steps=args.steps).values
    _, environments = preparation.load_environments(args, hparams)
    splits = [environment.in_split for environment in environments]
    evaluated = {"a": splits[0], "b": torch.utils.data.Subset(splits[1], [3])}

    def batches(process_group):
        torch.manual_seed(0)
        loaded = fast_data_loader.JobBatches(
            splits, evaluated, hparams, 1, 1, 0, "cpu", process_group, by_plan=True
        )
        loaded.begin(0, False, False, 0)
        evaluations = (loaded.split_batches(split) for split in evaluated.values())
        return [*loaded.step_batches(), *itertools.chain(*evaluations)]

    slices = [batches(ProcessGroup(rank, size)) for rank in range(size)]
    expected = batches(ProcessGroup())
    for batch, *parts in itertools.zip_longest(expected, *slices):
        for n in (0, 1):
            assert torch.equal(batch[n], torch.cat([part[n] for part in parts if part]))
    # The last batch has one image, for one of the processes.
    lengths = [len(process_slices) for process_slices in slices]
    assert sorted(lengths) == [*[len(expected) - 1] * (size - 1), len(expected)]


def send_signal_in_third_step() -> None:
    """Make this process send itself SIGUSR1 in its third step."""
    original = CLIPAlgorithm.step_on_device
    steps = itertools.count(1)

    def step_on_device(self, minibatches):
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, minibatches)

    CLIPAlgorithm.step_on_device = step_on_device


def test_signal_to_one_process_stops_all_and_more_processes_resume(images, alone, tmp_path):
    arguments = train_arguments(images, tmp_path / "job")
    assert train_job(2, arguments, begin=send_signal_in_third_step) == [75, 75]
    message = (tmp_path / "job" / "err.txt").read_text().splitlines()[-1]
    assert message == "train: stopped by SIGUSR1; to resume, rerun the command"
    assert train_job(3, arguments) == [0, 0, 0]
    assert_same(tmp_path / "job", alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "hparams"),
    [
        ("CLIPLPFT", {"lp_steps": 2, "average": "swad", "swad_converge": 1}),
        ("CLIPZeroShot", {}),
    ],
)
def test_two_processes_train_to_the_weights_of_one_process(images, tmp_path, algorithm, hparams):
    for size in (1, 2):
        arguments = train_arguments(images, tmp_path / str(size), algorithm, **hparams)
        assert train_job(size, arguments) == [0] * size
    assert_same(tmp_path / "2", tmp_path / "1")


@pytest.mark.gpu
def test_two_gpus_train_to_the_weights_of_one_gpu(images, tmp_path):
    if devices.gpu_count() < 2:
        pytest.skip("needs two GPUs")
    for size in (1, 2):
        assert train_job(size, train_arguments(images, tmp_path / str(size))) == [0] * size
    one_step = [*train_arguments(images, tmp_path / "begun"), "--steps", "1"]
    assert train_job(1, one_step) == [0]

    one, two, start = (load_weights(tmp_path / name) for name in ("1", "2", "begun"))
    change, difference = (
        sum(float((weights[name] - one[name]).square().sum()) for name in one)
        for weights in (start, two)
    )
    # A tenth of the change by training: GPU kernels add up in any order.
    assert difference <= 0.01 * change


def change_facts() -> None:
    original = CARFT.recorded_facts
    CARFT.recorded_facts = lambda self: {**original(self), "amp": "bf16"}


def break_step() -> None:
    def step_on_device(self, minibatches):
        raise RuntimeError("broken on purpose")

    CLIPAlgorithm.step_on_device = step_on_device


@pytest.mark.parametrize(
    ("begin", "status", "message"),
    [
        (break_step, 1, "train: process 1 of 2: Traceback"),
        (change_facts, 2, "process 1 of 2 has other settings than the first: amp is 'bf1"),
    ],
)
def test_first_process_reports_the_error_of_another(images, tmp_path, begin, status, message):
    arguments = train_arguments(images, tmp_path / "job")
    assert train_job(2, arguments, begin=begin) == [status, status]
    err = (tmp_path / "job" / "err.txt").read_text()
    assert message in err
    assert err.endswith("\nRuntimeError: broken on purpose\n") == (begin is break_step)


class CustomStep(CARFT):
    """Overrides the step without support for slices of batches."""

    def update(self, minibatches, unlabeled=None):
        return super().update(minibatches)


@pytest.mark.parametrize(
    ("algorithm_class", "batch_size", "reason"),
    [
        (CARFT, 2, "batches of 2 images cannot be trained by 3 processes"),
        (StarFT, 4, "StarFT cannot be trained by 3 processes: its KL draws captions"),
        (CustomStep, 4, "CustomStep cannot be trained by 3 processes: its step does not add up"),
    ],
)
def test_indivisible_algorithms_and_batches_are_refused(algorithm_class, batch_size, reason):
    hparams = hparams_registry.default_hparams("CARFT", "EmojiStyles")
    hparams |= {"clip_backbone": "tiny", "contexts": "emoji"}
    algorithm = algorithm_class((3, 48, 48), 10, 3, hparams)
    with pytest.raises(CarftError, match=reason):
        attach_process_group(algorithm, ProcessGroup(0, 3), batch_size)


def start_two(arguments: list[str]) -> tuple[BaseProcess, int]:
    """Start a job with `--processes 2`; return its first process and the second one's id."""
    first = fakes.start_train([*arguments, "--processes", "2"])
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
    wait_until(children.read_text)
    (second,) = map(int, children.read_text().split())
    return first, second


@pytest.mark.parametrize(
    ("killed", "status"), [("second", 1), pytest.param("first", -9, marks=pytest.mark.slow)]
)
def test_killed_process_ends_all_and_the_job_resumes(images, alone, tmp_path, killed, status):
    arguments = train_arguments(images, tmp_path / "job")
    first, second = start_two(arguments)
    wait_until((tmp_path / "job" / "state.pt").exists)
    os.kill(first.pid if killed == "first" else second, signal.SIGKILL)
    assert fakes.wait_for(first) == status

    wait_until(lambda: not Path(f"/proc/{second}").exists())
    assert (tmp_path / "job" / "state.pt").exists()
    lines = (tmp_path / "job" / "err.txt").read_text().splitlines()
    assert lines.count("train: process 1 of 2 was killed by SIGKILL") == (killed == "second")

    assert fakes.wait_for(fakes.start_train(arguments)) == 0
    assert_same(tmp_path / "job", alone)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGKILL, 1)])
def test_process_killed_while_joining_ends_the_job(images, tmp_path, number, status):
    first, second = start_two(train_arguments(images, tmp_path / "job"))
    os.kill(second, number)
    assert fakes.wait_for(first) == status
    message = f"train: process 1 of 2 was killed by {number.name}\n"
    assert (tmp_path / "job" / "err.txt").read_text() == message


@pytest.mark.slow
def test_job_of_torchrun_saves_its_state_when_stopped(images, alone, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    command += ["2", "-m", "domainbed.scripts.train", *train_arguments(images, tmp_path / "job")]
    process = subprocess.Popen(command)
    wait_until((tmp_path / "job" / "state.pt").exists)
    process.terminate()
    assert process.wait() != 0

    message = (tmp_path / "job" / "err.txt").read_text().splitlines()[-1]
    assert message == "train: stopped by SIGTERM; to resume, rerun the command"
    assert subprocess.run(command, check=False).returncode == 0
    assert_same(tmp_path / "job", alone)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "-2"}, "is '-2', expected a whole number of at least 1"),
        ({"WORLD_SIZE": "2", "RANK": "first"}, "is 'first', expected a whole number of at least 0"),
        (
            {"WORLD_SIZE": "2", "MASTER_ADDR": "nowhere.invalid", "MASTER_PORT": "1"},
            "MASTER_ADDR 'nowhere.invalid' does not resolve",
        ),
    ],
)
def test_invalid_variables_of_torchrun_are_refused(
    tmp_path, monkeypatch, capsys, variables, message
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert train.main(fakes.quick_arguments(tmp_path)) == 2
    assert message in capsys.readouterr().err
