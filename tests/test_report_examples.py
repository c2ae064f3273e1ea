"""Example images of an evaluated sweep, against the answers of its weights."""

import base64
import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
import report_page
import torch
from evaluated_sweeps import train_sweep
from PIL import Image
from runs_jobs import CLASSES, ENVIRONMENTS

from domainbed_carft import cli
from domainbed_carft.report.examples import examples_of
from domainbed_carft.results import collection
from domainbed_carft.runs import saved, splits

PAIR = ("CARFT", "CLIPZeroShot")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep of which the runs of target 0 were evaluated."""
    output = train_sweep(tmp_path_factory.mktemp("sweep"), PAIR)
    assert cli.main(["evaluate", str(output), "--device", "cpu", "--workers", "0"]) == 0
    for selected in collection.gather([output], ["oracle"]).selected("oracle"):
        if selected.target == 1:
            for path in selected.run.job.folder.glob("evaluation_*"):
                path.unlink()
    return output


def answers(selected):
    """Paths and labels of the target's in-split, and the class probabilities by the weights."""
    run = saved.open_run(selected.run.folder, "last")
    data = splits.read_data(run, is_augmented=False)
    split = next(part for part in data.splits if part.name == f"env{selected.target}_in")
    positions = splits.positions_in_environment(split)
    samples = [data.dataset[selected.target].samples[position] for position in positions]
    images = torch.stack([split.items[number][0] for number in range(len(split))])
    with torch.no_grad():
        return samples, run.algorithm.predict(images).softmax(dim=1).numpy()


def test_examples_are_the_first_images_that_only_one_gets_right(sweep):
    selected = collection.gather([sweep], ["oracle"]).selected("oracle")
    runs = {entry.row: entry for entry in selected if entry.target == 0}
    (samples, tuned), (_, original) = (answers(runs[name]) for name in PAIR)
    labels = np.array([label for _, label in samples])
    is_right = {
        name: probabilities.argmax(axis=1) == labels
        for name, probabilities in zip(PAIR, (tuned, original))
    }
    found, _ = examples_of(ENVIRONMENTS[:2], selected, PAIR, count=2, data_dir=None)

    n_examples = 0
    for winner, loser in (PAIR, PAIR[::-1]):
        indices = np.flatnonzero(is_right[winner] & ~is_right[loser]).tolist()
        assert f"only {winner} gets {len(indices)} right" in found.text
        title = f"{winner} right, {loser} wrong: {len(indices[:2])} of {len(indices)}"
        shown = found.examples[title]
        assert [example.number for example in shown] == indices[:2]
        n_examples += len(shown)
        for example in shown:
            assert example.truth == CLASSES[labels[example.number]]
            for answer, probabilities in zip(example.answers, (tuned, original), strict=True):
                of_image = probabilities[example.number]
                assert answer.predicted == CLASSES[of_image.argmax()]
                assert answer.probability == pytest.approx(of_image.max(), abs=1e-5)
            content = base64.b64decode(example.uri.removeprefix("data:image/png;base64,"))
            with Image.open(samples[example.number][0]) as image:
                assert Image.open(io.BytesIO(content)).tobytes() == image.convert("RGB").tobytes()
    assert n_examples


def test_the_page_shows_examples_or_says_why_there_are_none(sweep, tmp_path, monkeypatch):
    report_page.leave_undrawn(monkeypatch)
    words = ["report", str(sweep), "--select", "oracle", "--examples", *PAIR]

    def page(*further_words):
        assert cli.main([*words, "-o", str(tmp_path / "report"), *further_words]) == 0
        return report_page.read(tmp_path / "report").text

    text = page()
    assert "<h4>art left out</h4>" in text and 'src="data:image/png;base64,' in text
    unevaluated = text.split("<h4>photo, sketch left out</h4>")[1].split("</details>")[0]
    assert "No trial has the predictions of both CARFT and CLIPZeroShot" in unevaluated

    shutil.copytree(sweep.parent / "own", tmp_path / "other")
    (tmp_path / "other" / "art" / "cat" / "0.png").unlink()
    assert "of art are not those that carft evaluate" in page("--data_dir", str(tmp_path / "other"))
    assert "cannot be read as a folder" in page("--data_dir", str(tmp_path / "nowhere"))
    assert "they were switched off" in page("--n_examples", "0")


WITHOUT_TORCH = """
import sys
from domainbed_carft.report.examples import examples_of
from domainbed_carft.results import collection
selected = collection.gather(sys.argv[1:], ["oracle"]).selected("oracle")
(found,) = examples_of(["art"], selected, ("CARFT", "CLIPZeroShot"), count=2, data_dir=None)
assert found.examples and "torch" not in sys.modules
"""


def test_examples_are_found_without_torch(sweep):
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(sweep)], check=True)
