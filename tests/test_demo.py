"""The demo end to end in small, through real sub-processes, and what it says when jobs fail."""

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import report_page

from domainbed_carft.cli import demo, main
from domainbed_carft.errors import CarftError
from domainbed_carft.results import collection
from domainbed_carft.runs import saved
from domainbed_carft.suites import catalogue, records

ROOT = Path(__file__).parents[1]

SMALL = """
name: small
datasets: [EmojiStyles]
algorithms: [CLIPZeroShot, CARFT]
trials: 1
steps: 1
test_environments: [line, noto]
"""
SHIFT = SMALL.replace("EmojiStyles", "EmojiShift").partition("test_environments")[0]


STYLES = {"fluent3d": 429, "line": 429, "noto": 429, "twemoji": 429}  # pictures of each


def selected_accuracies(folder):
    """Algorithm -> accuracies in %, of one target's jobs and of training-domain validation.

    On held-out pictures of the styles trained on, and on all pictures of the style left out, by
    hand from the accuracies on its two splits.
    """
    accuracies = {}
    for path in folder.glob("*/results.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        (target,) = records[0]["args"]["test_envs"]
        validation_keys = [f"env{number}_out_acc" for number in range(4) if number != target]
        best = max(records, key=lambda record: sum(record[key] for key in validation_keys))

        out_size = int(0.2 * STYLES["line"])
        right = best[f"env{target}_in_acc"] * (STYLES["line"] - out_size)
        right += best[f"env{target}_out_acc"] * out_size
        trained_on = sum(best[key] for key in validation_keys) / 3
        accuracies[records[0]["args"]["algorithm"]] = (100 * trained_on, 100 * right / 429)
    return accuracies


@pytest.fixture
def declared(tmp_path):
    """The file of the small sweep."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_the_demo_trains_tests_and_writes_one_table_and_the_report(tmp_path, declared, capsys):
    declared.write_text(SMALL.replace("[line, noto]", "[line]"))
    output = tmp_path / "it's a demo"
    demo.run(output, declared=declared)

    printed = capsys.readouterr()
    expected = selected_accuracies(output / "sweep")
    assert len(list((output / "sweep").glob("*/model.pkl"))) == 2
    assert "2 of 2 jobs done" in printed.err

    table = (output / "results.txt").read_text()
    assert table in printed.out
    lines = [line.split() for line in table.splitlines()]
    cells = {words[0]: words[1:] for words in lines if words and words[0] in expected}
    assert list(cells) == ["CLIPZeroShot", "CARFT"]
    means = {}
    for algorithm, (trained_on, left_out) in expected.items():
        assert cells[algorithm][:2] == [f"{trained_on:.1f}", f"{left_out:.1f}"]
        (folder,) = (
            path.parent
            for path in (output / "sweep").glob("*/results.jsonl")
            if f'"algorithm": "{algorithm}"' in path.read_text()
        )
        (record,) = records.read(folder, warnings=[])
        assert not {"fluent3d", "noto", "twemoji"} & {*record["sets"]}
        assert len(record["sets"]) == 10
        means[algorithm] = 10 * sum(scores["accuracy"] for scores in record["sets"].values())
        assert cells[algorithm][4] == f"{means[algorithm]:.1f}"

    difference = f"{means['CARFT'] - means['CLIPZeroShot']:+.1f}"
    assert cells["CLIPZeroShot"][5] == difference and cells["CARFT"][5] == "-"
    assert f"CLIPZeroShot ({difference} points" in " ".join(printed.out.split())

    page = report_page.read(output / "report")
    assert "Suite EmojiUnseen, trained on EmojiStyles" in page.tables
    assert (output / "report" / "figures" / "EmojiStyles-context_drift.png").exists()
    for file in ("results.txt", "report/index.html"):
        assert str(output / file) in printed.out

    demo.run(output, declared=declared)  # with nothing left to do
    assert (output / "results.txt").read_text() == table
    assert len((folder / records.FILE).read_text().splitlines()) == 1

    capsys.readouterr()
    assert main(["evaluate", str(output / "sweep"), "--suite", "EmojiUnseen"]) == 0
    printed = capsys.readouterr()
    assert "0 runs measured on EmojiUnseen" in printed.err
    (row,) = (line.split() for line in printed.out.splitlines() if line.startswith("CARFT"))
    assert cells["CARFT"][1] in row and cells["CARFT"][3] in row

    # Damaged weights of one run cost no other its figures.
    damaged = saved.choose_weights(folder, None)
    damaged.write_bytes(b"no weights")
    assert main(["evaluate", str(output / "sweep"), "--suite", "EmojiUnseen"]) == 3
    printed = capsys.readouterr()
    assert f"not measured: 1 run, {folder} first: {damaged}" in printed.err
    assert "CLIPZeroShot" in printed.out


def test_the_documented_seeds_are_those_of_the_packed_records(tmp_path):
    archive = ROOT / "benchmarks" / "records" / "demo-seeds.tar.xz"
    shutil.unpack_archive(archive, tmp_path, filter="data")
    tool = runpy.run_path(str(ROOT / "benchmarks" / "demo_seeds.py"))
    (group,) = collection.gather([tmp_path / "demo-seeds"]).groups
    rows = tool["rows_of"](group, seeds=10)
    figures = re.compile(r"[-+]?\d+(?:\.\d\d)?")
    computed = [figures.findall(" ".join(row[1:])) for row in rows]

    section = (ROOT / "docs" / "measured.md").read_text().split("## The demo")[1].split("##")[0]
    documented = [row for row in section.splitlines() if row.startswith("|")][2:-1]
    cells = [row.split("|", 2)[2] for row in documented]
    assert [figures.findall(row) for row in cells] == computed


def test_a_failing_sweep_is_an_error_that_says_what_to_do(tmp_path, declared):
    one_job = SMALL.replace("CLIPZeroShot, ", "").replace("line, ", "")
    declared.write_text(one_job + "hparams: {clip_backbone: /no/such.pt}\n")
    message = r"(?s)1 job is not done.*no/such.pt.*carft sweep retry"
    with pytest.raises(CarftError, match=message):
        demo.run(tmp_path / "out", declared=declared)


def test_the_demo_of_a_suite_shows_both_accuracies_and_the_curve(
    tmp_path, declared, monkeypatch, capsys
):
    suite = catalogue.get("EmojiShift")
    short_suite = replace(suite, sets=(suite.sets[0], suite.sets[2]))  # for time
    monkeypatch.setitem(catalogue.SUITES, "EmojiShift", lambda: short_suite)
    declared.write_text(SHIFT)
    output = tmp_path / "out"

    demo.run_suite(output, declared=declared)

    printed = capsys.readouterr().out
    assert (output / "results.txt").read_text() in printed
    by_algorithm_and_alpha = {
        (record["algorithm"], record["wise_ft_alpha"]): record
        for folder in (output / "sweep").glob("*/")
        for record in records.read(folder, warnings=[])
    }
    assert len(by_algorithm_and_alpha) == 1 + 1 + 5
    run = by_algorithm_and_alpha["CARFT", None]
    assert by_algorithm_and_alpha["CARFT", 1.0]["sets"] == run["sets"]
    original = by_algorithm_and_alpha["CARFT", 0.0]
    zero_shot = by_algorithm_and_alpha["CLIPZeroShot", None]
    assert original["sets"]["line"]["right"] == zero_shot["sets"]["line"]["right"]

    half_way = by_algorithm_and_alpha["CARFT", 0.5]
    for label, record in (("CARFT ", run), ("CARFT, alpha 0.5 ", half_way)):
        (row,) = (line for line in printed.splitlines() if line.startswith(label))
        for share in (record["sets"]["noto"]["accuracy"], record["mean"]):
            assert f"{100 * share:.1f} (1)" in row

    assert (output / "report" / "figures" / "suite-EmojiShift.png").exists()
    assert (output / "suites" / "CARFT-0" / "wise-ft" / "wise_ft.json").exists()

    demo.run_suite(output, declared=declared)  # with nothing left to train
