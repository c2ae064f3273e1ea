"""`carft preflight`: each row with a case that passes and one that is broken on purpose."""

import csv
import json
import math
import os
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy
import torch
from fake_checkout import REPO
from sweep_jobs import carft

from domainbed_carft import cli
from domainbed_carft.clips import openai
from domainbed_carft.errors import CarftError
from domainbed_carft.preflight import recipes, steps
from domainbed_carft.preflight import zero_shot_gate as gate
from domainbed_carft.preflight.steps import StepMeasures
from domainbed_carft.preflight.zero_shot_gate import ZeroShot
from domainbed_carft.sweep import costs, declaration_file, preflight_file
from domainbed_carft.sweep.preflight_file import PreflightRow

SMALL_SWEEP = """
name: small
datasets: [EmojiStyles]
algorithms: [CLIPFineTune]
test_environments: {EmojiStyles: [line]}
trials: 1
steps: 51
hparams: {total_steps: 51, batch_size: 4}
"""


@pytest.fixture(autouse=True)
def quick_parts(monkeypatch):
    """Long measurements are left out."""
    monkeypatch.setattr(gate, "MAX_IMAGES", 120)
    monkeypatch.setattr(steps, "SECONDS_ON_PROCESSOR", 0.05)
    monkeypatch.setenv("DOMAINBED_CORES", "1")


# Zero-shot gate


def published_accuracies(dataset):
    """The published figures of zero-shot CLIP on a dataset, lowest first."""
    path = REPO / "domainbed_carft" / "assets" / "published.csv"
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if "zero-shot CLIP" in row["method"]]
    return sorted(float(row["accuracy"]) for row in rows if row["dataset"] == dataset)


def measured(accuracy, images=2000, classes=10):
    return ZeroShot.of_counts([round(accuracy / 100 * images)], [images], classes)


def test_the_gate_shows_every_published_zero_shot_row():
    # SPG (ECCV 2024), table 1, and of TerraIncognita SBGen (2025), table 1
    lowest = {"TerraIncognita": 33.4, "PACS": 96.1, "OfficeHome": 81.8, "EmojiStyles": None}
    for name, accuracy in lowest.items():
        rows = gate.published_rows(name, "ViT-B/16")
        assert sorted(row["accuracy"] for row in rows) == published_accuracies(name)
        assert min((row["accuracy"] for row in rows), default=None) == accuracy
        found = gate.judge(name, measured(33.0), rows, "abcd").found
        assert "prompts abcd" in found
        assert all(f"{row['accuracy']:.1f} ({row['source']})" in found for row in rows)
    assert gate.published_rows("PACS", "ViT-L/14") == []


@pytest.mark.parametrize(
    ("points", "state"),
    [(-0.5, "pass"), (1.0, "pass"), (3.0, "warning"), (9.9, "warning"), (10.1, "failure")],
)
def test_the_gate_warns_below_the_interval_and_fails_ten_points_below(points, state):
    """``points``: below the lowest published figure; 2,000 images give an interval of 2."""
    accuracy = published_accuracies("TerraIncognita")[0] - points
    rows = gate.published_rows("TerraIncognita", "ViT-B/16")
    row = gate.judge("Terra", measured(accuracy), rows, "")
    assert row.state == state and bool(row.hint) == (state != "pass")


@pytest.mark.parametrize(
    ("accuracy", "state"), [(10.5, "failure"), (14.0, "failure"), (40, "pass")]
)
def test_the_gate_fails_near_chance_where_nothing_is_published(accuracy, state):
    row = gate.judge("own", measured(accuracy), [], "")
    assert row.state == state
    assert ("chance, which is 10.0%" in row.found) == (state == "failure")


def test_the_interval_is_the_exact_binomial_one():
    result = ZeroShot.of_counts([30, 10], [50, 50], 10)
    assert result.accuracy == pytest.approx(40.0) and result.images == 100
    assert result.low == pytest.approx(100 * scipy.stats.beta.ppf(0.025, 40, 61))
    assert result.high == pytest.approx(100 * scipy.stats.beta.ppf(0.975, 41, 60))


def test_the_gate_measures_what_a_loop_over_the_same_images_does(tmp_path):
    declaration = declaration_file.parse(SMALL_SWEEP, "x.yaml")
    (job,) = recipes.zero_shot_jobs(declaration.jobs("embedded", Path("unused")))
    zero_shot = steps.prepare(job, {}, tmp_path, targets=range(4))
    correct = 0
    for images in zero_shot.dataset:
        order = list(range(len(images)))
        np.random.RandomState(0).shuffle(order)
        images, labels = zip(*(images[position] for position in order[:30]))
        predicted = zero_shot.algorithm.predict(torch.stack(images)).argmax(dim=1)
        correct += int((predicted == torch.tensor(labels)).sum())
    result = gate.measure(zero_shot)
    assert result == ZeroShot.of_counts([correct], [120], 10) and 20 < result.accuracy < 100


# One step, memory and hours


def test_the_slower_of_loading_and_steps_bounds_the_hours():
    measures = StepMeasures(2.0, 10**9, steps=100, with_loading=100, predictions=300)
    quick = 500.0  # images/s of the loaders where the steps were measured
    assert measures.training_seconds(quick, 400) == pytest.approx(1 / 100)
    assert measures.training_seconds(quick, 50) == pytest.approx(1 / 50)
    assert measures.evaluation_seconds(400) == pytest.approx(1 / 300)

    # Together both were half as fast as the slower one, as where they share the cores.
    shared = StepMeasures(2.0, 10**9, steps=100, with_loading=50, predictions=300)
    assert shared.training_seconds(quick, 200) == pytest.approx(1 / 50)


VARIANTS = """
name: several
datasets: [EmojiStyles]
algorithms: [CARFT, CLIPFineTune]
trials: 2
variants:
  plain: {}
  slower: {hparams: {lr: 1e-5}}
  larger: {hparams: {batch_size: 64}}
  words: {hparams: {contexts: imagenet7}}
  averaged: {hparams: {average: ema}, algorithms: [CARFT]}
"""


def test_jobs_that_cost_the_same_share_a_rehearsal_and_a_gate():
    declaration = declaration_file.parse(VARIANTS, "test.yaml")
    jobs = declaration.jobs("embedded", Path("out"))
    found = {recipe.label: recipe for recipe in recipes.recipes_of(jobs, declaration.facts)}
    assert "CARFT average='ema'" in found
    plain = found["CLIPFineTune"]
    assert plain.job.variant == "larger"  # the largest batch is rehearsed
    assert {"plain", "slower", "larger"} <= {row[0] for row in plain.rows}
    assert sum(len(recipe.jobs) for recipe in found.values()) == len(jobs)

    gates = recipes.zero_shot_jobs(jobs)
    assert [job.variant for job in gates] == ["plain", "words"]
    assert {job.key.algorithm for job in gates} == {"CLIPZeroShot"}


# preflight.json


def rows_of(*states):
    return [PreflightRow("a", "b", state, "c", "" if state == "pass" else "d") for state in states]


def saved(folder, **changes):
    """A rehearsal of the declaration `demo`, written into a folder."""
    cost = {"variant": "", "dataset": "EmojiStyles", "algorithm": "CARFT", "memory_gb": 12.25}
    cost |= {"training_seconds": 3600 / 9792, "evaluation_seconds": 0.1}  # an hour's images
    fields = {
        "carft": "1",
        "sweep": "demo",
        "declaration": preflight_file.digest(declaration_file.load("demo").text),
        "written": time.time() - 3 * 3600,
        "host": "node",
        "device": "NVIDIA H100",
        "hours": 1.5,
        "rows": [],
        "costs": [cost],
    }
    preflight = preflight_file.Preflight.model_validate({**fields, **changes})
    preflight_file.write(folder, preflight)
    return preflight


def dry_run(folder):
    done = carft("launch", "demo", "--output_dir", folder, "--dry-run")
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        (("pass", "skipped"), "passed"),
        (("pass", "warning"), "warnings"),
        (("warning", "failure", "pass"), "failed"),
    ],
)
def test_the_verdict_is_that_of_the_worst_row(tmp_path, states, verdict):
    assert saved(tmp_path, rows=rows_of(*states)).status == verdict


def test_a_dry_run_shows_the_verdict_its_age_hours_and_memory(tmp_path):
    without = dry_run(tmp_path)
    assert "Preflight" not in without and "memory GB" not in without

    preflight = saved(tmp_path)
    assert preflight_file.read(tmp_path) == preflight
    shown = dry_run(tmp_path)
    assert "Preflight: passed, 3 hours ago, on NVIDIA H100." in shown
    assert "expects 1.50 hours in all" in shown
    (carft_line,) = [line for line in shown.splitlines() if " CARFT " in line]
    trained = int(carft_line.split()[5].replace(",", ""))
    assert carft_line.split()[-2:] == [f"{trained / 9792:.2f}", "12.2"]


def test_a_rehearsal_of_another_declaration_says_so_and_gives_no_hours(tmp_path):
    saved(tmp_path, declaration="other", rows=rows_of("failure"), device="\x1b[31mred\u202e")
    shown = dry_run(tmp_path)
    assert "failed, 3 hours ago, on \\x1b[31mred" in shown and not {"\x1b", "\u202e"} & {*shown}
    assert "but of another declaration" in shown and "memory GB" not in shown


@pytest.mark.parametrize(
    "change",
    [
        {"written": "yesterday"},
        {"hours": math.nan},
        {"costs": [{"variant": "", "dataset": "", "algorithm": "", "training_seconds": 1e400}]},
        {"version": 2},
        b"[1]",
        b"\xff\xfe",
        "a pipe",
    ],
)
def test_a_strangers_file_is_refused_and_the_launch_goes_on(tmp_path, change):
    path = tmp_path / preflight_file.NAME
    if change == "a pipe":
        os.mkfifo(path)
    elif isinstance(change, bytes):
        path.write_bytes(change)
    else:
        saved(tmp_path)
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))

    with pytest.raises(CarftError, match="not a readable preflight"):
        preflight_file.read(tmp_path)
    assert "not a readable preflight" in dry_run(tmp_path)


# The command


@pytest.fixture
def declared(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_SWEEP)
    return path


def test_the_command_rehearses_a_declared_sweep_and_writes_its_file(tmp_path, declared, capsys):
    output = tmp_path / "out"
    assert cli.main(["preflight", str(declared), "--output_dir", str(output), "--json"]) == 0

    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((output / preflight_file.NAME).read_text())
    assert [path.name for path in output.iterdir()] == [preflight_file.NAME]

    assert {row["name"]: row["state"] for row in printed["rows"]} == dict.fromkeys(
        (
            *("data EmojiStyles", "CLIP tiny", "EmojiStyles, tiny", "CLIPFineTune"),
            *("on EmojiStyles", "of the sweep"),
        ),
        "pass",
    )
    assert openai.TINY_SHA256 in "".join(row["found"] for row in printed["rows"])
    (cost,) = printed["costs"]
    assert 0.1 < cost["memory_gb"] < steps.total_memory() / 1e9

    # 51 steps of 4 images of each of 3 environments; evaluated without training in-splits.
    declaration = declaration_file.parse(SMALL_SWEEP, "x.yaml")
    (job,) = declaration.jobs("embedded", output)
    evaluated = costs.estimate_job_cost(job, declaration.facts["EmojiStyles"], True).evaluated
    seconds = cost["training_seconds"] * 51 * 12 + cost["evaluation_seconds"] * evaluated
    assert printed["hours"] == pytest.approx(seconds / 3600) and seconds > 0


@pytest.mark.parametrize(
    ("measured", "found", "remedy"),
    [
        (RuntimeError("CUDA out of memory"), "does not fit into the memory of ", "micro_batch"),
        (MemoryError(), "does not fit into the memory of ", "micro_batch"),
        (RuntimeError("shapes differ"), "RuntimeError: shapes differ (", "report this error"),
        ([StepMeasures(math.nan, 10**9, 1.0, 1.0, 1.0)], "loss nan, 1.00 GB at most", "lower lr"),
    ],
)
def test_steps_that_do_not_fit_or_diverge_fail_and_have_no_hours(
    tmp_path, declared, monkeypatch, measured, found, remedy
):
    monkeypatch.setattr(steps, "measure_steps", mock.Mock(side_effect=measured))
    assert cli.main(["preflight", str(declared), "--output_dir", str(tmp_path)]) == 1

    preflight = preflight_file.read(tmp_path)
    assert preflight.hours is None and preflight.costs == []
    (row,) = [row for row in preflight.rows if row.state == "failure"]
    assert row.name == "CLIPFineTune" and found in row.found and remedy in row.hint


def test_missing_data_fails_once_and_what_needs_it_is_skipped(tmp_path, capsys):
    arguments = ["preflight", "domainbed", "--data_dir", str(tmp_path), "--json"]
    assert cli.main([*arguments, "--output_dir", str(tmp_path / "out")]) == 1

    found = json.loads(capsys.readouterr().out)
    failures = [row["name"] for row in found["rows"] if row["state"] == "failure"]
    names = ("VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet")
    assert failures == [f"data {name}" for name in names]
    skipped = {row["name"] for row in found["rows"] if row["state"] == "skipped"}
    assert skipped == {*names, "CARFT", *(f"on {name}" for name in names), "of the sweep"}
    assert found["hours"] is None and found["costs"] == []
