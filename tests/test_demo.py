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
steps: 1
test_environments: [line, noto]
"""
LINE = 1  # the numbers of these environments
NOTO = 2

SHIFT = SMALL.replace("EmojiStyles", "EmojiShift").partition("test_environments")[0]


def selected_accuracies(folder):
    """(algorithm, target) -> the accuracy in % that training-domain validation takes, by hand."""
    accuracies = {}
    for path in folder.glob("*/results.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        algorithm = records[0]["args"]["algorithm"]
        (target,) = records[0]["args"]["test_envs"]
        validation_keys = [f"env{number}_out_acc" for number in range(4) if number != target]
        best = max(records, key=lambda record: sum(record[key] for key in validation_keys))
        accuracies[algorithm, target] = 100 * best[f"env{target}_in_acc"]
    return accuracies


@pytest.fixture
def declared(tmp_path):
    """The file of the small sweep."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.mark.parametrize(
    "targets", [("line",), pytest.param(("line", "noto"), marks=pytest.mark.slow)]
)
def test_the_demo_trains_and_writes_the_table_and_the_report(tmp_path, declared, capsys, targets):
    declared.write_text(SMALL.replace("[line, noto]", f"[{', '.join(targets)}]"))
    output = tmp_path / "it's a demo"
    demo.run(output, declared=declared)

    printed = capsys.readouterr()
    expected = selected_accuracies(output / "sweep")
    job_count = 2 * len(targets)
    assert len(expected) == job_count
    assert len(list((output / "sweep").glob("*/model.pkl"))) == job_count
    assert f"{job_count} of {job_count} jobs done" in printed.err

    table = (output / "results.txt").read_text()
    assert table in printed.out
    section = table.split("training-domain validation set")[1].split("Averages")[0]
    page = report_page.read(output / "report")
    _, *rows = page.tables["EmojiStyles; training-domain validation set"]
    assert [row[0] for row in rows] == ["CLIPZeroShot", "CARFT"]
    for name, *cells in rows:
        values = {n: expected[name, n] for n in (LINE, NOTO) if (name, n) in expected}
        (row,) = re.findall(rf"^{name} .*$", section, flags=re.MULTILINE)
        accuracies = (f"{values[n]:.1f} +/- 0.0" if n in values else "X" for n in range(4))
        assert row.split() == [name, *" ".join(accuracies).split(), "X"]

        # Nobody declared jobs for the others: the average is over what there is.
        accuracies = (f"{values[n]:.1f}" if n in values else "-" for n in range(4))
        assert cells == [*accuracies, f"{sum(values.values()) / len(values):.1f}"]

    assert (output / "report" / "figures" / "EmojiStyles-context_drift.png").exists()
    for file in ("results.txt", "report/index.html"):
        assert str(output / file) in printed.out

    demo.run(output, declared=declared)  # with nothing left to do
    assert (output / "results.txt").read_text() == table


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
        for record in records.read(folder)
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
