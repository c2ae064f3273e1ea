"""The demo end to end in small, through real sub-processes, and what it says when jobs fail."""

import contextlib
import io
import itertools
import json
import os
import shutil
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import packed_records
import pandas as pd
import pytest
import report_page

from domainbed_carft.cli import demo, demo_table, main
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import saved
from domainbed_carft.suites import records
from domainbed_carft.sweep import declaration_file

pytestmark = pytest.mark.usefixtures("warm_launches")

ROOT = Path(__file__).parents[1]

SMALL = """
name: small
datasets: [EmojiStyles]
algorithms: [CLIPZeroShot, CARFT]
trials: {from: 10, n: 1}
steps: 1
test_environments: [line, noto]
"""


ALGORITHMS = ("CLIPZeroShot", "CARFT")
ROW = ["algorithm", "trial"]
TRIALS = range(10, 20)  # of the records


def selected_accuracies(folder):
    """(algorithm, target) -> accuracy in % on the style left out, by training-domain validation."""
    accuracies = {}
    for path in folder.glob("*/results.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        (target,) = records[0]["args"]["test_envs"]
        validation_keys = [f"env{number}_out_acc" for number in range(4) if number != target]
        best = max(records, key=lambda record: sum(record[key] for key in validation_keys))
        algorithm = records[0]["args"]["algorithm"]
        accuracies[algorithm, target] = 100 * best[f"env{target}_in_acc"]
    return accuracies


@pytest.fixture
def declared(tmp_path):
    """The file of the small sweep."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


class Demo(NamedTuple):
    """A demo that has run: its folder, the file of its sweep, and what it printed."""

    output: Path
    declared: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory, warm_launches):
    """A demo of the small sweep. Tests that change its folder copy it."""
    folder = tmp_path_factory.mktemp("demo")
    declared = folder / "small.yaml"
    declared.write_text(SMALL)
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        demo.run(folder / "it's a demo", declared=declared)
    return Demo(folder / "it's a demo", declared, out.getvalue(), err.getvalue())


def test_the_demo_trains_and_shows_the_packed_records_beside_it(finished_demo):
    output = finished_demo.output
    assert len(list((output / "sweep").glob("*/model.pkl"))) == 4
    assert "4 of 4 jobs done" in finished_demo.err

    table = (output / "results.txt").read_text()
    assert table in finished_demo.out
    lines = [line.split() for line in table.splitlines()]
    cells = {words[0]: words[1:] for words in lines if words and words[0] in ALGORITHMS}
    assert [*cells] == [*ALGORITHMS]

    accuracies = selected_accuracies(output / "sweep")
    packed = packed_accuracies()
    for algorithm in ALGORITHMS:
        styles = [accuracies[algorithm, target] for target in (1, 2)]
        assert cells[algorithm][:3] == [f"{value:.1f}" for value in (*styles, np.mean(styles))]
        of_trials = [packed[algorithm, trial].loc[[1, 2]].mean() for trial in TRIALS]
        assert cells[algorithm][3:5] == [f"{of_trials[0]:.1f}", f"{np.mean(of_trials):.1f}"]
        assert cells[algorithm][6] == f"{np.std(of_trials) / 10**0.5:.1f}"

    page = report_page.read(output / "report")
    assert page.tables["Accuracy on the drawing style left out, in %"][-1][0] == "CARFT"
    assert (output / "report" / "figures" / "EmojiStyles-context_drift.png").exists()
    for file in ("results.txt", "report/index.html"):
        assert str(output / file) in finished_demo.out

    demo.run(output, declared=finished_demo.declared)  # with nothing left to do
    assert (output / "results.txt").read_text() == table


def test_the_folder_of_an_earlier_demo_can_be_used_again(finished_demo, tmp_path, declared):
    shutil.copytree(finished_demo.output, tmp_path / "out")
    steps = SMALL.replace("steps: 1", "steps: 2")  # another setting than in the folder
    declared.write_text(steps.replace("line, ", "").replace("CLIPZeroShot, ", ""))
    demo.run(tmp_path / "out", declared=declared)
    assert "CARFT" in (tmp_path / "out" / "results.txt").read_text()
    assert len(list((tmp_path / "out" / "sweep").glob("*/done"))) == 4 + 1


def packed_accuracies():
    """(algorithm, trial) -> target -> accuracy in %, of the file that the demo reads."""
    frame = pd.read_csv(ROOT / "domainbed_carft" / "assets" / "demo.csv")
    return {key: part.set_index("target")["accuracy"] for key, part in frame.groupby(ROW)}


def test_the_packed_numbers_are_those_of_the_records(tmp_path):
    packed_records.unpack(tmp_path, "fresh-emoji")
    checkpoints = packed_records.selected_checkpoints(tmp_path / "fresh-emoji")
    of_methods = checkpoints[checkpoints["variant"] == "methods"]
    expected = {key: part.set_index("target")["out"] for key, part in of_methods.groupby(ROW)}

    packed = packed_accuracies()
    declaration = declaration_file.load("demo")
    assert packed.keys() == set(itertools.product(declaration.algorithms, TRIALS))
    for key, accuracies in packed.items():
        pd.testing.assert_series_equal(
            accuracies.sort_index(),
            expected[key].sort_index(),
            atol=5e-5,
            rtol=0,
            check_names=False,
        )


def test_the_demos_jobs_are_those_of_the_packed_records(tmp_path):
    packed_records.unpack(tmp_path, "fresh-emoji")
    jobs = {}
    for path in (tmp_path / "fresh-emoji" / "methods").glob("*/results.jsonl"):
        args = json.loads(path.open().readline())["args"]
        jobs[(args["algorithm"], *args["test_envs"], args["trial_seed"])] = args

    for job in declaration_file.load("demo").jobs(demo.DATA_DIR, tmp_path):
        packed = jobs[(job.key.algorithm, *job.key.test_envs, job.key.trial)]
        for name in ("seed", "hparams_seed", "steps", "holdout_fraction", "checkpoint_freq"):
            assert job.args.get(name) == packed.get(name), name
        assert json.loads(job.args["hparams"]) == json.loads(packed["hparams"])


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        (
            {"CLIPZeroShot": 60, "CLIPFineTune": 61, "CARFT": 62},
            "In this run CARFT (62.0) is ahead of CLIPZeroShot (60.0) and CLIPFineTune (61.0).",
        ),
        (
            {"CLIPZeroShot": 60, "CLIPFineTune": 63, "CARFT": 62},
            "In this run CARFT (62.0) is ahead of CLIPZeroShot (60.0), but not ahead of "
            "CLIPFineTune (63.0).",
        ),
        ({"CLIPFineTune": 62, "CARFT": 62}, "is not ahead of CLIPFineTune (62.0)."),
    ],
)
def test_the_conclusion_says_as_plainly_if_carft_is_not_ahead(means, expected):
    accuracies = {name: {("EmojiStyles", 0, 0): float(mean)} for name, mean in means.items()}
    conclusion = demo_table.conclusion(accuracies, demo_table.recorded_accuracies("EmojiStyles"))
    assert expected in conclusion
    assert "CARFT minus CLIPFineTune is +1.1 points, with 95% intervals of +0.3 to +2.0 over 4" in (
        conclusion
    )


def test_the_sweep_can_be_tested_on_styles_that_no_job_has_seen(finished_demo, tmp_path, capsys):
    for path in (finished_demo.output / "sweep").glob("*/results.jsonl"):
        if '"test_envs": [1]' in path.read_text():  # the others add nothing
            job = shutil.copytree(path.parent, tmp_path / "OUT" / path.parent.name)
            for weights in job.glob("*.pkl"):  # of a node whose clock is ahead
                os.utime(weights, (time.time() + 1e5,) * 2)
    command = ["evaluate", str(tmp_path / "OUT"), "--suite", "EmojiUnseen"]
    assert main(command) == 0
    assert "2 runs measured on EmojiUnseen" in capsys.readouterr().err

    for path in (tmp_path / "OUT").glob("*/results.jsonl"):
        (line,) = (path.parent / records.FILE).read_text().splitlines()
        record = json.loads(line)
        assert not {"fluent3d", "noto", "twemoji"} & {*record["sets"]}
        assert len(record["sets"]) == 10
    assert main(command) == 0
    assert "0 runs measured on EmojiUnseen" in capsys.readouterr().err
    assert (path.parent / records.FILE).read_text() == f"{line}\n"

    # Damaged weights of one run cost no other its figures.
    damaged = saved.choose_weights(path.parent, None)
    damaged.write_bytes(b"no weights")
    assert main(command) == 3
    printed = capsys.readouterr()
    assert f"not measured: 1 run, {path.parent} first: {damaged}" in printed.err
    other = "CARFT" if '"CLIPZeroShot"' in path.read_text() else "CLIPZeroShot"
    assert other in printed.out


def test_a_failing_sweep_is_an_error_that_says_what_to_do(tmp_path, declared):
    one_job = SMALL.replace("CLIPZeroShot, ", "").replace("line, ", "")
    declared.write_text(one_job + "hparams: {clip_backbone: /no/such.pt}\n")
    message = r"(?s)1 job is not done.*no/such.pt.*carft sweep retry"
    with pytest.raises(CarftError, match=message):
        demo.run(tmp_path / "out", declared=declared)
