"""What the collector prints and writes: odd names, screens, files and disks, and ``--strict``."""

import json
import math
import os
import stat
import subprocess
import sys

import collect_sweeps
import pytest

from domainbed_carft import cli
from domainbed_carft.errors import CarftError
from domainbed_carft.results import formats, output
from domainbed_carft.results.document import Document, Grid

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


NAMES = ("results.jsonl", "job.json", "done", "model.pkl", "state.pt", "out.txt", "link")


@pytest.mark.parametrize("name", [*(f"sweep/job/{name}" for name in NAMES), "sweep/sweep.yaml"])
@pytest.mark.parametrize("command", ["collect", "evaluate"])
def test_output_never_replaces_what_a_job_has(tmp_path, capsys, name, command):
    """Nor makes what it would have: a file ``done`` says that the job is."""
    job = collect_sweeps.write_job(tmp_path / "sweep", "job", done=False)
    (job / "link").symlink_to("results.jsonl")
    for file in ("sweep.yaml", "sweep.json"):
        (tmp_path / "sweep" / file).touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read = tmp_path / "sweep" if command == "collect" else job
    assert cli.main([command, str(read), "-o", str(tmp_path / name)]) == 1
    assert f"--output {tmp_path / name} is a file of a job" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_output_may_be_called_as_a_file_of_a_job_elsewhere(tmp_path):
    collect_sweeps.write_job(tmp_path / "sweep")
    for name in ("out.txt", "sweep.yaml"):
        assert cli.main(["collect", str(tmp_path / "sweep"), "-o", str(tmp_path / name)]) == 0


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
