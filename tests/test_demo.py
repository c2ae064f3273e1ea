"""The demo end to end in small, through real sub-processes, and what it says when jobs fail."""

import json
import re
from dataclasses import replace

import pytest
import report_page

from domainbed_carft.cli import demo
from domainbed_carft.errors import CarftError
from domainbed_carft.suites import catalogue, records

SMALL = """
name: small
datasets: [EmojiStyles]
algorithms: [CLIPZeroShot, CARFT]
trials: 1
steps: 2
test_environments: [line, noto]
"""
SHIFT = SMALL.replace("EmojiStyles", "EmojiShift").partition("test_environments")[0]


def selected(folder):
    """(algorithm, target) -> the accuracy in % that training-domain validation takes, by hand."""
    found = {}
    for path in folder.glob("*/results.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        (target,) = records[0]["args"]["test_envs"]
        kept = [environment for environment in range(4) if environment != target]
        best = max(records, key=lambda record: sum(record[f"env{e}_out_acc"] for e in kept))
        found[records[0]["args"]["algorithm"], target] = 100 * best[f"env{target}_in_acc"]
    return found


def test_two_algorithms_two_targets_then_the_table_and_the_report(tmp_path, capsys):
    output = tmp_path / "it's a demo"
    declared = tmp_path / "small.yaml"
    declared.write_text(SMALL)
    demo.run(output, declared=declared)
    said = capsys.readouterr()
    expected = selected(output / "sweep")
    assert len(expected) == len(list((output / "sweep").glob("*/model.pkl"))) == 4

    table = (output / "results.txt").read_text()
    assert table in said.out
    section = table.split("training-domain validation set")[1]
    page = report_page.read(output / "report")
    _, *rows = page.tables["EmojiStyles; training-domain validation set"]
    assert [row[0] for row in rows] == ["CLIPZeroShot", "CARFT"]
    for name, *cells in rows:
        values = [expected[name, target] for target in (1, 2)]  # line, noto
        (row,) = re.findall(rf"^{name} .*$", section.split("Averages")[0], flags=re.MULTILINE)
        line, noto = (f"{value:.1f}" for value in values)
        assert row.split() == f"{name} X {line} +/- 0.0 {noto} +/- 0.0 X X".split()
        # Nobody declared jobs for the other two: the average is over what there is.
        mean = f"{sum(values) / 2:.1f}"
        assert cells == ["-", f"{line} ± 0.0 (1)", f"{noto} ± 0.0 (1)", "-", mean]
    assert (output / "report" / "figures" / "EmojiStyles-context_drift.png").exists()
    for place in ("results.txt", "report/index.html"):
        assert str(output / place) in said.out
    assert "4 of 4 jobs done" in said.err

    demo.run(output, declared=declared)  # with nothing left to do
    assert (output / "results.txt").read_text() == table


def test_a_failing_sweep_is_told_with_what_to_do(tmp_path):
    declared = tmp_path / "small.yaml"
    small = SMALL.replace("CLIPZeroShot, ", "").replace("line, ", "")
    declared.write_text(small + "hparams: {clip_backbone: /no/such.pt}\n")
    message = r"(?s)1 job is not done.*no/such.pt.*carft sweep retry"
    with pytest.raises(CarftError, match=message):
        demo.run(tmp_path / "out", declared=declared)


def test_the_demo_of_a_suite_shows_both_accuracies_and_the_curve(tmp_path, monkeypatch, capsys):
    whole = catalogue.get("EmojiShift")
    few = replace(whole, sets=(whole.sets[0], whole.sets[2]))  # for time
    monkeypatch.setitem(catalogue.SUITES, "EmojiShift", lambda: few)
    declared = tmp_path / "small.yaml"
    declared.write_text(SHIFT)
    demo.run_suite(tmp_path / "out", declared=declared)
    said = capsys.readouterr().out
    assert (tmp_path / "out" / "results.txt").read_text() in said
    lines = {}
    for folder in (tmp_path / "out" / "sweep").glob("*/"):
        for one in records.read(folder):
            lines[one["algorithm"], one["wise_ft_alpha"]] = one
    assert len(lines) == 1 + 1 + 5
    assert lines["CARFT", 1.0]["sets"] == lines["CARFT", None]["sets"]
    assert (
        lines["CARFT", 0.0]["sets"]["line"]["right"]
        == (lines["CLIPZeroShot", None]["sets"]["line"]["right"])
    )
    for label, key in (("CARFT ", None), ("CARFT, alpha 0.5 ", 0.5)):
        (row,) = (line for line in said.splitlines() if line.startswith(label))
        one = lines["CARFT", key]
        for share in (one["sets"]["noto"]["accuracy"], one["mean"]):
            assert f"{100 * share:.1f} +/- 0.0 (1)" in row
    assert (tmp_path / "out" / "report" / "figures" / "suite-EmojiShift.png").exists()
    assert (tmp_path / "out" / "suites" / "CARFT-0" / "wise-ft" / "wise_ft.json").exists()
    demo.run_suite(tmp_path / "out", declared=declared)  # with nothing left to train
