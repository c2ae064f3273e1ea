"""The demo on records as its jobs would leave them, once through real training, and its numbers."""

import itertools
import json
from pathlib import Path

import collect_sweeps
import numpy as np
import pandas as pd
import pytest
import report_page

from domainbed_carft.cli import demo, demo_table
from domainbed_carft.errors import CarftError
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
    """What finished jobs leave, with random accuracies; (algorithm, target) -> their records."""
    records = {}
    for job in declaration_file.load(declared).jobs(demo.DATA_DIR, output / "sweep"):
        facts = {**job.args, "environments": STYLES}
        collect_sweeps.write_job(job.folder.parent, job.folder.name, at=(0, 1), **facts)
        lines = (job.folder / "results.jsonl").read_text().splitlines()
        (target,) = job.key.test_envs
        records[job.key.algorithm, target] = [json.loads(line) for line in lines]
    return records


def selected_accuracy(records, target):
    """In percent, on the style left out, by training-domain validation."""
    sources = [number for number in range(4) if number != target]
    best = max(records, key=lambda record: sum(record[f"env{n}_out_acc"] for n in sources))
    return 100 * best[f"env{target}_in_acc"]


def packed_accuracies():
    """(algorithm, trial) -> target -> accuracy in %, of the file that the demo reads."""
    frame = pd.read_csv(Path(demo.__file__).parents[1] / "assets" / "demo.csv")
    return {
        key: part.set_index("target")["accuracy"].sort_index()
        for key, part in frame.groupby(["algorithm", "trial"])
    }


def test_the_demo_shows_its_accuracies_next_to_the_recorded_ones(tmp_path, monkeypatch, capsys):
    report_page.leave_undrawn(monkeypatch)
    output = tmp_path / "it's a demo"
    declared = declare(tmp_path, SMALL)
    records = write_records(output, declared)
    demo.run(output, declared=declared)

    table = (output / "results.txt").read_text()
    printed = capsys.readouterr().out
    assert table in printed and str(output / "report" / "index.html") in printed
    rows = [line.split() for line in table.splitlines() if line.startswith(("CARFT", "CLIPZ"))]
    assert [row[0] for row in rows] == ["CLIPZeroShot", "CARFT"]
    packed = packed_accuracies()
    for algorithm, *cells in rows:
        styles = [selected_accuracy(records[algorithm, target], target) for target in (1, 2)]
        of_trials = [packed[algorithm, trial].loc[[1, 2]].mean() for trial in TRIALS]
        expected = [*styles, np.mean(styles), of_trials[0], np.mean(of_trials)]
        assert cells[:5] == [f"{value:.1f}" for value in expected]
        assert cells[6] == f"{np.std(of_trials) / 10**0.5:.1f}"
    page = report_page.read(output / "report")
    assert page.tables["Accuracy on the drawing style held out, in %"][-1][0] == "CARFT"


@pytest.mark.slow
def test_the_demo_trains_and_names_what_failed_with_the_remedy(tmp_path):
    failing = declare(tmp_path, f"{ONE_JOB}hparams: {{clip_backbone: /no/such.pt}}\n")
    with pytest.raises(CarftError, match=r"(?s)1 job is not done.*no/such.pt.*carft sweep retry"):
        demo.run(tmp_path / "out", declared=failing)

    demo.run(tmp_path / "again", declared=declare(tmp_path, ONE_JOB))
    assert "CARFT" in (tmp_path / "again" / "results.txt").read_text()


def test_the_packed_numbers_are_those_of_the_records(fresh):
    packed = packed_accuracies()
    of_methods = fresh[fresh["variant"] == "methods"]
    expected = of_methods.set_index(["algorithm", "trial", "target"])["out"].sort_index()
    algorithms = declaration_file.load("demo").algorithms
    assert packed.keys() == set(itertools.product(algorithms, TRIALS))
    for key, accuracies in packed.items():
        assert [*accuracies] == pytest.approx([*expected.loc[key]], abs=5e-5)


def test_the_demos_jobs_are_those_of_the_packed_records(fresh, tmp_path):
    arguments = {}
    for folder in fresh[fresh["variant"] == "methods"]["folder"]:
        args = json.loads((folder / "results.jsonl").read_text().splitlines()[0])["args"]
        arguments[(args["algorithm"], *args["test_envs"], args["trial_seed"])] = args

    for job in declaration_file.load("demo").jobs(demo.DATA_DIR, tmp_path):
        packed = arguments[(job.key.algorithm, *job.key.test_envs, job.key.trial)]
        for name in ("seed", "hparams_seed", "steps", "holdout_fraction", "checkpoint_freq"):
            assert job.args.get(name) == packed.get(name), name
        assert json.loads(job.args["hparams"]) == json.loads(packed["hparams"])


@pytest.mark.parametrize(
    ("fine_tune", "expected"),
    [
        (61, "is ahead of CLIPZeroShot (60.0) and CLIPFineTune (61.0)."),
        (62, "is ahead of CLIPZeroShot (60.0), but not ahead of CLIPFineTune (62.0)."),
    ],
)
def test_the_conclusion_says_as_plainly_if_carft_is_not_ahead(fine_tune, expected):
    means = {"CLIPZeroShot": 60, "CLIPFineTune": fine_tune, "CARFT": 62}
    accuracies = {name: {("EmojiStyles", 0, 0): float(mean)} for name, mean in means.items()}
    conclusion = demo_table.conclusion(accuracies, demo_table.recorded_accuracies("EmojiStyles"))
    assert f"In this run CARFT (62.0) {expected}" in conclusion
    difference = (
        "CARFT minus CLIPFineTune is +1.1 points, with 95% intervals of +0.3 to +2.0 over 4"
    )
    assert difference in conclusion
