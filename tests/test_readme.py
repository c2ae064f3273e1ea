"""README: its example, the figures of its table, which peers.md has too, and its commands."""

import re
import shlex

import pytest
import scipy
from fake_checkout import REPO
from PIL import Image

from domainbed_carft.cli import _parser, demo_table
from domainbed_carft.results import formats

TEXT = (REPO / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "docs/peers.md")
# Name in the table -> variant and algorithm
ROWS = {
    "Lipsum-FT": ("methods", "LipsumFT"),
    "WiSE-FT": ("methods", "CLIPWiSEFT"),
    "CAR-FT with Beta average": ("CARFT+beta", "CARFT"),
    "CAR-FT": ("methods", "CARFT"),
    "linear probe": ("methods", "CLIPLinearProbe"),
    "zero-shot CLIP": ("methods", "CLIPZeroShot"),
    "ERM (plain fine-tuning)": ("methods", "CLIPFineTune"),
}


def test_the_python_example_builds_trains_loads_and_predicts(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"^```python\n(.+?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "dog.png"):
        Image.new("RGB", (48, 48), "white").save(name)

    names = {}
    assert "steps=26\n" in example
    quick = "steps=1, skip_training_in_splits=True\n"  # for time
    exec(example.replace("steps=26\n", quick), names)
    assert names["model"].hparams["total_steps"] == 100
    probabilities = names["run"].predict(["cat.png", "dog.png"]).class_probabilities
    assert probabilities.shape == (2, 10)
    assert capsys.readouterr().out.endswith(f"\n{probabilities}\n")


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_fresh_trials_has_the_accuracies_and_intervals_of_the_records(page, fresh):
    rows = [*zip(fresh["variant"], fresh["algorithm"], strict=True)]
    runs = fresh.assign(row=rows)
    means = runs.groupby("row")[["out", "in"]].mean()
    by_pair = runs.pivot(index=["target", "trial"], columns="row", values="out")
    assert {*rows} == {*ROWS.values()} and {*fresh["trial"]} == {*range(10, 20)}
    assert len(by_pair) == 40 and not by_pair.isna().to_numpy().any()

    text = (REPO / page).read_text(encoding="utf-8")
    lines = re.findall(r"^\| (.+%.*%) \|$", text, re.MULTILINE)
    cells = [[cell.strip(" *") for cell in line.split("|")] for line in lines][: len(ROWS)]
    assert [name for name, *_ in cells] == [*ROWS]
    assert [*ROWS] == sorted(ROWS, key=lambda name: -means.loc[[ROWS[name]], "out"].item())

    for name, out_of_domain, difference, *intervals, in_domain in cells:
        row = ROWS[name]
        mean = means.loc[[row]].iloc[0]
        assert (out_of_domain, in_domain) == (f"{mean['out']:.1f}%", f"{mean['in']:.1f}%")
        if name == "CAR-FT":
            assert not difference
            continue

        differences = by_pair[row] - by_pair[ROWS["CAR-FT"]]
        assert difference == f"{differences.mean():+.1f}"
        by_target = differences.groupby("target").mean()
        by_trial = differences.groupby("trial").mean()
        for values, interval in zip((by_target, by_trial, differences), intervals, strict=True):
            low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval()
            assert interval == f"{low:.1f} to {high:.1f}"


def test_the_demos_table_is_what_it_prints_beside_the_records():
    """The columns of the records, whose jobs' accuracies this run had."""
    packed = demo_table.recorded_accuracies("EmojiStyles")
    one_trial = {
        row: {pair: accuracy for pair, accuracy in by_pair.items() if pair[2] == 10}
        for row, by_pair in packed.items()
    }
    styles = ["fluent3d", "line", "noto", "twemoji"]
    table = formats.as_text([demo_table.grid(one_trial, packed, styles)], [])
    for line in table.splitlines()[1:]:
        assert line.strip() in TEXT


@pytest.mark.parametrize("line", re.findall(r"^    (carft .+?)(?:  +#.*)?$", TEXT, re.MULTILINE))
def test_its_commands_have_flags_that_exist(line):
    for command in line.split(" && "):
        _parser().parse_args(shlex.split(command)[1:])
