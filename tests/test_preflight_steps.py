"""`carft preflight`: steps, memory, speed and cost, whole and broken."""

from __future__ import annotations

import json
import math
import mmap
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_preflight import (
    SMALL_SWEEP,
    emoji_job,
    job_on_folder,
    state_of,
    write_pictures,
)

from domainbed_carft.errors import is_out_of_memory
from domainbed_carft.jobs.job import Job
from domainbed_carft.preflight import (
    cost,
    prepared_job,
    recipes,
    speed,
    step_rows,
)
from domainbed_carft.preflight import device as job_device
from domainbed_carft.preflight.prepared_job import RehearsedJob
from domainbed_carft.preflight.rows import row_as_dict
from domainbed_carft.preflight.speed import StepSpeed
from domainbed_carft.preflight.step_rows import MemoryUse, TrainedStep
from domainbed_carft.sweep import declaration_file
from domainbed_carft.sweep.preflight_file import JobCost, PrintedRow

OUT_OF_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> RehearsedJob:
    """CARFT on the embedded data, with batches of four pictures a domain."""
    return prepared_job.prepare(emoji_job(), {}, tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def step(prepared: RehearsedJob) -> TrainedStep:
    return TrainedStep.of(prepared)


# One step


def test_a_loss_that_is_another_on_the_device_fails(
    prepared: RehearsedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = step_rows.loss_row("CARFT", prepared)
    assert state_of(whole) == "pass"
    assert whole.figures["loss"] == whole.figures["reference"], "both are of the processor"

    build = RehearsedJob.build_algorithm

    def with_broken_head(self: RehearsedJob, device: Any, changed: Any = None) -> Any:
        algorithm = build(self, device, changed)
        if changed is None:  # the one on the device
            algorithm.head_factor.mul_(0.5)
        return algorithm

    monkeypatch.setattr(RehearsedJob, "build_algorithm", with_broken_head)
    broken = step_rows.loss_row("CARFT", prepared)
    assert state_of(broken) == "failure" and "another on this device" in broken.found


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
    assert json.dumps(row_as_dict(row), allow_nan=False)


def test_gradients_that_are_not_finite_fail(step: TrainedStep) -> None:
    step.take()
    assert state_of(step_rows.gradients_row("CARFT", step.algorithm)) == "pass"

    name, parameter = next(
        (name, p) for name, p in step.algorithm.named_parameters() if p.grad is not None
    )
    parameter.grad[0] = math.nan
    row = step_rows.gradients_row("CARFT", step.algorithm)
    assert state_of(row) == "failure" and f"1 are not finite, the first of {name}" in (row.found)


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
    assert is_out_of_memory(error) or is_torchs
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_batch_that_does_not_fit_fails_with_the_micro_batch_to_set(
    prepared: RehearsedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_step = TrainedStep.of(prepared)

    def peak(step: TrainedStep, micro_batch: int) -> int:
        return 10**9 * (micro_batch or 12)

    monkeypatch.setattr(step_rows, "_peak_of_steps", peak)
    monkeypatch.setattr(job_device, "total_memory", lambda: 4 * 10**9)
    row, use = step_rows.memory_row("CARFT", own_step)
    assert use == MemoryUse(3 * 10**9, 3)
    assert state_of(row) == "failure" and "micro_batch to 3" in row.remedy
    assert own_step.algorithm.hparams["micro_batch"] == 3, "further steps are taken so"

    monkeypatch.setattr(job_device, "total_memory", lambda: 10**9 // 2)
    row, use = step_rows.memory_row("CARFT", own_step)
    assert use.micro_batch is None and "batch_size" in row.remedy


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
    fields: dict[str, Any] = {"with_loading": steps, "predictions": 3 * steps}
    return StepSpeed(steps=steps, pictures_per_step=96, **{**fields, **changes})


def test_the_loaders_of_a_data_set_are_measured(tmp_path: Path) -> None:
    own = prepared_job.prepare(job_on_folder(write_pictures(tmp_path / "data")), {}, tmp_path)
    assert speed.measure_loading(own, seconds=0.05) > 0


def test_loaders_that_are_slower_than_the_steps_are_a_warning() -> None:
    fast = speed.speed_row("CARFT", speed_of(100), 500)
    slow = speed.speed_row("CARFT", speed_of(100), 60)

    assert [state_of(row) for row in (fast, slow)] == ["pass", "warning"]
    assert "loading bounds it" in slow.found and "cores" in slow.remedy


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


def test_recipes_that_differ_in_long_contexts_have_labels_that_a_row_can_have() -> None:
    contexts = [[f"{'a long context ' * 7}{last} {{}}"] * 10 for last in "ab"]
    jobs = [emoji_job(contexts=texts) for texts in contexts]
    found = recipes.recipes_of(jobs, jobs_of(SMALL_SWEEP)[1])
    rows = [
        PrintedRow(section="steps", name=f"{recipe.label}: gradients", state="pass", found="")
        for recipe in found
    ]
    assert len({row.name for row in rows}) == 2
    assert all(row.name.startswith("CARFT contexts=['a long context a lo") for row in rows)


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


def test_algorithms_that_read_the_same_data_share_it(
    prepared: RehearsedJob, tmp_path: Path
) -> None:
    first = prepared_job.prepare(emoji_job(), {}, tmp_path)
    second = prepared_job.prepare(emoji_job("CLIPFineTune", lr=0.1), {}, tmp_path)
    third = prepared_job.prepare(emoji_job("CLIPFineTune", protocol="clip"), {}, tmp_path)

    assert second.job.dataset is first.job.dataset and third.job.dataset is not first.job.dataset
    cpu = torch.device("cpu")
    assert third.build_algorithm(cpu).recorded_facts()["protocol"] == "clip"
    rebuilt = prepared_job.prepare(emoji_job("CLIPFineTune", lr=0.1), {}, tmp_path)
    assert rebuilt.build_algorithm(cpu).recorded_facts()["protocol"] == "domainbed"
    assert rebuilt.build_algorithm(cpu).hparams["lr"] == 0.1


@pytest.mark.slow
def test_the_demo_passes_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "domainbed_carft", "preflight", "demo", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert printed["verdict"] in ("passed", "warnings")
    # A busy machine may be short of memory or load slowly; nothing else is its fault.
    not_passed = [row for row in printed["rows"] if row["state"] != "pass"]
    assert all(
        row["state"] == "warning"
        and (row["section"] == "speed and cost" or row["name"] == "device memory")
        for row in not_passed
    ), not_passed
    assert list(tmp_path.iterdir()) == []
