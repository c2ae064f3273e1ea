"""What is wrong with folders, records and values is named, and never the end."""

import json
import math
import os
import random

import collect_sweeps
import pytest

from domainbed_carft import cli
from domainbed_carft.jobs import records
from domainbed_carft.results import formats
from domainbed_carft.results.formats import Grid

NAMES = [f"env{env}_{split}_acc" for split in ("in", "out") for env in range(4)]
ODD = "two\nlines \x1b[31mred \u2028\udcff"
ESCAPED = "two\\nlines \\x1b[31mred \\u2028\\udcff"


def folders(read):
    return [os.path.basename(run.folder) for run in read.runs]


def test_truncated_lines_are_skipped_and_repeated_steps_count_once(tmp_path):
    job = collect_sweeps.write_job(tmp_path)
    path = job / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    again = json.loads(lines[1]) | {"env0_in_acc": 0.125, "env1_in_acc": 1 + 2**-23}
    path.write_text("".join([*lines, "\n", lines[0][:70], "\n", json.dumps(again), "\n[1]\n"]))
    read = records.read([tmp_path])

    assert [(warning.kind, warning.text) for warning in read.warnings] == [
        ("cut line", "line 5 is not a complete record; skipped"),
        ("cut line", "line 7 is not a complete record; skipped"),
    ]

    (run,) = read.runs
    assert list(run.steps) == [0, 100, 200]
    assert list(run.accuracies[8:10]) == [0.125, 1 + 2**-23]  # rounding beyond 1 is no fault


def test_records_without_accuracies_are_reported(tmp_path, capsys):
    path = collect_sweeps.write_job(tmp_path, "job") / "results.jsonl"
    records_of_job = [json.loads(line) for line in path.read_text().splitlines()]
    without_accuracies = [
        json.dumps({key: value for key, value in record.items() if not key.endswith("_acc")})
        for record in records_of_job
    ]
    path.write_text("\n".join(without_accuracies) + "\n")

    assert records.read([tmp_path]) == (
        [],
        [("no accuracies", str(path), records.NO_ACCURACIES)],
    )
    assert cli.main(["collect", str(tmp_path)]) == 1

    error = capsys.readouterr().err
    assert error.count("records without accuracies: this checkout's train does not evaluate") == 1
    assert "cut line" not in error

    # Where others have some, theirs count, and a line that misses only a few is cut.
    incomplete = {key: value for key, value in records_of_job[2].items() if key != "env0_out_acc"}
    complete = json.dumps(records_of_job[0])
    path.write_text("\n".join([complete, without_accuracies[1], json.dumps(incomplete)]) + "\n")
    (run,), warnings = records.read([tmp_path])

    assert list(run.steps) == [0]
    assert [warning.kind for warning in warnings] == ["no accuracies", "cut line"]
    assert cli.main(["collect", str(tmp_path), "--strict"]) == 3
    assert "no accuracies (1)" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "change",
    [
        *({"step": step} for step in (True, math.nan, 10**400, "0", None)),
        *({"args": {"test_envs": targets}} for targets in ([0, 0], [4], ["q"])),
        {"args": {"trial_seed": True}},
        {"args": {"dataset": 1}},
        {"args": {"hparams": [1]}},
        {"args": {"steps": "²"}},
        {"args": {"steps": 10**400}},
        {"hparams": "lr"},
    ],
)
def test_lines_with_wrong_types_are_not_records(tmp_path, change):
    path = collect_sweeps.write_job(tmp_path, "job") / "results.jsonl"
    line = json.loads(path.read_text().splitlines()[0])
    args = {**line["args"], **change.get("args", {})}
    with path.open("a") as file:
        file.write(json.dumps({**line, **change, "args": args}) + "\n")
    (run,), (warning,) = records.read([tmp_path])

    assert list(run.steps) == [0, 100, 200]
    assert warning.text == "line 4 is not a complete record; skipped"


def test_several_runs_in_one_folder_are_separated(tmp_path):
    first = collect_sweeps.write_job(tmp_path, "a")
    second = collect_sweeps.write_job(tmp_path, "b", at=(0, 100), hparams='{"lr": 1}')
    path = first / "results.jsonl"
    with path.open("a") as file:
        file.write((second / "results.jsonl").read_text())
    runs = records.read([first]).runs

    assert [list(run.steps) for run in runs] == [[0, 100, 200], [0, 100]]
    assert runs[1].setting["hparam lr"] == "1"
    assert [[record["step"] for record in records.run_records(run)] for run in runs] == [
        [0, 100, 200],
        [0, 100],
    ]

    expected = [json.loads(line) for line in path.read_text().splitlines()]
    assert records.read_file(path) == (expected, [])

    with path.open("a") as file:
        file.write('{"step": 300, "ar')
    assert records.last_record(first) == expected[-1]
    assert records.recorded_arguments(first) == expected[0]["args"]
    assert records.last_record(tmp_path) is None and records.recorded_arguments(tmp_path) is None


OF_HPARAMS = "hparams than the rest: lr_schedule, lr_schedumed"


@pytest.mark.parametrize(
    ("line", "name", "damaged", "difference"),
    [
        *((line, "_schedule", "_schedumed", OF_HPARAMS) for line in range(3)),
        (0, "env3_out_acc", "env3_out_abc", "accuracies than the rest"),
        (1, "env3_out_acc", "env3_out_abc", "accuracies than the rest"),
    ],
)
def test_a_damaged_line_is_skipped_and_marked(line, name, damaged, difference, tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], recorded={"lr_schedule": "cosine"})
    path = tmp_path / "ERM-0-0-0" / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[line] = lines[line].replace(name, damaged)
    path.write_text("".join(lines))
    results = collect_sweeps.collect(tmp_path, methods=["oracle"])

    text = f"step {100 * line} has other {difference}; skipped"
    assert results.warnings == [("damaged", str(path.parent), text)]
    (cell, *complete) = results.tables[0].rows[0].cells
    assert len(cell.missing) == 1 and not any(other.missing for other in complete)


def test_folders_are_found_once_each_and_with_links(tmp_path):
    for variant in ("kl_weight=1", "kl_weight=3"):
        collect_sweeps.write_sweep(tmp_path / "sweep" / variant, ["CARFT"], 1, 1)
    (tmp_path / "sweep" / "up").symlink_to("..")
    (tmp_path / "sweep" / "self").symlink_to("self")
    (tmp_path / "sweep" / "out.txt").write_text("nohup: ignoring input\n")
    collect_sweeps.write_job(tmp_path / "done", "one")
    (tmp_path / "link").symlink_to(tmp_path / "done" / "one")
    (tmp_path / "strange" / "results.jsonl").mkdir(parents=True)
    read = records.read([tmp_path, tmp_path / "sweep"])

    assert (len(read.runs), read.warnings) == (9, [])

    job = tmp_path / "sweep" / "kl_weight=1" / "CARFT-0-0-0"
    assert len(records.read([job, tmp_path]).runs) == 9

    collect_sweeps.write_job(tmp_path / "a" / "b" / "c", "deep")
    assert folders(records.read([tmp_path / "a", tmp_path / "a" / "b" / "c"])) == ["deep"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    collect_sweeps.write_job(tmp_path, "job")
    (tmp_path / "closed").mkdir(mode=0)
    read = records.read([tmp_path])

    assert folders(read) == ["job"] and [warning.kind for warning in read.warnings] == [
        "unreadable"
    ]


def test_versions_are_read_from_the_output_of_train(tmp_path):
    job = collect_sweeps.write_job(tmp_path)
    printed = "Environment:\n\tPython: 3.11.2\n\tPyTorch: {}\n\tNumPy: 2.1\nArgs:\n\tseed: 0\n"
    text = printed.format("2.4.1") + "step\n" + printed.format("2.5.0") + printed.format("2.5.0")
    (job / "out.txt").write_text(text)
    (run,) = records.read([tmp_path]).runs

    assert run.setting["version of PyTorch"] == "2.4.1, then 2.5.0"
    assert run.setting["version of NumPy"] == "2.1"


@pytest.mark.parametrize("value", [None, math.nan, "0.5", True, 10**400, 63.5, -0.25, 1.001])
def test_an_invalid_accuracy_counts_as_missing(tmp_path, value):
    job = collect_sweeps.write_job(tmp_path, "job")
    before = list(records.read([tmp_path]).runs[0].accuracies)
    path = job / "results.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"env2_out_acc": value})
    path.write_text("\n".join(lines))
    after = list(records.read([tmp_path]).runs[0].accuracies)
    index = 8 + NAMES.index("env2_out_acc")

    assert math.isnan(after[index])
    assert after[:index] + after[index + 1 :] == before[:index] + before[index + 1 :]

    lines[1] = json.dumps(json.loads(lines[1]) | {"env2_out_acc": 1 + 2**-23})  # by rounding
    path.write_text("\n".join(lines))
    assert records.read([tmp_path]).runs[0].accuracies[index] == 1 + 2**-23


@pytest.mark.parametrize("name", ["text", "markdown", "csv"])
def test_control_characters_are_shown_and_break_nothing(name):
    def page(word):
        grid = Grid(word, ["a", word], [[word, word]], [word])
        if name == "csv":
            return formats.as_csv([{"a": word}])
        return getattr(formats, f"as_{name}")([grid], [word])

    text = page(ODD)
    assert text.count("\n") == page("word").count("\n")
    assert not any(character in text for character in "\x1b\u2028\udcff")

    if name in ("text", "csv"):
        assert text.count(ESCAPED) == page("word").count("word")


def test_csv_names_are_never_spreadsheet_formulas(tmp_path, capsys):
    collect_sweeps.write_job(tmp_path, "job", algorithm='=HYPERLINK("http://x")', dataset="-1+@")
    assert cli.main(["collect", str(tmp_path), "--format", "csv", "--select", "oracle"]) == 0

    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith(""",oracle,'-1+@,env0,"'=HYPERLINK(""http://x"")",""")


def test_top_writes_null_for_nan(tmp_path, capsys):
    collect_sweeps.write_job(tmp_path, "job", recorded={"lr": math.nan, "wd": math.inf})
    assert cli.main(["top", str(tmp_path), "--select", "oracle", "--json"]) == 0

    def refuse(name):
        raise AssertionError(name)

    (entry,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert entry["hparams"] == {"lr": None, "wd": None}
    assert entry["argument"] == """--hparams '{"lr": NaN, "wd": Infinity}'"""


@pytest.mark.parametrize("content", ["", '{"step": 0, "args"'])
def test_a_folder_without_a_complete_record_is_named_and_strict_fails(tmp_path, capsys, content):
    collect_sweeps.write_job(tmp_path, "lost")
    (tmp_path / "lost" / "results.jsonl").write_text(content)
    words = ["collect", str(tmp_path), "--strict", "--select", "oracle"]

    assert cli.main(words) == 1

    error = capsys.readouterr().err
    assert error.startswith("carft: no records in") and "no records: " in error

    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    assert cli.main(words) == 3

    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line == "carft: --strict: no records (1)"
    assert cli.main(["collect", str(tmp_path / "x"), str(tmp_path), str(tmp_path / "y")]) == 1
    assert f"no such folder: {tmp_path / 'x'}, {tmp_path / 'y'}; exp" in capsys.readouterr().err


def test_mutated_records_and_manifests_raise_no_traceback(tmp_path, capsys):
    """Not one ends in a traceback, or moves the terminal; benchmarks/hostile.py tries more."""
    hostile = collect_sweeps.benchmark("hostile")
    draw = random.Random(1)
    for number in range(30):
        folder = tmp_path / str(number)
        collect_sweeps.launch(folder, targets=(0,), hparams=('{"lr": 0.1}',))
        for path in (folder / "sweep.json", *folder.glob("*/results.jsonl")):
            if draw.random() < 0.6:
                path.write_bytes(hostile.mutated(path.read_bytes(), draw))
        for words in (
            ["collect"],
            ["collect", "--format", "csv"],
            ["top"],
            ["sweep", "status"],
            ["diff", str(folder)],
        ):
            status = cli.main([*words, str(folder)])
            printed = capsys.readouterr()
            assert status == 0 or (status in (1, 2) and printed.err.startswith("carft: "))
            assert not set(hostile.ESCAPE[:1] + hostile.ESCAPE[-2:]) & set(
                printed.out + printed.err
            )
