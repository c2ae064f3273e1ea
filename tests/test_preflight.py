"""`carft preflight`: each row with a case that passes and one that is broken on purpose."""

from __future__ import annotations

import csv
import json
import math
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy
import torch
from fake_checkout import REPO

from domainbed_carft import cli
from domainbed_carft.clips import backbone, openai
from domainbed_carft.errors import CarftError, is_out_of_memory
from domainbed_carft.jobs.job import Job
from domainbed_carft.method import objective, prompts
from domainbed_carft.preflight import recipes, rehearsal, steps
from domainbed_carft.preflight import zero_shot_gate as gate
from domainbed_carft.preflight.steps import StepMeasures
from domainbed_carft.preflight.zero_shot_gate import ZeroShot
from domainbed_carft.sweep import declaration_file, preflight_file
from domainbed_carft.sweep.data_checks import DataVerdict
from domainbed_carft.sweep.preflight_file import JobCost, PreflightRow

SMALL_SWEEP = """
name: small
datasets: [EmojiStyles]
algorithms: [CLIPFineTune]
test_environments: {EmojiStyles: [line]}
trials: 1
steps: 51
hparams: {total_steps: 51, batch_size: 4}
"""


def emoji_job(algorithm: str = "CARFT", **hparams: Any) -> Job:
    """A job on the embedded data and CLIP, with small batches."""
    args: dict[str, Any] = {
        "algorithm": algorithm,
        "dataset": "EmojiStyles",
        "data_dir": "embedded",
        "test_envs": [1],
        "hparams": json.dumps({"batch_size": 4, **hparams}),
    }
    args |= {"trial_seed": 0, "hparams_seed": 0, "seed": 0}
    return Job(args, Path("unused"))


def zero_shot_trainer(folder: Path, job: Job) -> Any:
    """The trainer of CLIPZeroShot, with the CLIP and prompts of a job, on all environments."""
    (zero_shot,) = recipes.zero_shot_jobs([job])
    return steps.prepare(zero_shot, {}, folder, targets=range(4))


# Weights and data


def test_the_weights_of_a_clip_need_the_published_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = rehearsal.weights_rows("tiny")
    assert row.state == "pass" and openai.TINY_SHA256 in row.found

    path, digest = openai.published("tiny")
    damaged = tmp_path / "tiny.pt"
    damaged.write_bytes(path.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(openai, "published", lambda name: (damaged, digest))
    with pytest.raises(CarftError, match=str(damaged)):
        [*rehearsal.weights_rows("tiny")]


def test_missing_and_broken_data_fail() -> None:
    missing = DataVerdict("PACS: not checked", missing="PACS is gone", dataset="PACS")
    broken = DataVerdict("VLCS: broken", broken="VLCS has no dogs", dataset="VLCS")
    whole = DataVerdict("OfficeHome: verified, 15,588 pictures", dataset="OfficeHome")

    found = [rehearsal.verdict_row(verdict) for verdict in (missing, broken, whole)]
    assert [row.state for row in found] == ["failure", "failure", "pass"]
    assert [row.name for row in found] == ["data PACS", "data VLCS", "data OfficeHome"]


# Zero-shot gate


def read_figures() -> list[dict[str, str]]:
    """The rows of the package's published figures, as text."""
    path = REPO / "domainbed_carft" / "assets" / "published.csv"
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measured(accuracy: float, pictures: int = 2000, classes: int = 10) -> ZeroShot:
    return ZeroShot.of_counts([round(accuracy / 100 * pictures)], [pictures], classes)


def test_the_gate_shows_every_published_zero_shot_row() -> None:
    by_dataset = {
        name: [row["accuracy"] for row in gate.published_rows(name, "ViT-B/16")]
        for name in ("TerraIncognita", "PACS", "OfficeHome", "EmojiStyles")
    }
    rows_of_file = [row for row in read_figures() if "zero-shot CLIP" in row["method"]]
    for name, accuracies in by_dataset.items():
        expected = [float(row["accuracy"]) for row in rows_of_file if row["dataset"] == name]
        assert accuracies == expected
    # SPG (ECCV 2024), table 1, and of TerraIncognita SBGen (2025), table 1
    lowest = {name: min(accuracies) for name, accuracies in by_dataset.items() if accuracies}
    assert lowest == {"TerraIncognita": 33.4, "PACS": 96.1, "OfficeHome": 81.8}
    highest = max(by_dataset["TerraIncognita"])
    page = " ".join((REPO / "docs" / "preflight.md").read_text().split())
    assert f"({lowest['TerraIncognita']} to {highest} on TerraIncognita)" in page
    assert gate.published_rows("PACS", "ViT-L/14") == []

    published_rows = gate.published_rows("TerraIncognita", "ViT-B/16")
    detail = gate.judge("Terra", measured(33.0), published_rows, "abcd").found
    assert all(f"{row['accuracy']:.1f} ({row['source']})" in detail for row in published_rows)
    assert "prompts abcd" in detail


@pytest.mark.parametrize(
    ("points", "state"),
    [(-0.5, "pass"), (1.0, "pass"), (3.0, "warning"), (9.9, "warning"), (10.1, "failure")],
)
def test_the_gate_warns_below_the_interval_and_fails_ten_points_below(
    points: float, state: str
) -> None:
    """``points``: below the lowest published figure; 2,000 images give an interval of 2."""
    rows_of_file = [row for row in read_figures() if row["method"].startswith("zero-shot CLIP")]
    lowest = min(
        float(row["accuracy"]) for row in rows_of_file if row["dataset"] == "TerraIncognita"
    )
    row = gate.judge(
        "Terra", measured(lowest - points), gate.published_rows("TerraIncognita", "ViT-B/16"), ""
    )
    assert row.state == state
    causes = [row.remedy.find(word) for word in ("names", "edition", "normal", "activ")]
    if state != "pass":
        assert causes == sorted(causes) and causes[0] > 0


@pytest.mark.parametrize(
    ("accuracy", "state"), [(10.5, "failure"), (14.0, "failure"), (40, "pass")]
)
def test_the_gate_fails_near_chance_where_nothing_is_published(accuracy: float, state: str) -> None:
    row = gate.judge("own", measured(accuracy), [], "")
    assert row.state == state
    assert ("chance, which is 10.0%" in row.found) == (state == "failure")


def test_the_interval_is_the_exact_binomial_one() -> None:
    result = ZeroShot.of_counts([30, 10], [50, 50], 10)
    assert result.accuracy == pytest.approx(40.0) and result.pictures == 100
    assert result.low == pytest.approx(100 * scipy.stats.beta.ppf(0.025, 40, 61))
    assert result.high == pytest.approx(100 * scipy.stats.beta.ppf(0.975, 41, 60))


def test_the_gate_measures_what_a_loop_over_the_same_pictures_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "MOST_PICTURES", 120)
    zero_shot = zero_shot_trainer(tmp_path, emoji_job())
    result = gate.measure(zero_shot)

    clip = backbone.load("tiny")
    contexts = prompts.contexts(zero_shot.hparams["contexts"])
    classes = [prompts.clean(name) for name in zero_shot.dataset[0].classes]
    features = backbone.text_features(clip, prompts.prompts(contexts, classes))
    class_weights = objective.zero_shot_weights(features).classes
    accuracies = []
    with torch.no_grad():
        for images in zero_shot.dataset:
            order = list(range(len(images)))
            np.random.RandomState(0).shuffle(order)
            pictures, labels = zip(*(images[position] for position in order[:30]))
            encoded = clip.model.visual(zero_shot_input(torch.stack(pictures)))
            predicted = (encoded @ class_weights.T).argmax(dim=1)
            accuracies.append(float((predicted == torch.tensor(labels)).double().mean()))

    assert result.accuracy == pytest.approx(100 * sum(accuracies) / len(accuracies), abs=0.1)
    assert result.pictures == 120


def zero_shot_input(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures normalised for CLIP in place of ImageNet's mean and deviation."""
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    clips = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    mean, std, clip_mean, clip_std = (
        torch.tensor(values)[:, None, None] for values in (*imagenet, *clips)
    )
    return (pictures * std + mean - clip_mean) / clip_std


def test_wrong_class_names_fail_at_the_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "MOST_PICTURES", 200)
    names = [
        "sock",
        "violin",
        "comet",
        "ladder",
        "onion",
        "anchor",
        "helmet",
        "igloo",
        "kite",
        "pen",
    ]
    row = gate.gate_row(zero_shot_trainer(tmp_path, emoji_job(class_names=names)))
    assert row.state == "failure"


# One step, memory and hours


@pytest.mark.parametrize("algorithm", ["CARFT", "CLIPZeroShot"])
def test_steps_of_a_job_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    monkeypatch.setattr(steps, "SECONDS_ON_PROCESSOR", 0.05)
    trainer = steps.prepare(emoji_job(algorithm), {}, tmp_path)
    measures = steps.measure_steps(trainer)

    assert math.isfinite(measures.loss) and 10**8 < measures.peak_memory < steps.total_memory()
    assert min(measures.steps, measures.with_loading, measures.predictions) > 0
    assert trainer.algorithm.hparams["batch_size"] == 4


OUT_OF_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")


@pytest.mark.usefixtures("quick_parts")
@pytest.mark.parametrize(
    ("measured", "found", "remedy"),
    [
        (OUT_OF_MEMORY, "a step does not fit into the memory of ", "set the hparam micro_batch"),
        (RuntimeError("shapes differ"), "RuntimeError: shapes differ (", "report this error"),
        ([StepMeasures(math.nan, 10**9, 1.0, 1.0, 1.0)], "loss nan, 1.00 GB at most", "lower lr"),
    ],
)
def test_steps_that_do_not_fit_or_diverge_fail_and_have_no_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: Any, found: str, remedy: str
) -> None:
    monkeypatch.setattr(steps, "measure_steps", mock.Mock(side_effect=measured))
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_SWEEP)

    assert cli.main(["preflight", str(path), "--output_dir", str(tmp_path)]) == 1

    preflight = preflight_file.read(tmp_path)
    assert preflight is not None and preflight.hours is None and preflight.costs == []
    (row,) = [row for row in preflight.rows if row.state == "failure"]
    assert row.name == "CLIPFineTune" and found in row.found and remedy in row.remedy


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MemoryError(), torch.OutOfMemoryError("x")])
def test_too_little_memory_is_told_by_several_errors(error: Exception) -> None:
    is_torchs = isinstance(error, torch.OutOfMemoryError)
    assert is_out_of_memory(error) or is_torchs
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_peak_memory_is_that_since_its_beginning() -> None:
    steps.begin_peak()
    before = steps.peak_memory()
    with mmap.mmap(-1, 200_000_000) as held:  # malloc may reuse what the process has
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
        assert steps.peak_memory() - before == pytest.approx(len(held), rel=0.05)


def test_the_slower_of_loading_and_steps_bounds_the_hours() -> None:
    measures = StepMeasures(2.0, 10**9, steps=100, with_loading=100, predictions=300)
    quick = 500.0  # images/s of the loaders where the steps were measured
    assert measures.training_seconds(quick, 400) == pytest.approx(1 / 100)
    assert measures.training_seconds(quick, 50) == pytest.approx(1 / 50)
    assert measures.evaluation_seconds(400) == pytest.approx(1 / 300)

    # Together both were half as fast as the slower one, as where they share the cores.
    shared = StepMeasures(2.0, 10**9, steps=100, with_loading=50, predictions=300)
    assert shared.training_seconds(quick, 200) == pytest.approx(1 / 50)


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
            memory_gb=1.0,
        )
    ]
    hours = rehearsal.hours_of_jobs(jobs, measured, dict(declaration.facts), False)

    facts = declaration.facts["EmojiStyles"]
    by_algorithm = {job.key.algorithm: value for job, value in zip(jobs, hours)}
    steps = declaration.steps_of("EmojiStyles", "CARFT") or facts.steps
    checkpoints = len({*range(0, steps, facts.checkpoint_freq), steps - 1})
    expected = steps * 48 + 0.5 * checkpoints * sum(facts.pictures or ())
    assert by_algorithm["CARFT"] == pytest.approx(expected / 3600)
    assert math.isnan(by_algorithm["CLIPFineTune"]), "nothing was measured of it"

    row = rehearsal.hours_row("of CARFT", [by_algorithm["CARFT"], 1.0])
    assert row.found.endswith(f"in all {expected / 3600 + 1:,.2f} h")
    assert rehearsal.hours_row("of all", hours).state == "skipped"


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


def test_labels_of_recipes_that_differ_in_long_contexts_are_short() -> None:
    contexts = [[f"{'a long context ' * 7}{last} {{}}"] * 10 for last in "ab"]
    jobs = [emoji_job(contexts=texts) for texts in contexts]
    found = recipes.recipes_of(jobs, jobs_of(SMALL_SWEEP)[1])
    assert [recipe.job for recipe in found] == jobs
    assert {len(recipe.label) for recipe in found} == {len("CARFT ") + 60}


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
    assert {job.key.algorithm for job in found} == {"CLIPZeroShot"}


# The rows together


def test_an_error_in_a_part_is_a_failed_row_and_the_rehearsal_goes_on() -> None:
    fine = PreflightRow("part", "first", "pass", "fine")

    def broken() -> Any:
        yield fine
        raise ZeroDivisionError("by zero")

    def refused() -> Any:
        raise CarftError("PACS is missing")
        yield

    first, second = rehearsal.guarded("part", "name", broken)
    assert first == fine and second.state == "failure"
    assert second.found.startswith(f"ZeroDivisionError: by zero ({__file__}:")
    (third,) = rehearsal.guarded("part", "name", refused)
    assert third.found == "PACS is missing"


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        (("pass", "skipped"), "passed"),
        (("pass", "warning"), "warnings"),
        (("warning", "failure", "pass"), "failed"),
    ],
)
def test_the_verdict_is_that_of_the_worst_row(
    tmp_path: Path, states: Sequence[str], verdict: str
) -> None:
    assert saved(tmp_path, rows=rows_of(*states)).verdict == verdict


# preflight.json


def rows_of(*states: Any) -> list[PreflightRow]:
    return [
        PreflightRow("a", "b", state, "c", "" if state == "pass" else "do d") for state in states
    ]


def saved(folder: Path, **changes: Any) -> preflight_file.Preflight:
    """A rehearsal of the declaration `demo`, written into a folder."""
    declaration = declaration_file.load("demo")
    fields: dict[str, Any] = {
        "carft": "1",
        "sweep": "demo",
        "declaration": preflight_file.digest(declaration.text),
        "written": time.time() - 3 * 3600,
        "host": "node",
        "device": "NVIDIA H100",
        "hours": 1.5,
        "rows": [],
        "costs": [
            {
                "variant": "",
                "dataset": "EmojiStyles",
                "algorithm": "CARFT",
                "training_seconds": 3600 / 9792,  # an hour for as many pictures
                "evaluation_seconds": 0.1,
                "memory_gb": 12.25,
            }
        ],
    }
    preflight = preflight_file.Preflight.model_validate({**fields, **changes})
    preflight_file.write(folder, preflight)
    return preflight


def dry_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    arguments = ["sweep", "launch", "demo", "--output_dir", str(folder), "--dry-run"]
    assert cli.main(arguments) == 0
    return capsys.readouterr().out


def test_a_dry_run_shows_the_verdict_its_age_hours_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without = dry_run(tmp_path, capsys)
    assert "Preflight" not in without and "memory GB" not in without

    preflight = saved(tmp_path)
    assert preflight_file.read(tmp_path) == preflight
    shown = dry_run(tmp_path, capsys)
    assert "Preflight: passed, 3 hours ago, on NVIDIA H100." in shown
    assert "expects 1.50 hours in all" in shown
    (carft_line,) = [line for line in shown.splitlines() if " CARFT " in line]
    trained = int(carft_line.split()[5].replace(",", ""))
    assert carft_line.split()[-2:] == [f"{trained / 9792:.2f}", "12.2"]


def test_a_rehearsal_of_another_declaration_says_so_and_gives_no_hours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, declaration="other", rows=rows_of("failure"))
    shown = dry_run(tmp_path, capsys)
    assert "failed, 3 hours ago, on NVIDIA H100, but of another declaration" in shown
    assert "memory GB" not in shown


@pytest.mark.parametrize(
    "change",
    [
        {"written": "yesterday"},
        {"hours": math.nan},
        {"costs": [{"variant": "", "dataset": "", "algorithm": "", "training_seconds": 1e400}]},
        {"rows": {"a": 1}},
        {"version": 2},
    ],
)
def test_a_strangers_file_is_refused_and_the_launch_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any
) -> None:
    saved(tmp_path)
    path = tmp_path / preflight_file.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(CarftError, match="not a readable rehearsal"):
        preflight_file.read(tmp_path)
    assert "not a readable rehearsal" in dry_run(tmp_path, capsys)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b'{"a":'])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / preflight_file.NAME).write_bytes(content)
    with pytest.raises(CarftError, match="not a readable rehearsal"):
        preflight_file.read(tmp_path)


def test_a_pipe_in_its_place_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / preflight_file.NAME)
    with pytest.raises(CarftError, match="not a readable rehearsal .it is a pipe"):
        preflight_file.read(tmp_path)


def test_escapes_of_a_stranger_are_not_printed_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, device="\x1b[31mred\u202e")
    shown = dry_run(tmp_path, capsys)
    assert "\x1b" not in shown and "\u202e" not in shown and "\\x1b[31mred" in shown


# The command


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_SWEEP)
    return path


@pytest.fixture
def quick_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long measurements are left out."""
    monkeypatch.setattr(gate, "MOST_PICTURES", 100)
    monkeypatch.setattr(steps, "SECONDS_ON_PROCESSOR", 0.05)
    monkeypatch.setenv("DOMAINBED_CORES", "1")


@pytest.mark.usefixtures("quick_parts")
def test_the_command_rehearses_a_declared_sweep_and_writes_its_file(
    tmp_path: Path, declared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = ["preflight", str(declared), "--output_dir", str(output)]
    assert cli.main([*arguments, "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((output / preflight_file.NAME).read_text())
    assert [path.name for path in output.iterdir()] == [preflight_file.NAME]

    states = {row["name"]: row["state"] for row in printed["rows"]}
    assert {*states.values()} == {"pass"}
    assert [*states] == [
        *("data EmojiStyles", "CLIP tiny", "EmojiStyles, tiny", "CLIPFineTune"),
        *("on EmojiStyles", "of the sweep"),
    ]
    (cost,) = printed["costs"]
    assert cost["training_seconds"] > 0 and cost["memory_gb"] > 0 and printed["hours"] > 0


@pytest.mark.usefixtures("quick_parts")
def test_missing_data_fails_once_and_what_needs_it_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    arguments = ["preflight", "domainbed", "--data_dir", str(tmp_path / "data"), "--json"]
    assert cli.main([*arguments, "--output_dir", str(tmp_path / "out")]) == 1

    found = json.loads(capsys.readouterr().out)
    failures = [row["name"] for row in found["rows"] if row["state"] == "failure"]
    names = ("VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet")
    assert failures == [f"data {name}" for name in names]
    skipped = {row["name"] for row in found["rows"] if row["state"] == "skipped"}
    assert skipped == {*names, "CARFT", *(f"on {name}" for name in names), "of the sweep"}
    assert found["hours"] is None and found["costs"] == []


@pytest.mark.parametrize(("state", "status"), [("pass", 0), ("warning", 0), ("failure", 1)])
def test_the_exit_status_tells_the_verdict(
    tmp_path: Path,
    declared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    state: str,
    status: int,
) -> None:
    monkeypatch.setattr(rehearsal._Rehearsal, "rows", lambda self: iter(rows_of(state)))
    arguments = ["preflight", str(declared), "--output_dir", str(tmp_path / "out")]
    assert cli.main(arguments) == status
    shown = capsys.readouterr().out
    assert shown.startswith(f"{state:8} a, b: c\n")
    assert ("-> do d" in shown) == (state != "pass") and ("Failed" in shown) == (status == 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--output_dir", "out"], "no sweep is called 'nothing'"),
        (["demo", "--output_dir", "out", "--jobs", "0"], "at least 1"),
    ],
)
def test_wrong_arguments_end_with_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["preflight", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo_passes_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "domainbed_carft", "preflight", "demo", "--json"]
    command += ["--output_dir", "OUT"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    printed = json.loads(done.stdout)
    assert printed["verdict"] == "passed" and printed["hours"] > 0
    assert [path.name for path in (tmp_path / "OUT").iterdir()] == [preflight_file.NAME]
