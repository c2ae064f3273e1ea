"""`carft evaluate OUT`: the figures of a sweep equal a direct computation from the logits."""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import collect_sweeps
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from runs_jobs import calibration_error, carft, copy_changed, records
from torch.utils.data import DataLoader
from trained_jobs import TINY

import domainbed_carft
from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.images import loading, squares
from domainbed_carft.jobs.records import read
from domainbed_carft.results import metrics
from domainbed_carft.runs import pool, saved, splits, sweep_run, temperature, zero_shot
from domainbed_carft.runs.predictions import LoadingOptions
from domainbed_carft.runs.sweep_run import SweepOptions

TOLERANCE = 1e-9
LAST_STEP = 2


@pytest.fixture(scope="module")
def output(pets, tmp_path_factory):
    """Three jobs, in folders of another order: CARFT with two targets, zero-shot CLIP with one.

    The second target has the same records as the first.
    """
    output = tmp_path_factory.mktemp("sweep") / "OUT"
    shutil.copytree(pets / "CARFT", output / "3")
    shutil.copytree(pets / "CLIPZeroShot", output / "1")

    job = shutil.copytree(pets / "CARFT", output / "2")
    lines = (job / "results.jsonl").read_text().replace('"test_envs": [0]', '"test_envs": [1]')
    (job / "results.jsonl").write_text(lines)
    copy_changed(pets / "CARFT" / "model_best.pkl", job, args={"test_envs": [1]})
    (job / "model.pkl").rename(job / "model_best.pkl")
    copy_changed(pets / "CARFT", job, args={"test_envs": [1]})
    return output


@pytest.fixture(scope="module")
def evaluation(output):
    """The first evaluation, in separate processes."""
    return domainbed_carft.evaluate_sweep(output, device="cpu", workers=0, jobs=2)


@pytest.fixture
def job(evaluation, output, tmp_path):
    """A copy of an evaluated job."""
    return shutil.copytree(output / "3", tmp_path / "OUT" / "3")


@pytest.fixture
def copy(job, output):
    """A copy of the evaluated jobs of the first target."""
    shutil.copytree(output / "1", job.parent / "1")
    return job.parent


def evaluate_again(job, data_dir=None):
    """Evaluate a job at its last step; return True if its images were predicted again."""
    ((recorded,), _) = read([job])
    options = SweepOptions("cpu", workers=0, data_dir=data_dir)
    return sweep_run.measure_recorded_run(recorded, LAST_STEP, options)


def predict_logits(run, split):
    """Return logits (N, K) in float64 and labels (N,)."""
    with torch.no_grad():
        images, labels = next(iter(DataLoader(split.items, 64)))
        return run.algorithm.predict(images).double(), labels


@pytest.mark.parametrize(
    ("scale", "n_wrong", "limit"), [(3.0, 15, None), (1.0, 0, 0.01), (1.0, 50, 100.0)]
)
def test_temperature_is_the_root_of_the_derivative_of_the_likelihood(scale, n_wrong, limit):
    logits = scale * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    labels = logits.argmax(dim=1)
    labels[:n_wrong] = (labels[:n_wrong] + 1) % 3
    fitted = temperature.fit_temperature(logits, labels)
    assert fitted.is_at_limit == (limit is not None) and fitted.images == 50
    if limit:
        assert fitted.value == limit
    else:
        inverse = torch.tensor(1 / fitted.value, dtype=torch.float64, requires_grad=True)
        F.cross_entropy(logits.double() * inverse, labels).backward()
        assert float(inverse.grad) == pytest.approx(0, abs=TOLERANCE)


def test_figures_equal_a_direct_computation(pets, evaluation):
    zero_shot = saved.load_run(pets / "CLIPZeroShot", "last", device="cpu")
    assert {run.selection for run in evaluation.runs} == {"training-domain", "oracle"}
    assert {run.target for run in evaluation.runs} == {0, 1}
    for evaluated in evaluation.runs:
        run = saved.load_run(
            evaluated.folder, "last" if evaluated.step == LAST_STEP else "best", device="cpu"
        )
        target = evaluated.target
        data = {part.name: part for part in splits.read_data(run, is_augmented=False).splits}
        inner = [predict_logits(run, data[f"env{i}_out"]) for i in range(3) if i != target]
        accuracies = [float((x.argmax(1) == y).double().mean()) for x, y in inner]
        assert evaluated.in_domain == pytest.approx(np.mean(accuracies), abs=TOLERANCE)

        figures = evaluated.metrics
        fitted = temperature.fit_temperature(*map(torch.cat, zip(*inner)))
        assert figures.temperature == pytest.approx(fitted.value, rel=TOLERANCE)

        logits, labels = predict_logits(run, data[f"env{target}_in"])
        for measured, scale in ((figures.calibration, 1), (figures.scaled, figures.temperature)):
            scaled = logits / scale
            error = calibration_error(scaled, labels)
            brier = ((scaled.softmax(dim=1) - F.one_hot(labels, 2)) ** 2).sum(dim=1).mean()
            assert measured.ece == pytest.approx(error, abs=TOLERANCE)
            assert measured.nll == pytest.approx(float(F.cross_entropy(scaled, labels)))
            assert measured.brier == pytest.approx(float(brier))

        is_correct = logits.argmax(1) == labels
        by_class = [float(is_correct[labels == label].double().mean()) for label in (0, 1)]
        assert figures.accuracy == pytest.approx(float(is_correct.double().mean()))
        recorded = {record["step"]: record for record in records(Path(evaluated.folder))}
        assert target == 1 or figures.accuracy == recorded[evaluated.step]["env0_in_acc"]
        assert figures.mean_per_class == pytest.approx(np.mean(by_class))
        assert figures.worst_class.accuracy == pytest.approx(min(by_class))

        zero_shot_logits, _ = predict_logits(zero_shot, data[f"env{target}_in"])
        was_correct = zero_shot_logits.argmax(1) == labels
        assert figures.zero_shot_accuracy == pytest.approx(float(was_correct.double().mean()))
        assert figures.flips.gained == int((is_correct & ~was_correct).sum())
        assert figures.flips.lost == int((~is_correct & was_correct).sum())

        cosines = zero_shot_logits / float(zero_shot.algorithm.logit_scale)
        predictions, _ = metrics.load_predictions(
            Path(evaluated.folder), metrics.EvaluationKey(evaluated.step)
        )
        alignment = cosines[torch.arange(len(labels)), labels]
        assert predictions["alignment"] == pytest.approx(alignment.numpy(), abs=1e-6)


def test_runs_are_in_the_order_of_the_tables(evaluation):
    runs = [(run.selection, run.algorithm, run.target) for run in evaluation.runs]
    expected = [("CARFT", 0), ("CARFT", 1), ("CLIPZeroShot", 0)]
    assert runs == [(method, *run) for method in ("training-domain", "oracle") for run in expected]


def test_damaged_predictions_are_measured_again_with_equal_bytes(job):
    assert not evaluate_again(job)
    damaged = job / f"evaluation_step{LAST_STEP}.npz"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-100])
    assert evaluate_again(job)
    assert damaged.read_bytes() == content


def change_weights(job, data):
    copy_changed(job, job, model_dict={"head.bias": torch.tensor([0.0, 1.0])})


def touch_images(job, data):
    for image in data.rglob("*.png"):
        os.utime(image, (0, 0))


@pytest.mark.parametrize("changed", ["clip", "contexts"])
def test_cached_zero_shot_predictions_are_not_those_of_another_model_or_input(
    pets, tmp_path, monkeypatch, changed
):
    run = saved.load_run(pets / "CARFT", "last", device="cpu")
    data = splits.read_data(run, is_augmented=False)
    options = LoadingOptions(torch.device("cpu"), workers=0)

    def predict(run, original, cache):
        monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(tmp_path / cache))
        return zero_shot.predict_zero_shot(run, data, data.splits[0], options, original)

    if changed == "clip":
        state = torch.load(TINY, weights_only=True)
        torch.save({**state, "visual.proj": -state["visual.proj"]}, tmp_path / "other.pt")
        digest = hashlib.sha256((tmp_path / "other.pt").read_bytes()).hexdigest()
        other = dataclasses.replace(run, hparams={**run.hparams, "clip_digest": digest})
        original = str(tmp_path / "other.pt")
    else:
        contexts = ["a {}.", "a photo of something that is not a {}."]
        other, original = dataclasses.replace(run, contexts=contexts), None

    expected = predict(other, original, "cache of the other")
    of_run = predict(run, None, "cache")
    assert not np.allclose(of_run["alignment"], expected["alignment"], atol=1e-4)
    assert np.array_equal(predict(other, original, "cache"), expected)
    assert np.array_equal(predict(run, None, "cache"), of_run)


def touch_images_of_validation(job, data):
    """The temperature is fitted on the out-splits of the training environments."""
    for environment in ("photo", "sketch"):
        touch_images(job, data / environment)


@pytest.mark.parametrize("change", [change_weights, touch_images, touch_images_of_validation])
def test_changed_weights_or_images_are_measured_again(job, pets, tmp_path, change):
    data = shutil.copytree(pets / "my pets", tmp_path / "data")
    assert not evaluate_again(job, str(data))
    change(job, data)
    assert evaluate_again(job, str(data))


def test_missing_figures_are_computed_from_the_predictions_without_weights(job):
    path = job / f"evaluation_step{LAST_STEP}.json"
    expected = path.read_bytes()
    path.unlink()
    for weights in job.glob("model*.pkl"):
        weights.unlink()
    assert not evaluate_again(job)
    assert path.read_bytes() == expected


def test_missing_original_is_an_error_before_any_run(copy):
    with pytest.raises(CarftError, match="original is '/nope', expected an existing file"):
        domainbed_carft.evaluate_sweep(copy, original="/nope", workers=0)


def test_weights_of_another_step_are_never_used(copy, job, capsys):
    first, last = records(job)
    lines = [{**first, "step": 1, "env1_out_acc": 1.0}, {**last, "env1_out_acc": 0.0}]
    (job / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    carft("evaluate", copy, "--jobs", 1, "--select", "training-domain", status=3)
    printed = capsys.readouterr().out
    assert "weights of step 1 were not kept" in printed
    assert "0 runs evaluated, 1 were evaluated before" in printed

    rows = {line.split(",")[0]: line.split() for line in printed.splitlines() if ", art " in line}
    assert rows["CARFT"][2] == "X" != rows["CLIPZeroShot"][2]


def test_json_equals_the_document_of_the_python_api(copy, capsys):
    methods = ["oracle", "training-domain"]
    carft("evaluate", copy, "--json", "--jobs", 1, "--select", ",".join(methods))
    document = json.loads(capsys.readouterr().out)
    assert [run["selection"] for run in document["runs"][::2]] == methods
    assert document["current"] == 4 and document["measured"] == 0

    again = domainbed_carft.evaluate_sweep(copy, device="cpu", workers=0, jobs=1, select=methods)
    assert document == json.loads(json.dumps(dataclasses.asdict(again)))


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        ("evaluate OUT --which last", "--which"),
        ("evaluate . --which last", "--which"),
        ("evaluate .. --which last", "--which"),
        ("evaluate OUT --suite dtd --select oracle", "--select"),
        ("evaluate JOB --select oracle", "--select"),
        ("evaluate JOB --jobs 2", "--jobs"),
        ("evaluate JOB --original x", "--original"),
        ("evaluate --clip tiny --suite dtd --which last", "--which"),
        ("evaluate JOB --clip tiny --suite dtd", "OUT/JOB"),
    ],
)
def test_unused_flags_are_errors(words, flag, tmp_path, monkeypatch, capsys):
    """OUT is a sweep, "." a folder with a sweep, and ".." the folder above; collect reads all."""
    sweep_of_jobs = tmp_path / "above" / "sweeps" / "OUT"
    collect_sweeps.write_job(sweep_of_jobs, "JOB")
    monkeypatch.chdir(sweep_of_jobs.parent)
    with pytest.raises(SystemExit, match="2"):
        cli.main(words.replace("JOB", "OUT/JOB").split())
    assert f"{flag} cannot be used for a" in capsys.readouterr().err


def test_table_names_runs_that_were_not_evaluated(pets, capsys):
    cli.main(["collect", str(pets), "--columns", "average,ece", "--select", "training-domain"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "not evaluated" in printed and "art trial 0" in printed


@pytest.mark.slow
def test_interrupted_evaluation_is_resumed(output, evaluation, tmp_path):
    output = shutil.copytree(output, tmp_path / "OUT")
    for path in output.glob("*/evaluation*"):
        path.unlink()

    words = ["-m", "domainbed_carft", "evaluate", str(output), "--device", "cpu", "--jobs", "1"]
    process = subprocess.Popen([sys.executable, *words])
    while not list(output.glob("*/evaluation*.npz")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait()
    n_measured = len(list(output.glob("*/evaluation*.npz")))

    resumed = domainbed_carft.evaluate_sweep(output, device="cpu", workers=0, jobs=1)
    assert resumed.current == n_measured < resumed.measured + n_measured
    assert [run.metrics for run in resumed.runs] == [run.metrics for run in evaluation.runs]


def fail(folder):
    raise CarftError("no weights", "no data")


def end_process(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def write_result(folder, name):
    (folder / name).write_text("")
    return True


def test_failed_task_or_ended_process_does_not_affect_other_tasks(tmp_path, capsys):
    tasks = {name: functools.partial(write_result, tmp_path, name) for name in "abcdef"}
    tasks["b"] = functools.partial(fail, tmp_path)
    tasks["c"] = functools.partial(end_process, tmp_path)
    ends = pool.run_tasks(tasks, jobs=2)
    assert list(ends) == list(tasks)
    problems = {name: ends.pop(name).problem for name in "bc"}
    assert problems == {"b": "no weights; no data", "c": "the process ended with status -9"}
    assert {*ends.values()} == {pool.TaskEnd(was_measured=True)}
    assert sorted(os.listdir(tmp_path)) == sorted(ends)
    assert "evaluate: c: the process ended" in capsys.readouterr().err


def test_runs_on_the_same_images_decode_them_once(output, tmp_path, monkeypatch):
    """Also if only a part of the images fits into the memory; the results are equal."""
    decoded = []
    decode = loading.decode
    monkeypatch.setattr(loading, "decode", lambda path: decoded.append(path) or decode(path))
    counts = []
    files = []
    for number, limit in enumerate(("1G", "50K", "0")):
        monkeypatch.setenv("DOMAINBED_IMAGE_MEMORY", limit)
        monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(tmp_path / f"cache{number}"))
        squares.get_memory.cache_clear()
        copied = shutil.copytree(output, tmp_path / limit)
        for path in copied.glob("*/evaluation*"):
            path.unlink()
        decoded.clear()
        domainbed_carft.evaluate_sweep(copied, device="cpu", workers=0, jobs=1)
        counts.append(len(decoded))
        files.append([path.read_bytes() for path in sorted(copied.glob("*/evaluation*.npz"))])
    assert counts[0] == len({*decoded}) < counts[1] < counts[2]
    assert files[0] == files[1] == files[2]
