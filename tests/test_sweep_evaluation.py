"""`carft evaluate OUT`: the figures of a sweep, against another computation from the logits."""

import contextlib
import functools
import io
import json
import math
import os
import shutil
import signal
import time
from pathlib import Path

import collect_sweeps
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import warm
from evaluated_sweeps import train_sweep
from runs_jobs import carft
from torch.utils.data import DataLoader

import domainbed_carft
from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.method import prompts
from domainbed_carft.results import collection, evaluations, selection
from domainbed_carft.runs import saved, splits, sweep, sweep_job
from domainbed_carft.runs.sweep import SweepOptions, evaluate_sweep

OPTIONS = SweepOptions(device="cpu", workers=0, jobs=1)
TOLERANCE = 1e-9


def run_here(command, slot, children):
    """What a process for one run does, without the seconds that a new one takes to start."""
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        status = sweep_job.main(command[3:])
    return sweep.End(status, stderr.getvalue().strip())


@pytest.fixture(scope="module", autouse=True)
def in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "run_process", run_here)
        yield patch


@pytest.fixture(scope="module")
def output(tmp_path_factory, in_this_process):
    return train_sweep(tmp_path_factory.mktemp("sweep"), ("CARFT", "CLIPZeroShot"))


@pytest.fixture(scope="module")
def evaluation(output):
    """What a first evaluation finds."""
    return evaluate_sweep(output, OPTIONS)


@pytest.fixture
def copy(evaluation, tmp_path):
    """A copy of the evaluated sweep of one target, to be damaged; its rows are true."""
    output = tmp_path / "OUT"
    for folder in {run.folder for run in evaluation.runs if run.selected.target == 0}:
        shutil.copytree(folder, output / folder.name)
    assert evaluate_sweep(output, OPTIONS).measured == 0
    return output


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def batches(items):
    with torch.no_grad():
        yield from DataLoader(items, 64)


def logits_of(run, items):
    """Logits (N, K) and labels (N,), in float64, batch by batch as the command predicts."""
    pairs = [(run.algorithm.predict(x).double().numpy(), y.numpy()) for x, y in batches(items)]
    return tuple(map(np.concatenate, zip(*pairs)))


@functools.cache
def tiny():
    """The original CLIP."""
    return backbone.load("tiny")


@functools.cache
def zero_shot_weights(contexts, classes):
    """A vector for each class by the original CLIP's text encoder, (K, D)."""
    clip = tiny()
    tokens = [clip.tokenize(row) for row in prompts.prompts(contexts, classes)]
    with torch.no_grad():
        texts = torch.stack([F.normalize(clip.model.encode_text(row), dim=-1) for row in tokens])
        return F.normalize(texts.mean(dim=0), dim=-1)


def zero_shot_of(run, data, split):
    """Class and alignment by the original CLIP and its text encoder, of a split's pictures."""
    clip = tiny()
    weights = zero_shot_weights(tuple(run.contexts), tuple(run.classes))
    with torch.no_grad():
        whole = data.items(split.number, range(len(data.dataset[split.number])))
        pairs = [
            (F.normalize(clip.model.encode_image(run.algorithm.input(x)), dim=-1) @ weights.T, y)
            for x, y in batches(whole)
        ]
    cosines, labels = (torch.cat(column).numpy() for column in zip(*pairs))
    positions = splits.positions_in_environment(split)
    alignment = cosines[np.arange(len(labels)), labels].astype(np.float64)
    return cosines.argmax(axis=1)[positions], alignment[positions]


def best_temperature(logits, labels):
    """The root of the derivative of the likelihood, by bisection in the inverse temperature."""

    def slope(inverse):
        mean = (softmax(inverse * logits) * logits).sum(axis=1)
        return (mean - logits[np.arange(len(labels)), labels]).mean()

    low, high = 1 / 100, 100.0
    if slope(high) <= 0:
        return 1 / high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / low


def calibration_of(probabilities, labels):
    """ECE bin by bin, NLL and Brier score picture by picture."""
    confidences = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == labels
    ece = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(is_right[inside].mean() - confidences[inside].mean())

    nll = np.mean([-math.log(row[label]) for row, label in zip(probabilities, labels)])
    one_hot = np.eye(probabilities.shape[1])[labels]
    brier = np.mean(((probabilities - one_hot) ** 2).sum(axis=1))
    return ece, nll, brier


def assert_equal_figures(evaluated):
    """All figures of an evaluated run, from its weights and pictures."""
    which = "last" if evaluated.method == "oracle" else "best"
    run = saved.open_run(evaluated.folder, which)
    data = splits.read_data(run, is_augmented=False)
    (target,) = (part for part in data.splits if part.is_target and part.name.endswith("_in"))
    validation = [
        logits_of(run, part.items)
        for part in data.splits
        if not part.is_target and part.name.endswith("_out")
    ]
    shares = [(logits.argmax(axis=1) == labels).mean() for logits, labels in validation]
    assert evaluated.figures.in_domain == pytest.approx(np.mean(shares), abs=TOLERANCE)
    temperature = best_temperature(*map(np.concatenate, zip(*validation)))
    assert evaluated.on_target.temperature == pytest.approx(temperature, rel=TOLERANCE)

    logits, labels = logits_of(run, target.items)
    figures = evaluated.on_target
    for measured, scale in ((figures.calibration, 1), (figures.scaled, temperature)):
        expected = calibration_of(softmax(logits / scale), labels)
        assert (measured.ece, measured.nll, measured.brier) == pytest.approx(
            expected, rel=TOLERANCE, abs=TOLERANCE
        )

    is_right = logits.argmax(axis=1) == labels
    by_class = [is_right[labels == label].mean() for label in np.unique(labels)]
    assert figures.accuracy == pytest.approx(is_right.mean(), abs=TOLERANCE)
    assert figures.mean_per_class == pytest.approx(np.mean(by_class), abs=TOLERANCE)
    assert figures.worst_class.accuracy == pytest.approx(min(by_class), abs=TOLERANCE)

    zero_shot, alignment = zero_shot_of(run, data, target)
    was_right = zero_shot == labels
    assert figures.zero_shot_accuracy == pytest.approx(was_right.mean(), abs=TOLERANCE)
    assert (figures.flips.gained, figures.flips.lost) == (
        (is_right & ~was_right).sum(),
        (~is_right & was_right).sum(),
    )
    rows, _ = evaluations.load_rows(evaluated.folder, evaluated.step)
    assert rows.alignment == pytest.approx(alignment, abs=1e-6)


def test_all_figures_equal_an_independent_computation(evaluation):
    assert {run.method for run in evaluation.runs} == {"training-domain", "oracle"}
    for evaluated in evaluation.runs:
        assert_equal_figures(evaluated)


@pytest.mark.slow
def test_all_figures_of_16_jobs_equal_an_independent_computation(tmp_path):
    algorithms = ("CARFT", "CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot")
    output = train_sweep(tmp_path, algorithms, trials=(0, 1))
    evaluation = evaluate_sweep(output, OPTIONS)
    assert len(evaluation.runs) == 32 and not evaluation.problems
    for evaluated in evaluation.runs:
        assert_equal_figures(evaluated)


def test_the_accuracy_is_that_of_the_tables(output, evaluation):
    gathered = collection.gather([output])
    (group,) = gathered.groups
    expected = [
        (method, chosen.algorithm, chosen.target, chosen.outcome.accuracy)
        for method in gathered.methods
        for chosen in selection.select(group.runs, method)
    ]
    found = [
        (run.method, run.selected.row, run.selected.target, run.on_target.accuracy)
        for run in evaluation.runs
    ]
    assert found == sorted(expected, key=lambda row: (row[0] != expected[0][0], row[1:]))


def test_zero_shot_clip_flips_nothing_against_itself(evaluation):
    for run in evaluation.runs:
        if run.selected.row == "CLIPZeroShot":
            assert (run.on_target.flips.gained, run.on_target.flips.lost) == (0, 0)
            assert run.on_target.accuracy == run.on_target.zero_shot_accuracy


def test_a_damaged_file_is_measured_again_and_equal_to_the_byte(copy):
    damaged, *_ = sorted(copy.glob("*/evaluation_step*.npz"))
    content = damaged.read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    damaged.write_bytes(flipped)

    assert evaluate_sweep(copy, OPTIONS).measured == 1
    assert damaged.read_bytes() == content


def test_other_weights_are_measured_again(copy):
    (zero_shot,) = (
        path.parent for path in copy.glob("*/results.jsonl") if '"CLIPZeroShot"' in path.read_text()
    )
    weights = torch.load(zero_shot / "model.pkl", weights_only=True)
    weights["model_dict"]["head.weight"] *= 2
    torch.save(weights, zero_shot / "model.pkl")

    before = json.loads((zero_shot / "evaluation_step2.json").read_text())
    assert evaluate_sweep(copy, OPTIONS).measured == 1
    after = json.loads((zero_shot / "evaluation_step2.json").read_text())
    assert after["facts"]["weights"] != before["facts"]["weights"]
    assert after["splits"][0]["calibration"]["nll"] != before["splits"][0]["calibration"]["nll"]


def test_a_changed_picture_is_measured_again(copy):
    record = next(copy.glob("*/results.jsonl"))
    data = Path(json.loads(record.read_text().splitlines()[0])["args"]["dataset"])
    picture = next(path for path in sorted(data.rglob("*.png")))
    status = picture.stat()
    os.utime(picture, (status.st_atime, status.st_mtime + 10))
    try:
        assert evaluate_sweep(copy, OPTIONS).measured > 0
    finally:
        os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_original_that_does_not_exist_is_an_error_before_any_run(copy):
    with pytest.raises(CarftError, match="original is '/nope', expected an existing file"):
        domainbed_carft.evaluate(copy, original="/nope", workers=0)


def test_figures_alone_are_made_of_the_rows(copy):
    """Without a prediction, if they are missing."""
    expected = {}
    for path in copy.glob("*/evaluation_step*.json"):
        expected[path] = path.read_bytes()
        path.unlink()
    assert evaluate_sweep(copy, OPTIONS).measured == 0
    assert expected == {path: path.read_bytes() for path in expected}


def test_another_step_never_stands_in(copy, capsys):
    for path in copy.glob("*/*"):
        if path.name == "model_best.pkl" or path.name.startswith("evaluation"):
            path.unlink()

    evaluation = evaluate_sweep(copy, OPTIONS)
    last_step = 2
    for run in evaluation.runs:
        if run.step != last_step:
            message = f"weights of step {run.step} were not kept"
            assert run.figures is None and str(run.problem) == message
    assert evaluation.problems

    carft("evaluate", copy, "--jobs", 1, status=3)
    printed = capsys.readouterr().out
    assert "X" in printed and "were not kept" in printed


def test_deleted_weights_leave_what_was_measured(copy):
    for path in copy.glob("*/model*.pkl"):
        path.unlink()
    evaluation = evaluate_sweep(copy, OPTIONS)
    assert evaluation.measured == 0 and not evaluation.problems


def test_json_has_every_run_and_python_the_same(copy, capsys):
    carft("evaluate", copy, "--json", "--jobs", 1)
    document = json.loads(capsys.readouterr().out)
    in_python = domainbed_carft.evaluate(copy, device="cpu", workers=0, jobs=1)
    assert document == json.loads(json.dumps(in_python.as_dict()))
    assert len(document["runs"]) == 4


def test_links_in_the_folder_of_a_run_are_replaced(copy, tmp_path):
    folder = next(copy.iterdir())
    written = [*folder.glob("evaluation_step*")]
    expected = [path.read_bytes() for path in written]
    (tmp_path / "bashrc").write_text("precious")
    for path in written:
        path.unlink()
        path.symlink_to(tmp_path / "bashrc")

    assert evaluate_sweep(copy, OPTIONS).measured == len(written) / 2
    assert (tmp_path / "bashrc").read_text() == "precious" and written
    assert [path.read_bytes() for path in written] == expected
    assert not any(path.is_symlink() for path in written)


def test_rows_are_in_the_order_of_the_tables(copy, evaluation):
    """Whatever the folders are called."""
    rows = [
        (run.method, run.selected.row, run.selected.target, run.selected.trial)
        for run in evaluation.runs
    ]
    assert rows == sorted(rows, key=lambda row: (row[0] != rows[0][0], row[1:]))

    for folder in list(copy.iterdir()):
        record = json.loads((folder / "results.jsonl").read_text().splitlines()[0])
        digit = "f" if record["args"]["algorithm"] == "CARFT" else "0"
        folder.rename(copy / (digit * 32))
    algorithms = [run.selected.row for run in evaluate_sweep(copy, OPTIONS).runs]
    assert algorithms == ["CARFT", "CLIPZeroShot"] * 2  # of each selection method


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("evaluate OUT --which last", "--which is for a run"),
        ("evaluate . --which last", "--which is for a run, and . is a sweep's folder"),
        ("evaluate .. --which last", "--which is for a run, and .. is a sweep's folder"),
        ("evaluate OUT --suite dtd --select oracle", "--select is for a sweep without --suite"),
        ("evaluate OUT --suite dtd --original x", "--original is for a sweep without --suite"),
        ("evaluate JOB --select oracle", "--select is for a sweep's folder"),
        ("evaluate JOB --jobs 2", "--jobs is for a sweep's folder"),
        ("evaluate JOB --original x", "--original is for a sweep's folder"),
        ("evaluate --clip tiny --suite dtd --which last", "--which is for a run's folder"),
    ],
)
def test_flags_that_nothing_reads_are_refused(words, message, tmp_path, monkeypatch, capsys):
    """Also of the folder of several sweeps, and of the one above, as `carft collect` reads them."""
    sweep_of_jobs = tmp_path / "above" / "sweeps" / "OUT"
    collect_sweeps.write_job(sweep_of_jobs, "JOB")
    monkeypatch.chdir(sweep_of_jobs.parent)
    assert cli.main(words.replace("JOB", "OUT/JOB").split()) == 1
    assert message in capsys.readouterr().err


def test_selection_methods_are_names_with_commas_that_are_checked(copy, capsys):
    carft("evaluate", copy, "--json", "--jobs", 1, "--select", "oracle,training-domain")
    document = json.loads(capsys.readouterr().out)
    assert [run["selection"] for run in document["runs"]] == ["oracle"] * 2 + [
        "training-domain"
    ] * 2

    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", str(copy), "--select", "oracel"])
    assert ended.value.code == 2
    assert "expected one or more of training-domain" in capsys.readouterr().err


def test_the_command_prints_a_row_for_each_algorithm_and_environment(copy, evaluation, capsys):
    carft("evaluate", copy, "--jobs", 1, "--select", "training-domain")
    lines = capsys.readouterr().out.splitlines()
    (run,) = (
        run
        for run in evaluation.runs
        if (run.selected.row, run.selected.target) == ("CARFT", 0)
        and run.method == "training-domain"
    )
    (row,) = (line.split() for line in lines if line.startswith("CARFT, art "))
    figures = [run.on_target.accuracy, run.figures.in_domain, run.on_target.mean_per_class]
    assert row[2:5] == [f"{100 * figure:.1f}" for figure in figures]


def test_the_tables_have_the_figures_as_columns(output, evaluation):
    """Over the trials, of each trial's mean over the environments left out."""
    names = ["ece", "nll-scaled", "flips", "lost", "worst-class", "temperature"]
    results = domainbed_carft.collect(output, methods=["training-domain"], columns=names)
    (table, *_) = results.tables
    for row in table.rows:
        parts = [
            run.on_target
            for run in evaluation.runs
            if run.selected.row == row.algorithm and run.method == "training-domain"
        ]
        expected = [
            100 * np.mean([part.calibration.ece for part in parts]),
            np.mean([part.scaled.nll for part in parts]),
            100 * np.mean([part.gained_share - part.lost_share for part in parts]),
            100 * np.mean([part.lost_share for part in parts]),
            100 * np.mean([part.worst_class.accuracy for part in parts]),
            np.mean([part.temperature for part in parts]),
        ]
        assert [cell.mean for cell in row.printed_cells] == pytest.approx(expected, rel=TOLERANCE)


def test_a_table_says_what_was_not_evaluated(copy, capsys):
    for path in copy.glob("*/*"):
        if path.name.startswith("evaluation") or path.name == "model_best.pkl":
            path.unlink()
    cli.main(["collect", str(copy), "--columns", "average,ece", "--select", "training-domain"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "not evaluated; run carft evaluate on the sweep: art trial 0" in printed


@pytest.mark.slow
def test_processes_measure_what_this_one_does(output, evaluation, tmp_path):
    """By the command, two runs at a time, each a fork of a server."""
    output = shutil.copytree(output, tmp_path / "OUT")
    for path in output.glob("*/evaluation*"):
        path.unlink()

    words = ["-m", "domainbed_carft", "evaluate", str(output), "--device", "cpu", "--jobs", "2"]
    done = warm.run(*words, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["measured"] == len({(run.folder, run.step) for run in evaluation.runs})
    assert [run["figures"] for run in document["runs"]] == [
        json.loads(json.dumps(run.as_dict()["figures"])) for run in evaluation.runs
    ]


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_where_it_was(output, evaluation, tmp_path):
    output = shutil.copytree(output, tmp_path / "OUT")
    for path in output.glob("*/evaluation*"):
        path.unlink()

    words = ["-m", "domainbed_carft", "evaluate", str(output), "--device", "cpu", "--jobs", "1"]
    process = warm.start(*words)
    while not list(output.glob("*/evaluation*.npz")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate()
    n_measured = len(list(output.glob("*/evaluation*.npz")))

    resumed = evaluate_sweep(output, OPTIONS)
    assert resumed.measured + n_measured == len({(run.folder, run.step) for run in resumed.runs})
    assert resumed.current == n_measured
    assert [run.figures for run in resumed.runs] == [run.figures for run in evaluation.runs]


def test_the_line_of_progress_counts_the_runs_of_each_task(monkeypatch):
    counts = []

    class Bar(contextlib.nullcontext):
        def update(self, count):
            counts.append(count)

    def start(total, **_):
        counts.append(total)
        return Bar()

    monkeypatch.setattr(sweep, "progress", start)
    monkeypatch.setattr(sweep, "run_process", lambda command, *_: sweep.End(0, command[-1]))
    tasks = [{"suite": "pets", "weights": ["a", "b"]}, {"suite": "pets", "weights": ["c"]}]
    ends = sweep.run_in_pool(tasks, SweepOptions(jobs=1))
    assert [json.loads(end.message)["weights"] for end in ends] == [["a", "b"], ["c"]]
    assert counts == [3, 2, 1]
