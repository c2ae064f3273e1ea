"""`carft preflight`: steps, memory, speed, cost, resuming, ranks and SLURM, whole and broken."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import mmap
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_jobs import missing_slurm
from test_preflight import (
    SMALL_SWEEP,
    emoji_job,
    job_on_folder,
    saved,
    state_of,
    write_pictures,
)

from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.jobs.job import Job
from domainbed_carft.launchers import slurm as slurm_launcher
from domainbed_carft.preflight import (
    cards,
    cost,
    prepared_job,
    process_rows,
    recipes,
    resume_row,
    slurm_job,
    speed,
    step_rows,
)
from domainbed_carft.preflight import device as job_device
from domainbed_carft.preflight.prepared_job import PreparedJob
from domainbed_carft.preflight.speed import StepSpeed
from domainbed_carft.preflight.step_rows import MemoryUse, TrainedStep
from domainbed_carft.sweep import declaration_file, host, preflight_file
from domainbed_carft.sweep.preflight_file import JobCost

OUT_OF_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedJob:
    """CARFT on the embedded data, with batches of four pictures a domain."""
    return prepared_job.prepare(emoji_job(), {}, tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def step(prepared: PreparedJob) -> TrainedStep:
    return TrainedStep.of(prepared)


# One step


def test_a_loss_that_is_another_on_the_device_fails(
    prepared: PreparedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = step_rows.loss_row("CARFT", prepared)
    assert state_of(whole) == "pass"
    assert whole.figures["loss"] == whole.figures["reference"], "both are of the processor"

    build = PreparedJob.build_algorithm

    def with_broken_head(self: PreparedJob, device: Any, changed: Any = None) -> Any:
        algorithm = build(self, device, changed)
        if changed is None:  # the one on the device
            algorithm.head_factor.mul_(0.5)
        return algorithm

    monkeypatch.setattr(PreparedJob, "build_algorithm", with_broken_head)
    broken = step_rows.loss_row("CARFT", prepared)
    assert state_of(broken) == "failure" and "another on this device" in broken.finding.detail


@pytest.mark.parametrize(
    ("loss", "precision", "state"),
    [
        (2.09, "bf16", "pass"),
        (2.25, "bf16", "failure"),
        (2.015, "off", "pass"),
        (2.09, "off", "failure"),
        (math.nan, "bf16", "failure"),
        (math.inf, "off", "failure"),
    ],
)
def test_a_loss_has_to_be_finite_and_within_the_tolerance_of_its_precision(
    loss: float, precision: str, state: str
) -> None:
    """A twentieth of 2 nats in bf16, a hundredth of them in float32."""
    row = step_rows.judge_loss("CARFT", loss, reference=2.0, precision=precision)
    assert state_of(row) == state
    assert json.dumps(row.as_dict(), allow_nan=False)


def test_gradients_that_are_not_finite_fail(step: TrainedStep) -> None:
    step.take()
    assert state_of(step_rows.gradients_row("CARFT", step.algorithm)) == "pass"

    name, parameter = next(
        (name, p) for name, p in step.algorithm.named_parameters() if p.grad is not None
    )
    parameter.grad[0] = math.nan
    row = step_rows.gradients_row("CARFT", step.algorithm)
    assert state_of(row) == "failure" and f"1 are not finite, the first of {name}" in (
        row.finding.detail
    )


def test_a_wait_for_the_device_inside_a_step_is_found_at_its_line(step: TrainedStep) -> None:
    assert state_of(step_rows.waits_row("CARFT", step.take)) == "pass"

    def take_and_look() -> None:
        values = step.take()
        values["loss"].item()

    row = step_rows.waits_row("CARFT", take_and_look)
    line = take_and_look.__code__.co_firstlineno + 2
    assert state_of(row) == "warning"
    assert f"{__file__}:{line}" in row.finding.detail


def test_waits_of_a_gpu_are_those_that_its_debug_mode_warns_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_device, "has_gpu", lambda: True)
    monkeypatch.setattr(job_device.devices, "refused_waits", lambda mode: contextlib.nullcontext())

    def take() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    row = step_rows.waits_row("CARFT", take)
    assert state_of(row) == "warning" and "at 1 place:" in row.finding.detail


# Memory


def test_the_largest_micro_batch_that_fits_is_found_by_trying() -> None:
    tried: list[int] = []

    def peak_with(size: int) -> int:
        """A card of 1,000 bytes, of which a picture takes 50; torch's error when it is full."""
        tried.append(size)
        if size == 0 or size > 22:
            raise OUT_OF_MEMORY
        return 50 * size

    use = step_rows.find_micro_batch([0, *step_rows.halves(96)], peak_with, limit=900)
    assert tried == [0, 48, 24, 12] and use == MemoryUse(600, 12)
    assert step_rows.find_micro_batch([0], peak_with, limit=900) == MemoryUse(0, None)

    def broken(size: int) -> int:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        step_rows.find_micro_batch([0], broken, limit=900)


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MemoryError(), torch.OutOfMemoryError("x")])
def test_too_little_memory_is_told_by_several_errors(error: Exception) -> None:
    is_torchs = isinstance(error, torch.OutOfMemoryError)
    assert job_device.is_out_of_memory(error) or is_torchs
    assert not job_device.is_out_of_memory(ValueError("out of memory"))


def test_a_batch_that_does_not_fit_fails_with_the_micro_batch_to_set(
    prepared: PreparedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_step = TrainedStep.of(prepared)

    def peak(step: TrainedStep, micro_batch: int) -> int:
        return 10**9 * (micro_batch or 12)

    monkeypatch.setattr(step_rows, "_peak_of_steps", peak)
    monkeypatch.setattr(job_device, "total_memory", lambda: 4 * 10**9)
    row, use = step_rows.memory_row("CARFT", own_step)
    assert use == MemoryUse(3 * 10**9, 3)
    assert state_of(row) == "failure" and "micro_batch to 3" in row.finding.remedy
    assert own_step.algorithm.hparams["micro_batch"] == 3, "further steps are taken so"

    monkeypatch.setattr(job_device, "total_memory", lambda: 10**9 // 2)
    row, use = step_rows.memory_row("CARFT", own_step)
    assert use.micro_batch is None and "batch_size" in row.finding.remedy


def test_the_peak_memory_of_a_step_is_measured(step: TrainedStep) -> None:
    row, use = step_rows.memory_row("CARFT", step)
    assert state_of(row) == "pass" and use.micro_batch == 0
    assert 10**8 < use.peak < job_device.total_memory()

    job_device.begin_peak()
    before = job_device.peak_memory()
    with mmap.mmap(-1, 200_000_000) as held:  # malloc may reuse what the process has
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
        assert job_device.peak_memory() - before == pytest.approx(len(held), rel=0.05)


# Speed and cost


def speed_of(steps: float = 100.0, **changes: Any) -> StepSpeed:
    fields: dict[str, Any] = {"with_loading": steps, "predictions": 3 * steps, "flops": 1e12}
    return StepSpeed(steps=steps, pictures_per_step=96, **{**fields, **changes})


def test_the_loaders_of_a_data_set_are_measured(tmp_path: Path) -> None:
    own = prepared_job.prepare(job_on_folder(write_pictures(tmp_path / "data")), {}, tmp_path)
    assert speed.measure_loading(own, seconds=0.05) > 0


def test_loaders_that_are_slower_than_the_steps_are_a_warning() -> None:
    fast = speed.speed_row("CARFT", speed_of(100), 500, "off")
    slow = speed.speed_row("CARFT", speed_of(100), 60, "off")

    assert [state_of(row) for row in (fast, slow)] == ["pass", "warning"]
    assert "loading bounds it" in slow.finding.detail and "cores" in slow.finding.remedy


@pytest.mark.parametrize(
    ("name", "precision", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.5),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100-SXM4-80GB", "off", 19.5),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("NVIDIA A10G", "bf16", None),
        ("AMD Instinct MI300X", "bf16", 1307.4),
        ("AMD EPYC, 2 cores", "off", None),
    ],
)
def test_the_peak_of_a_card_is_that_of_its_data_sheet(
    name: str, precision: str, teraflops: float | None
) -> None:
    peak = cards.peak_of(name, precision)
    assert (peak and peak.flops) == (teraflops and pytest.approx(teraflops * 1e12))
    assert peak is None or "'s" in peak.source


def test_the_share_of_the_peak_is_operations_a_second_by_the_peak() -> None:
    """192 pictures a second are two steps of 96, of 1e12 operations each."""
    peak = cards.Peak(10e12, "")
    assert speed.share_of_peak(speed_of(192), peak) == pytest.approx(0.2)
    assert speed.share_of_peak(speed_of(192, flops=None), peak) is None


def test_the_operations_of_a_step_are_those_of_its_encoder(tmp_path: Path) -> None:
    """Of the zero-shot CLIP, which only goes forward: counted by hand, layer by layer.

    On a processor torch does not count the products of the attention itself.
    """
    zero_shot = prepared_job.prepare(emoji_job("CLIPZeroShot"), {}, tmp_path)
    measured = speed.measure_steps(TrainedStep.of(zero_shot), seconds=0.01)

    visual = backbone.load("tiny").model.visual
    width, _, side, _ = visual.conv1.weight.shape
    patches = (visual.input_resolution // side) ** 2
    tokens = patches + 1
    multiplications = patches * 3 * side**2 * width
    for _ in visual.transformer.resblocks:
        multiplications += tokens * 12 * width**2
    multiplications += width * visual.output_dim
    pictures = zero_shot.pictures_per_step
    assert measured.flops == pytest.approx(2 * pictures * multiplications, rel=0.02)
    assert min(measured.steps, measured.with_loading, measured.predictions) > 0


def test_hours_on_several_cards_are_those_of_a_queue() -> None:
    hours = [3.0, 1.0, 1.0, 1.0, 2.0]
    assert cost.hours_on_cards(hours, 1) == 8.0
    assert cost.hours_on_cards(hours, 2) == 5.0  # 3 + 2, beside 1 + 1 + 1
    assert cost.hours_on_cards(hours, 8) == 3.0


def test_the_slower_of_loading_and_steps_bounds_the_hours() -> None:
    quick = 500.0  # where the steps were measured
    assert cost.training_seconds(speed_of(100), quick, 400) == pytest.approx(1 / 100)
    assert cost.training_seconds(speed_of(100), quick, 50) == pytest.approx(1 / 50)

    # Together both were half as fast as the slower one, as where they share the cores.
    shared = speed_of(100, with_loading=50)
    assert cost.training_seconds(shared, quick, 200) == pytest.approx(1 / 50)


def test_hours_of_jobs_count_their_steps_and_evaluations() -> None:
    """The demo's jobs: 48 pictures a step, evaluated at their checkpoints."""
    declaration = declaration_file.load("demo")
    jobs = declaration.jobs("embedded", Path("out"))
    measured = [
        JobCost(
            variant="",
            dataset="EmojiStyles",
            algorithm="CARFT",
            training_seconds=1.0,
            evaluation_seconds=0.5,
        )
    ]
    hours = cost.hours_of_jobs(jobs, measured, declaration.facts, skips_training_in_splits=False)

    facts = declaration.facts["EmojiStyles"]
    by_algorithm = {job.key.algorithm: value for job, value in zip(jobs, hours)}
    steps = declaration.steps_of("EmojiStyles", "CARFT") or facts.steps
    checkpoints = len({*range(0, steps, facts.checkpoint_freq), steps - 1})
    expected = steps * 48 + 0.5 * checkpoints * sum(facts.pictures or ())
    assert by_algorithm["CARFT"] == pytest.approx(expected / 3600)
    assert math.isnan(by_algorithm["CLIPFineTune"]), "nothing was measured of it"


def jobs_of(text: str) -> tuple[Sequence[Job], Any]:
    declaration = declaration_file.parse(text, "test.yaml")
    return declaration.jobs("embedded", Path("out")), declaration.facts


def test_jobs_that_cost_the_same_share_a_rehearsal() -> None:
    text = """
name: several
datasets: [EmojiStyles]
algorithms: [CARFT]
trials: 2
variants:
  plain: {}
  slower: {hparams: {lr: 1e-5}}
  larger: {hparams: {batch_size: 64}}
  averaged: {hparams: {average: ema}}
"""
    found = recipes.recipes_of(*jobs_of(text))
    assert [recipe.label for recipe in found] == ["CARFT", "CARFT average='ema'"]
    assert found[0].job.variant == "larger", "the one with the largest batch is rehearsed"
    assert [row[0] for row in found[0].rows] == ["plain", "slower", "larger"]
    assert sum(len(recipe.jobs) for recipe in found) == 4 * 2 * 4


def test_each_clip_and_protocol_of_a_data_set_has_its_zero_shot_gate() -> None:
    text = """
name: several
datasets: [EmojiStyles]
algorithms: [CARFT, CLIPFineTune]
trials: 2
variants:
  plain: {}
  slower: {hparams: {lr: 1e-5}}
  words: {hparams: {contexts: imagenet7}}
"""
    found = recipes.zero_shot_jobs(jobs_of(text)[0])
    assert [job.variant for job in found] == ["plain", "words"]


def test_algorithms_that_read_the_same_data_share_it(prepared: PreparedJob, tmp_path: Path) -> None:
    first = prepared_job.prepare(emoji_job(), {}, tmp_path)
    second = prepared_job.prepare(emoji_job("CLIPFineTune", lr=0.1), {}, tmp_path)
    third = prepared_job.prepare(emoji_job("CLIPFineTune", protocol="clip"), {}, tmp_path)

    assert second.dataset is first.dataset and third.dataset is not first.dataset
    cpu = torch.device("cpu")
    assert third.build_algorithm(cpu).recorded_facts()["protocol"] == "clip"
    rebuilt = prepared_job.prepare(emoji_job("CLIPFineTune", lr=0.1), {}, tmp_path)
    assert rebuilt.build_algorithm(cpu).recorded_facts()["protocol"] == "domainbed"
    assert rebuilt.build_algorithm(cpu).hparams["lr"] == 0.1


# Resume


def test_a_job_that_loses_its_optimizer_when_it_resumes_fails(
    prepared: PreparedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"STEPS": 4, "STOPPED_AFTER": 2, "CHECKPOINT_FREQ": 3, "EVALUATED_PICTURES": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(resume_row, name, value)
    (tmp_path / "whole").mkdir()
    row, outcome = resume_row.resume_row("CARFT", prepared, tmp_path / "whole")
    assert state_of(row) == "pass" and row.figures["distance"] == "0.0"
    assert outcome.state_bytes > outcome.weights_bytes > 10**6

    algorithm_state = host.module("lib.algorithm_state")
    restore = algorithm_state.restore

    def restore_weights_only(algorithm: Any, stored: Any) -> None:
        restore(algorithm, stored)
        algorithm.optimizer.state.clear()

    monkeypatch.setattr(algorithm_state, "restore", restore_weights_only)
    (tmp_path / "broken").mkdir()
    row, _ = resume_row.resume_row("CARFT", prepared, tmp_path / "broken")
    assert state_of(row) == "failure" and float(row.figures["distance"]) > 0.001


@pytest.mark.parametrize(
    ("distance", "is_on_gpu", "state"),
    [
        (0.0, False, "pass"),
        (1e-9, False, "failure"),
        (0.05, True, "pass"),
        (0.2, True, "failure"),
        (math.inf, True, "failure"),
        (math.nan, True, "failure"),
    ],
)
def test_resuming_is_exact_on_a_processor_and_within_a_tolerance_on_a_gpu(
    distance: float, is_on_gpu: bool, state: str
) -> None:
    assert state_of(resume_row.judge("CARFT", distance, is_on_gpu)) == state


def test_a_relative_distance_is_a_share_of_the_way_of_training() -> None:
    untrained = {"w": torch.zeros(4), "steps": torch.tensor(0)}
    trained = {"w": torch.full((4,), 2.0), "steps": torch.tensor(9)}
    resumed = {"w": torch.full((4,), 2.1), "steps": torch.tensor(9)}
    assert resume_row.relative_distance(trained, trained, untrained) == 0.0
    assert resume_row.relative_distance(resumed, trained, untrained) == pytest.approx(0.05)
    assert resume_row.relative_distance({}, trained, untrained) == math.inf
    broken = {"w": torch.full((4,), math.nan), "steps": torch.tensor(9)}
    assert resume_row.relative_distance(broken, trained, untrained) == math.inf


# Several processes


def test_ranks_that_train_something_else_fail(
    prepared: PreparedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_rows.machine, "cores", lambda: 2)

    def ranks_of(changed: dict[str, Any]) -> Any:
        def run_ranks(prepared: PreparedJob, folder: Path) -> str:
            hparams = {**prepared.hparams, **changed}
            build = PreparedJob.build_algorithm
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(PreparedJob, "build_algorithm", lambda s, d: build(s, d, hparams))
                torch.save(process_rows.train(prepared), folder / "ranks.pt")
            return ""

        return run_ranks

    monkeypatch.setattr(process_rows, "_run_ranks", ranks_of({}))
    assert state_of(process_rows.process_row("CARFT", prepared, tmp_path)) == "pass"
    monkeypatch.setattr(process_rows, "_run_ranks", ranks_of({"lr": 2 * prepared.hparams["lr"]}))
    row = process_rows.process_row("CARFT", prepared, tmp_path)
    assert state_of(row) == "failure" and "train something else" in row.finding.detail


def test_a_rank_that_dies_is_reported_with_its_last_line(
    prepared: PreparedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_rows.machine, "cores", lambda: 2)
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho NCCL is missing >&2\nexit 3\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))

    row = process_rows.process_row("CARFT", prepared, tmp_path)
    assert state_of(row) == "failure"
    assert row.finding.detail == "rank 0 ended with 3: NCCL is missing"


def test_ranks_are_skipped_where_there_is_nothing_to_share(
    prepared: PreparedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_rows.machine, "cores", lambda: 1)
    row = process_rows.process_row("CARFT", prepared, tmp_path)
    assert state_of(row) == "skipped" and row.finding.detail == "there is one core"

    monkeypatch.setattr(job_device, "has_gpu", lambda: True)
    monkeypatch.setattr(process_rows.devices, "gpu_count", lambda: 1)
    assert process_rows.reason_against(prepared) == "there is one GPU"


# SLURM


def test_slurm_gets_one_short_job_with_the_resources_of_the_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    submitted: list[Any] = []

    def submit_all(self: Any, sweep: Path, callables: Any, parameters: Any) -> list[str]:
        submitted.append((callables[0].words, parameters))
        saved(output, rows=[], verdict="warnings")
        return ["12"]

    monkeypatch.setattr(slurm_launcher.Slurm, "_submit_all", submit_all)
    monkeypatch.setattr(slurm_launcher.Slurm, "problems", lambda self, sweeps: iter(()))
    monkeypatch.setattr(slurm_launcher, "states", lambda ids: {})

    flags = "--launcher slurm --partition gpu --gpus 1 --cpus 8 --memory_gb 32".split()
    arguments = ["preflight", "demo", "--output_dir", str(output), *flags, "--strict"]
    assert cli.main(arguments) == 3

    ((words, parameters),) = submitted
    assert parameters["partition"] == "gpu" and parameters["gpus_per_node"] == 1
    assert (parameters["cpus_per_task"], parameters["mem"]) == (8, "32768MB")
    assert parameters["additional_parameters"]["time"] == slurm_job.TIME
    assert parameters["job_name"] == "carft-preflight" and "array_parallelism" not in parameters

    settings = [*itertools.takewhile(lambda word: "=" in word, words[1:])]
    variables = dict(setting.split("=", 1) for setting in settings)
    assert words[0] == "env" and variables["DOMAINBED_CORES"] == "8"
    command = list(words[1 + len(variables) :])
    assert command[:4] == [sys.executable, "-m", "domainbed_carft", "preflight"]
    assert command[4:7] == ["demo", "--launcher", "local"]
    assert command[command.index("--output_dir") + 1] == str(output)
    assert "Passed" in capsys.readouterr().out


def test_a_slurm_job_that_writes_nothing_fails_with_the_place_of_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm_launcher.Slurm, "_submit_all", lambda *_: ["12"])
    monkeypatch.setattr(slurm_launcher.Slurm, "problems", lambda self, sweeps: iter(()))
    monkeypatch.setattr(slurm_launcher, "states", lambda ids: {})
    monkeypatch.setattr(slurm_job, "PATIENCE", 0.0)

    output = tmp_path / "out"
    output.mkdir()
    saved(output)  # of an earlier rehearsal, which does not count
    arguments = ["preflight", "demo", "--output_dir", str(output), "--launcher", "slurm"]
    assert cli.main(arguments) == 1
    assert f"{output}/launches/slurm-logs" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(bool(missing_slurm()), reason=missing_slurm())
def test_a_real_slurm_job_rehearses_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = tmp_path / "small.yaml"
    declared.write_text(SMALL_SWEEP)
    output = tmp_path / "out"
    arguments = ["preflight", str(declared), "--output_dir", str(output), "--launcher", "slurm"]

    assert cli.main([*arguments, "--cpus", "1", "--time", "0:50:00", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    del printed["attach"]
    assert printed == json.loads((output / preflight_file.NAME).read_text())
    assert printed["verdict"] == "passed"


@pytest.mark.slow
def test_the_demo_passes_in_a_process_of_its_own(tmp_path: Path) -> None:
    """All rows, with two ranks in further processes; on a processor no other may be skipped."""
    command = [sys.executable, "-m", "domainbed_carft", "preflight", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    skipped = [row["name"] for row in printed["rows"] if row["state"] == "skipped"]
    assert printed["verdict"] == "passed"
    assert skipped == ["CLIPZeroShot: synchronisations"]
    assert {row["section"] for row in printed["rows"]} >= {"resume", "several processes"}
    assert list(tmp_path.iterdir()) == []
