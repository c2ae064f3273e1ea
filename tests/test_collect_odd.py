"""Folders, files and values that no sweep makes, and that are there all the same."""

import json
import math
import os
import stat
import subprocess
import sys

import collect_sweeps
import pytest

from domainbed_carft import cli
from domainbed_carft.collect import formats, output, reading
from domainbed_carft.collect.document import Document, Grid
from domainbed_carft.errors import CarftError

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
        start = "1 accuracies are no numbers and count as missing: env2_out_acc "
        assert text.startswith(start + words) and text.endswith(" at step 100")


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


# What comes out

ODD = "two\nlines \x1b[31mred \u2028\udcff"
ESCAPED = "two\\nlines \\x1b[31mred \\u2028\\udcff"


@pytest.mark.parametrize("name", ["text", "html", "markdown", "latex"])
def test_control_characters_are_shown_and_break_nothing(name):
    def page(word):
        grid = Grid(word, ["a", word], [[word, word]], [word])
        return formats.render(Document(word, [word], [grid], {}, []), name)

    text = page(ODD)
    assert text.count("\n") == page("word").count("\n")
    assert not any(character in text for character in "\x1b\u2028\udcff")
    if name in ("text", "html"):
        assert text.count(ESCAPED) == page("word").count("word")


def test_control_characters_are_shown_on_the_error_stream(tmp_path, capsys):
    collect_sweeps.write_job(tmp_path, "job")
    (tmp_path / os.fsdecode(b"\xff\n\x1b[31m")).mkdir()
    assert cli.main(["collect", str(tmp_path)]) == 0
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("empty folder"))
    assert line == f"empty folder: {tmp_path}/\\udcff\\n\\x1b[31m: no records"


@pytest.mark.parametrize("name", formats.NAMES)
def test_names_that_no_encoding_has_are_written(tmp_path, name):
    collect_sweeps.write_job(tmp_path / "sweep", "job", dataset="x\ud800y", algorithm="é\udcff")
    (tmp_path / "sweep" / os.fsdecode(b"\xff")).mkdir()
    path = tmp_path / "table"
    command = ["collect", str(tmp_path / "sweep"), "--format", name, "-o", str(path)]
    assert cli.main(command) == 0
    text = path.read_text(encoding="utf-8")
    if name == "json":
        assert json.loads(text)["tables"][0]["dataset"] == "x\ud800y"
    elif name == "latex":
        assert "x(U+D800)y" in text
    else:
        assert "x\\ud800y" in text.replace("\\\\", "\\")


@pytest.mark.parametrize("more", [["collect"], ["collect", "--format", "json"], ["top"]])
def test_a_screen_without_the_letters_gets_escapes(tmp_path, more):
    collect_sweeps.write_job(tmp_path, "job", algorithm="数据")
    done = subprocess.run(
        [sys.executable, "-m", "domainbed_carft", *more, str(tmp_path)],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True, encoding="latin-1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\\u6570\\u636e" in done.stdout
    if more != ["collect"]:
        assert "数据" in json.dumps(json.loads(done.stdout), ensure_ascii=False)


def test_top_has_null_for_what_is_no_number(tmp_path, capsys):
    collect_sweeps.write_job(tmp_path, "job", recorded={"lr": math.nan, "wd": math.inf})
    assert cli.main(["top", str(tmp_path), "--select", "oracle"]) == 0

    def refuse(name):
        raise AssertionError(name)

    (entry,) = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert entry["hparams"] == {"lr": None, "wd": None}
    assert entry["argument"] == """--hparams '{"lr": NaN, "wd": Infinity}'"""


# The file that is written


def test_a_full_disk_leaves_the_old_table(tmp_path):
    collect_sweeps.write_job(tmp_path / "sweep", "job")
    path = tmp_path / "table.txt"
    path.write_text("old")
    limited = (
        "import resource, sys; from domainbed_carft import cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)); sys.exit(cli.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "collect", str(tmp_path / "sweep"), "-o", str(path)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and f"--output {path} cannot be written" in done.stderr
    assert path.read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["sweep", "table.txt"]


def test_a_link_and_permissions_are_kept(tmp_path):
    path, link, new = tmp_path / "table", tmp_path / "link", tmp_path / "new"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to("table")
    output.write("± \ud800", link)
    assert link.is_symlink() and path.read_text(encoding="utf-8") == "± \\ud800"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    output.write("new", new)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(new.stat().st_mode) == 0o666 & ~mask
    assert sorted(os.listdir(tmp_path)) == ["link", "new", "table"]
    with pytest.raises(CarftError, match=r"--output .*no/table cannot be written \(No such file"):
        output.write("", tmp_path / "no" / "table")


def test_output_may_be_a_device(tmp_path):
    collect_sweeps.write_job(tmp_path, "job")
    done = subprocess.run(
        [sys.executable, "-m", "domainbed_carft", "collect", str(tmp_path), "-o", "/dev/stdout"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("PACS; "), done.stderr


# --strict


@pytest.mark.parametrize(
    ("content", "status", "why"),
    [
        ("", 3, "carft: --strict: 1 named above as: no records"),
        ('{"step": 0, "args"', 3, "carft: --strict: 1 named above as: no records"),
        (
            '{"step": 0, "args": {"dataset": 1, "algorithm": 1, "test_envs": [], "trial_seed": 1,'
            ' "hparams_seed": 1}}',
            3, "carft: --strict: 1 named above as: unreadable",
        ),
        (None, 0, "48 records of 16 jobs."),
    ],
)  # fmt: skip
def test_strict_ends_with_3_over_jobs_without_usable_records(
    tmp_path, capsys, content, status, why
):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    if content is not None:
        (tmp_path / "lost").mkdir()
        (tmp_path / "lost" / "results.jsonl").write_text(content)
    assert cli.main(["collect", str(tmp_path), "--strict", "--select", "oracle"]) == status
    assert capsys.readouterr().err.splitlines()[-1] == why


def test_strict_leaves_a_planned_job_to_the_cells_asked_for(tmp_path):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    args = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [0, 1]}
    args |= {"trial_seed": 0, "hparams_seed": 0}
    for name in ("steps", "checkpoint_freq"):
        args[name] = None
    (tmp_path / "planned").mkdir()
    (tmp_path / "planned" / "job.json").write_text(json.dumps({"train_args": args}))
    assert cli.main(["collect", str(tmp_path), "--strict", "--select", "oracle"]) == 0
    assert cli.main(["collect", str(tmp_path), "--strict", "--select", "leave-one-domain-out"]) == 3
