"""The demo with records like those of its jobs, once with real training, and its numbers."""

import itertools
import json
from pathlib import Path

import collect_sweeps
import numpy as np
import pandas as pd
import pytest
import report_page
from scipy import stats

from domainbed_carft.cli import demo
from domainbed_carft.errors import CarftError
from domainbed_carft.results import demo_table
from domainbed_carft.sweep import declaration_file

SMALL = """
name: small
datasets: [EmojiStyles]
algorithms: [CLIPZeroShot, CARFT]
trials: {from: 10, n: 1}
steps: 1
test_environments: [line, noto]
"""
ONE_JOB = SMALL.replace("CLIPZeroShot, ", "").replace("line, ", "")
STYLES = ["fluent3d", "line", "noto", "twemoji"]
TRIALS = range(10, 20)  # of the records


def declare(folder, text):
    path = folder / "small.yaml"
    path.write_text(text)
    return path


def write_records(output, declared):
    """Write finished jobs with random accuracies; return records by algorithm and target."""
    records = {}
    for job in declaration_file.load(declared).jobs(demo.DATA_DIR, output / "sweep"):
        facts = {**job.args, "environments": STYLES}
        collect_sweeps.write_job(job.folder.parent, job.folder.name, at=(0, 1), **facts)
        lines = (job.folder / "results.jsonl").read_text().splitlines()
        (target,) = job.key.test_envs
        records[job.key.algorithm, target] = [json.loads(line) for line in lines]
    return records


def select_accuracy(records, target):
    """Return the accuracy on the target in percent, by training-domain validation."""
    sources = [number for number in range(4) if number != target]
    best = max(records, key=lambda record: sum(record[f"env{n}_out_acc"] for n in sources))
    return 100 * best[f"env{target}_in_acc"]


def read_packed_accuracies():
    """Return accuracies in percent by target, for each algorithm and trial in the demo's file."""
    frame = pd.read_csv(Path(demo.__file__).parents[1] / "assets" / "demo.csv")
    return {
        key: part.set_index("target")["accuracy"].sort_index()
        for key, part in frame.groupby(["algorithm", "trial"])
    }


def test_demo_shows_accuracies_next_to_recorded_ones(tmp_path, monkeypatch, capsys):
    report_page.skip_drawing(monkeypatch)
    output = tmp_path / "it's a demo"
    declared = declare(tmp_path, SMALL)
    records = write_records(output, declared)
    demo.run(output, declared=declared)

    table = (output / "results.txt").read_text()
    printed = capsys.readouterr().out
    assert table in printed and str(output / "report" / "index.html") in printed
    rows = [line.split() for line in table.splitlines() if line.startswith(("CARFT", "CLIPZ"))]
    assert [row[0] for row in rows] == ["CLIPZeroShot", "CARFT"]
    packed = read_packed_accuracies()
    for algorithm, *cells in rows:
        styles = [select_accuracy(records[algorithm, target], target) for target in (1, 2)]
        trial_means = [packed[algorithm, trial].loc[[1, 2]].mean() for trial in TRIALS]
        expected = [*styles, np.mean(styles), trial_means[0], np.mean(trial_means)]
        assert cells[:5] == [f"{value:.1f}" for value in expected]
        assert cells[6] == f"{np.std(trial_means) / 10**0.5:.1f}"
    text = " ".join(printed.split())
    assert "compares CARFT with six methods, and none of these intervals is corrected" in text
    differences = pd.DataFrame(
        {trial: packed["CARFT", trial] - packed["CLIPFineTune", trial] for trial in TRIALS}
    )
    units = {"styles": differences.mean(axis=1), "trials": differences.mean(axis=0)}
    for unit, values in {**units, "pairs": differences.stack()}.items():
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), values.sem())
        assert f"{low:+.1f} to {high:+.1f} over {len(values)} {unit}" in text
    page = report_page.read(output / "report")
    assert page.tables["Accuracy on the drawing style held out, in %"][-1][0] == "CARFT"


def test_means_of_several_trials_have_errors():
    recorded = demo_table.recorded_accuracies("EmojiStyles")
    two_trials = {
        algorithm: {pair: value for pair, value in by_pair.items() if pair[2] < 12}
        for algorithm, by_pair in recorded.items()
    }
    packed = read_packed_accuracies()
    rows = demo_table.grid(two_trials, recorded, STYLES).rows
    assert {row[0] for row in rows} == {algorithm for algorithm, _ in packed}
    for algorithm, *cells in rows:
        trials = np.array([packed[algorithm, trial] for trial in (10, 11)])
        means = [*trials.mean(axis=0), trials.mean()]
        errors = [*trials.std(axis=0), trials.mean(axis=1).std()] / np.sqrt(2)
        assert cells[:5] == [f"{m:.1f} ± {e:.1f}" for m, e in zip(means, errors)]


@pytest.mark.slow
def test_demo_trains_and_reports_failed_job(tmp_path):
    failing = declare(tmp_path, f"{ONE_JOB}hparams: {{clip_backbone: /no/such.pt}}\n")
    with pytest.raises(CarftError, match=r"(?s)1 job is not done.*no/such.pt.*carft sweep retry"):
        demo.run(tmp_path / "out", declared=failing)

    demo.run(tmp_path / "again", declared=declare(tmp_path, ONE_JOB))
    assert "CARFT" in (tmp_path / "again" / "results.txt").read_text()


def test_packed_numbers_equal_records(fresh):
    packed = read_packed_accuracies()
    method_rows = fresh[fresh["variant"] == "methods"]
    expected = method_rows.set_index(["algorithm", "trial", "target"])["out"].sort_index()
    algorithms = declaration_file.load("demo").algorithms
    assert packed.keys() == set(itertools.product(algorithms, TRIALS))
    for key, accuracies in packed.items():
        assert [*accuracies] == pytest.approx([*expected.loc[key]], abs=5e-5)


def test_demo_declares_jobs_of_packed_records(fresh, tmp_path):
    arguments = {}
    for folder in fresh[fresh["variant"] == "methods"]["folder"]:
        args = json.loads((folder / "results.jsonl").read_text().splitlines()[0])["args"]
        arguments[(args["algorithm"], *args["test_envs"], args["trial_seed"])] = args

    for job in declaration_file.load("demo").jobs(demo.DATA_DIR, tmp_path):
        packed = arguments[(job.key.algorithm, *job.key.test_envs, job.key.trial)]
        for name in ("seed", "hparams_seed", "steps", "holdout_fraction", "checkpoint_freq"):
            assert job.args.get(name) == packed.get(name), name
        assert json.loads(job.args["hparams"]) == json.loads(packed["hparams"])
