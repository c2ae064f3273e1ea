"""README: how long it is, its example, the figures of its table, and its commands."""

import contextlib
import io
import re
import shlex

import pytest
import scipy
from fake_checkout import REPO

from domainbed_carft.cli import _parser

TEXT = (REPO / "README.md").read_text(encoding="utf-8")
LONGEST = 120  # lines

NAMES = {
    "zero-shot CLIP": "CLIPZeroShot",
    "linear probe": "CLIPLinearProbe",
    "plain fine-tuning": "CLIPFineTune",
    "CAR-FT": "CARFT",
}


def test_it_is_short():
    assert len(TEXT.splitlines()) <= LONGEST


def test_the_python_example_prints_what_it_shows(tmp_path, monkeypatch):
    (example,) = re.findall(r"^```python\n(.+?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    expected_lines = re.findall(r"^# ?(.*)$", example, re.MULTILINE)
    (tmp_path / "benchmarks").symlink_to(REPO / "benchmarks")
    monkeypatch.chdir(tmp_path)

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(example, {})
    assert [line.rstrip() for line in printed.getvalue().splitlines()] == expected_lines


def test_the_table_has_the_accuracies_of_the_packed_records(selected):
    runs = selected.query("variant == 'methods'")
    means = runs.groupby("algorithm")[["out", "in"]].mean()
    by_pair = runs.pivot(index=["target", "trial"], columns="algorithm", values="out")

    rows = re.findall(r"^\| (.+%.*) \|$", TEXT, re.MULTILINE)
    cells = [[cell.strip(" *") for cell in row.split("|")] for row in rows]
    assert [name for name, *_ in cells] == [*NAMES]

    for name, out_of_domain, difference, in_domain in cells:
        algorithm = NAMES[name]
        assert out_of_domain == f"{means.loc[algorithm, 'out']:.1f}%"
        assert in_domain == f"{means.loc[algorithm, 'in']:.1f}%"
        if difference:
            differences = by_pair[algorithm] - by_pair["CARFT"]
            of_targets = differences.groupby("target").mean()
            low, high = scipy.stats.ttest_1samp(of_targets, 0).confidence_interval()
            figures = re.findall(r"-?\d+\.\d", difference)
            assert figures == [f"{value:.1f}" for value in (differences.mean(), low, high)]
            assert low < 0 < high

            low, high = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
            (printed,) = re.findall(rf"^# +pair +{algorithm} +(.+)$", TEXT, re.MULTILINE)
            expected = [f"{value:.1f}" for value in (differences.mean(), low, high)]
            assert printed.split() == expected


@pytest.mark.parametrize("line", re.findall(r"^    (carft .+?)(?:  +#.*)?$", TEXT, re.MULTILINE))
def test_its_commands_have_flags_that_exist(line):
    for command in line.split(" && "):
        _parser().parse_args(shlex.split(command)[1:])
