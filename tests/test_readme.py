"""README: its example, the figures of its tables, and its commands."""

import re
import shlex

import pytest
import scipy
from fake_checkout import REPO
from packed_records import row_name
from PIL import Image

from domainbed_carft.cli import _parser, demo_table
from domainbed_carft.results import formats

TEXT = (REPO / "README.md").read_text(encoding="utf-8")
# Name in the table -> row of `collect --by variant`
ROWS = {
    "WiSE-FT": "CLIPWiSEFT",
    "Lipsum-FT": "LipsumFT",
    "CAR-FT with Beta average": "CARFT (CARFT+beta)",
    "CAR-FT": "CARFT (methods)",
    "linear probe": "CLIPLinearProbe",
    "zero-shot CLIP": "CLIPZeroShot",
    "ERM (plain fine-tuning)": "CLIPFineTune (methods)",
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


def test_the_table_has_the_accuracies_of_the_packed_records(selected):
    rows = selected.apply(lambda run: row_name(run["variant"], run["algorithm"]), axis="columns")
    runs = selected.assign(row=rows)
    means = runs.groupby("row")[["out", "in"]].mean()
    by_pair = runs.pivot(index=["target", "trial"], columns="row", values="out")

    lines = re.findall(r"^\| (.+%.*) \|$", TEXT, re.MULTILINE)
    cells = [[cell.strip(" *") for cell in line.split("|")] for line in lines]
    assert [name for name, *_ in cells] == [*ROWS]
    assert [*ROWS] == sorted(ROWS, key=lambda name: -means.loc[ROWS[name], "out"])

    for name, out_of_domain, difference, over_targets, over_pairs, in_domain in cells:
        row = ROWS[name]
        assert out_of_domain == f"{means.loc[row, 'out']:.1f}%"
        assert in_domain == f"{means.loc[row, 'in']:.1f}%"
        if name == "CAR-FT":
            assert not difference
            continue

        differences = by_pair[row] - by_pair[ROWS["CAR-FT"]]
        assert difference == f"{differences.mean():.1f}"
        of_targets = differences.groupby("target").mean()
        for values, interval in ((differences, over_pairs), (of_targets, over_targets)):
            low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval()
            assert interval == f"{low:.1f} to {high:.1f}"
        assert low < 0 < high  # over targets nothing is significant, as the text says


def test_no_row_of_the_packed_records_above_carft_is_left_out(selected):
    rows = selected.apply(lambda run: row_name(run["variant"], run["algorithm"]), axis="columns")
    means = selected.assign(row=rows).groupby("row")["out"].mean()
    above = means[means > means["CARFT (methods)"]].index
    assert {*above} <= {*ROWS.values()}


def test_the_demos_table_is_what_it_prints_beside_the_records():
    """The columns of the packed records, whose jobs' accuracies this run had."""
    packed = demo_table.packed_accuracies("EmojiStyles")
    one_trial = {
        row: {pair: accuracy for pair, accuracy in by_pair.items() if pair[2] == 0}
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
