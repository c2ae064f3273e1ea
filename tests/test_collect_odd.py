"""Folders, files and values that no sweep makes, and that are there all the same."""

import json
import math
import os
import warnings

import collect_sweeps
import pytest

from domainbed_carft.jobs import reading

NAMES = [f"env{env}_{split}_acc" for split in ("in", "out") for env in range(4)]


def told(read):
    return [(fault.kind, os.path.basename(fault.path), fault.text) for fault in read.faults]


def rewrite(job, change):
    """Change each record, as it was decoded."""
    path = job / "results.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def folders(read):
    return [os.path.basename(run.folder) for run in read.runs]


# Folders


@pytest.mark.parametrize("name", ["out.txt", "err.txt"])
def test_what_a_shell_writes_beside_the_jobs_hides_none(tmp_path, name):
    collect_sweeps.write_job(tmp_path / "sweep", "job")
    (tmp_path / "sweep" / name).write_text("nohup: ignoring input\n")
    (tmp_path / "sweep" / "begun").mkdir()
    (tmp_path / "sweep" / "begun" / name).touch()
    read = reading.read([tmp_path])
    assert folders(read) == ["job"]
    assert told(read) == [("no records", "begun", "no record")]


def test_a_folder_of_what_is_done_hides_none(tmp_path):
    collect_sweeps.write_job(tmp_path / "done", "one")
    collect_sweeps.write_job(tmp_path, "two")
    assert folders(reading.read([tmp_path])) == ["one", "two"]


def test_folders_too_deep_are_told_and_can_be_named(tmp_path):
    collect_sweeps.write_job(tmp_path / "a" / "b" / "c", "deep")
    collect_sweeps.write_job(tmp_path, "job", test_envs=[1])
    read = reading.read([tmp_path])
    assert folders(read) == ["job"]
    ((kind, name, text),) = told(read)
    assert (kind, name) == ("too deep", "c")
    assert text.startswith("its 1 folders are more than 3 levels below what was named")
    read = reading.read([tmp_path, tmp_path / "a" / "b" / "c"])
    assert folders(read) == ["job", "deep"]
    assert [fault.kind for fault in read.faults] == ["named twice"]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_above_is_not_followed(tmp_path, target):
    collect_sweeps.write_job(tmp_path / "other", "job")
    collect_sweeps.write_job(tmp_path / "sweep", "job")
    (tmp_path / "sweep" / "a link").symlink_to(target)
    read = reading.read([tmp_path / "sweep"])
    assert len(read.runs) == 1
    ((kind, name, text),) = told(read)
    assert (kind, name) == ("link upwards", "a link")
    assert os.path.realpath(tmp_path / "sweep" / target) in text


@pytest.mark.parametrize("target", ["job", "sweep"])
def test_what_a_link_repeats_counts_once(tmp_path, target):
    job = collect_sweeps.write_job(tmp_path / "sweep", "job")
    (tmp_path / "z").symlink_to(job if target == "job" else tmp_path / "sweep")
    read = reading.read([tmp_path])
    assert len(read.runs) == 1 and read.records == 3
    found = os.path.realpath(job if target == "job" else tmp_path / "sweep")
    text = f"this is {found}, which was found already; its jobs count once"
    assert told(read) == [("found twice", "z", text)]


def test_links_to_elsewhere_are_followed(tmp_path):
    collect_sweeps.write_job(tmp_path / "elsewhere", "job")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "sweep" / "nowhere").symlink_to("nothing")
    read = reading.read([tmp_path / "sweep"])
    assert folders(read) == ["job"] and read.faults == []


def test_a_link_to_itself_is_told(tmp_path):
    collect_sweeps.write_job(tmp_path, "job")
    (tmp_path / "a").symlink_to("a")
    read = reading.read([tmp_path])
    assert folders(read) == ["job"]
    assert [(kind, name) for kind, name, _ in told(read)] == [("unreadable", "a")]


@pytest.mark.parametrize("name", ["results.jsonl", "out.txt", "job.json"])
def test_pipes_are_not_waited_for(tmp_path, name):
    job = tmp_path / "job"
    if name == "out.txt":
        collect_sweeps.write_job(tmp_path, "job")
    else:
        job.mkdir()
    os.mkfifo(job / name)
    read = reading.read([tmp_path])
    assert ("no regular file", name, "no regular file; passed over") in told(read)
    assert len(read.runs) == (name == "out.txt")


# Values


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, None),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        ("0.5", "'0.5'"),
        (True, "True"),
        (10**400, "1000000"),
    ],
)
def test_an_accuracy_that_is_none_counts_as_missing(tmp_path, value, words):
    job = collect_sweeps.write_job(tmp_path, "job")
    before = list(reading.read([tmp_path]).runs[0].accuracies)
    path = job / "results.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | {"env2_out_acc": value})
    path.write_text("\n".join(lines))
    read = reading.read([tmp_path])
    after = list(read.runs[0].accuracies)
    at = 8 + NAMES.index("env2_out_acc")
    assert math.isnan(after[at])
    assert after[:at] + after[at + 1 :] == before[:at] + before[at + 1 :]
    if words is None:
        assert read.faults == []
    else:
        ((kind, _, text),) = told(read)
        assert kind == "no number"
        start = "1 accuracy is no number and counts as missing: env2_out_acc "
        assert text.startswith(start + words) and text.endswith(" at step 100")


@pytest.mark.parametrize("value", [63.5, 1e308, -0.25, 1.001])
def test_an_accuracy_out_of_range_counts_as_missing(tmp_path, value):
    collect_sweeps.write_sweep(tmp_path, ["ERM"], trials=1, choices=1)
    rewrite(tmp_path / "ERM-2-0-0", lambda record: record.update(env2_in_acc=value))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = collect_sweeps.tables(tmp_path)["", "oracle", "PACS"]
    cell = collect_sweeps.cell(table, "ERM", "P")
    assert (cell["mean"], cell["missing"]) == (
        None, ["--test_envs 2 has accuracies that are no numbers in [0, 1]: in every trial"]
    )  # fmt: skip
    assert told(reading.read([tmp_path])) == [
        (
            "out of range", "ERM-2-0-0", "3 accuracies are not in [0, 1] and count as missing: "
            f"env2_in_acc {value} at step 0, ...",
        )
    ]  # fmt: skip


def test_an_accuracy_that_rounding_took_beyond_one_counts(tmp_path):
    job = collect_sweeps.write_job(tmp_path, "job")
    rewrite(job, lambda record: record.update(env0_in_acc=1 + 2**-23))
    read = reading.read([tmp_path])
    assert (read.runs[0].accuracies[0], read.faults) == (1 + 2**-23, [])


@pytest.mark.parametrize("step", [True, math.nan, math.inf, 10**400, "0", None])
def test_a_step_that_is_no_finite_number_makes_no_record(tmp_path, step):
    job = collect_sweeps.write_job(tmp_path, "job")
    path = job / "results.jsonl"
    line = json.loads(path.read_text().splitlines()[0]) | {"step": step}
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    read = reading.read([tmp_path])
    assert list(read.runs[0].steps) == [0, 100, 200]
    ((kind, _, text),) = told(read)
    assert kind == "cut line"
    assert text.startswith("line 4 is no whole record and skipped: step is ")
    assert text.endswith("; expected a finite number")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"test_envs": [True]}, "test_envs [True], accuracies of 4 environments"),
        ({"test_envs": [0, 0]}, "test_envs [0, 0] has an environment twice"),
        ({"trial_seed": True}, "trial_seed is True, true or false; expected a whole number"),
        ({"hparams": [1]}, "args.hparams is [1], a list; expected an object"),
        ({"recorded": [1, 2]}, "hparams is [1, 2], a list; expected an object"),
        ({"recorded": "lr"}, "hparams is 'lr', a string; expected an object"),
    ],
)
def test_arguments_of_another_type_are_named(tmp_path, given, text):
    collect_sweeps.write_job(tmp_path, "fine")
    collect_sweeps.write_job(tmp_path, "odd", **given)
    read = reading.read([tmp_path])
    assert folders(read) == ["fine"]
    assert told(read) == [("unreadable", "odd", f"{text}; passed over")]


def test_true_is_not_one_within_a_file(tmp_path):
    job = collect_sweeps.write_job(tmp_path, "a", trial_seed=1)
    other = collect_sweeps.write_job(tmp_path / "elsewhere", "a", trial_seed=True, at=(300,))
    with (job / "results.jsonl").open("a") as file:
        file.write((other / "results.jsonl").read_text())
    read = reading.read([job])
    assert [list(run.steps) for run in read.runs] == [[0, 100, 200]]
    assert [fault.kind for fault in read.faults] == ["unreadable"]


def test_versions_of_another_type_are_named(tmp_path):
    job = collect_sweeps.write_job(tmp_path, "odd")
    rewrite(job, lambda record: record.update(versions=["2.4"]))
    text = "versions is ['2.4'], a list; expected an object; passed over"
    assert told(reading.read([tmp_path])) == [("unreadable", "odd", text)]


def test_arguments_that_are_no_object_are_named(tmp_path):
    job = collect_sweeps.write_job(tmp_path, "odd", at=(0,))
    rewrite(job, lambda record: record.update(args=["ERM"]))
    what = "line 1 is no whole record and skipped: args is ['ERM'], a list; expected an object"
    assert told(reading.read([tmp_path]))[0] == ("cut line", "results.jsonl", what)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([1, 2, 3, 4], "environments is [1, 2, 3, 4], expected a list of names"),
        (
            [["a"], "b", "c", "d"],
            "environments is [['a'], 'b', 'c', 'd'], expected a list of names",
        ),
        ("abcd", "environments is 'abcd', expected a list of names"),
        (5, "environments is 5, expected a list of names"),
        (["a", "b", "a", "c"], "environments is ['a', 'b', 'a', 'c'], which has a name twice"),
        (["a", "b", "c"], "3 environments are named, and there are accuracies of 4"),
    ],
)
def test_names_that_cannot_be_the_environments_are_not_used(tmp_path, names, text):
    job = collect_sweeps.write_job(tmp_path, "job")
    rewrite(job, lambda record: record.update(environments=names))
    read = reading.read([tmp_path])
    assert read.runs[0].environments == ()
    assert told(read) == [("no names", "job", f"{text}; they count as not recorded")]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dataset": ["PACS"]}, "dataset is ['PACS'], a list; expected a string"),
        ({"trial_seed": "x"}, "trial_seed is 'x', a string; expected a whole number"),
        ({"test_envs": ["q"]}, "test_envs ['q'], expected indices of environments"),
        ({"test_envs": 0}, "test_envs is 0, a whole number; expected a list"),
    ],
)
def test_a_description_of_another_type_plans_nothing(tmp_path, change, text):
    collect_sweeps.write_job(tmp_path, "fine")
    args = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [1]}
    args |= {"trial_seed": 0, "hparams_seed": 0}
    for name, given in (("odd", args | change), ("planned", args)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(json.dumps({"train_args": given}))
    read = reading.read([tmp_path])
    assert [os.path.basename(job.folder) for job in read.planned] == ["planned"]
    assert told(read) == [
        ("unreadable", "job.json", f"{text}; passed over"),
        ("no records", "odd", "no record"),
        ("not run", "planned", "no record of PACS ERM, test_envs [1], trial 0"),
    ]


def test_three_test_environments_are_told_to_count_nowhere(tmp_path):
    collect_sweeps.write_job(tmp_path, "pair", test_envs=[0, 1])
    collect_sweeps.write_job(tmp_path, "three", test_envs=[0, 1, 2])
    what = "3 test environments: no method of selection uses it"
    assert told(reading.read([tmp_path])) == [("counts nowhere", "three", what)]


def test_a_byte_order_mark_costs_no_record(tmp_path):
    job = collect_sweeps.write_job(tmp_path, "job")
    path = job / "results.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    read = reading.read([tmp_path])
    assert list(read.runs[0].steps) == [0, 100, 200] and read.faults == []


def test_what_is_nested_too_deeply_is_passed_over(tmp_path):
    collect_sweeps.write_job(tmp_path, "fine")
    job = collect_sweeps.write_job(tmp_path, "deep", hparams="[" * 100_000)
    read = reading.read([tmp_path])
    assert folders(read) == ["fine"]
    assert read.faults == [("unreadable", str(job), "nested too deeply; passed over")]
