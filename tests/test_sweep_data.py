"""What `carft sweep launch` sees of the data before a job starts."""

import json
import re
import shutil

import pytest
from data_trees import even, grow
from domainbed.scripts import sweep as harness_sweep

from domainbed_carft import cli
from domainbed_carft.data import benchmarks
from domainbed_carft.sweep import launch as launching
from domainbed_carft.sweep import sources


def published(root, name):
    """The folders of a benchmark with a picture a class: in order, but no known edition."""
    known = benchmarks.get(name)
    return grow(root / known.folder, even(known.classes, [e.folder for e in known.environments]))


def carft(capsys, datasets, *more, algorithms=("CARFT",)):
    """Exit status, output and errors of a launch of one trial."""
    capsys.readouterr()
    given = ["--algorithms", *algorithms, "--datasets", *datasets, "--n_trials", "1"]
    given += ["--n_hparams", "1", "--single_test_envs", "--output_dir", "out"]
    status = cli.main(["sweep", "launch", *given, *map(str, more)])
    said = capsys.readouterr()
    return status, said.out, said.err


def own(root):
    return grow(root / "pets", {e: {"cat": 2, "dog": 2} for e in "ab"})


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with PACS in order and VLCS damaged, below the current folder."""
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "data", "PACS")
    published(tmp_path / "data", "VLCS")
    (tmp_path / "data" / "VLCS" / "__MACOSX").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("launcher", ["local", "pool", "dummy"])
def test_broken_data_is_refused_for_our_algorithms_before_the_first_job(data, capsys, launcher):
    shutil.rmtree(data / "PACS" / "photo")
    more = ["--data_dir", data, "--launcher", launcher]
    status, out, err = carft(capsys, ["VLCS", "PACS"], *more, algorithms=["ERM", "CARFT"])
    assert status == 1 and "2 problems, nothing was done" in err
    assert f"- the data of VLCS in {data}/VLCS is broken: the environments are " in err
    assert f"- the data of PACS in {data}/PACS is broken: the environments are " in err
    assert err.count("or set the hparam data_edition to unchecked") == 2
    assert "jobs" not in out and not (data.parent / "out").exists()


def test_broken_data_is_told_of_for_others_algorithms(data, capsys):
    more = ["--data_dir", data, "--launcher", "dummy"]
    status, out, err = carft(capsys, ["VLCS"], *more, algorithms=["ERM"])
    assert status == 0 and "Data: VLCS: broken: the environments are " in out, err


def test_a_dry_run_shows_costs_and_verdicts_before_it_refuses(data, capsys):
    given = ["--data_dir", data, "--dry-run"]
    status, out, err = carft(capsys, ["VLCS", "PACS"], *given)
    assert status == 1 and "1 problem, nothing was done" in err and "__MACOSX" in err
    assert "Data: VLCS: broken: " in out and "Data: PACS: differs: " in out
    assert "8 jobs: 8 not launched" in out and "40,008" in out  # steps of both
    status, out, err = carft(capsys, ["VLCS", "PACS"], *given, "--launcher", "poool")
    assert status == 1 and "2 problems" in err and not out
    assert not (data.parent / "out").exists()


def test_a_data_folder_is_asked_for_only_where_it_is_needed(data, capsys):
    own(data.parent)
    for names in (["./pets"], ["./pets", "EmojiStyles"], ["Debug28"]):
        status, out, err = carft(capsys, names, "--launcher", "dummy")
        assert status == 0 and " --data_dir . --dataset " in out, err
    status, _, err = carft(capsys, ["./pets", "PACS"])
    assert status == 1 and "--data_dir is missing" in err


def test_all_mistakes_and_all_data_are_told_at_once(data, capsys):
    more = ["--data_dir", data, "--launcher", "poool"]
    status, _, err = carft(capsys, ["VLCS", "OfficeHome"], *more)
    assert status == 1 and "called 'poool'" in err and "__MACOSX" in err
    more = ["--data_dir", data, "--launcher", "local"]
    status, _, err = carft(capsys, ["VLCS", "OfficeHome"], *more)
    assert status == 1 and "2 problems" in err
    assert "__MACOSX" in err and "OfficeHome is not there: expected the folder" in err


def test_each_verdict_is_shown(data, capsys):
    own(data.parent)
    shutil.rmtree(data / "VLCS")
    grow(data / "VLCS", benchmarks.get("VLCS").editions[0].by_class)
    names = ["PACS", "VLCS", "OfficeHome", "EmojiStyles", "./pets"]
    status, out, err = carft(capsys, names, "--data_dir", data, "--dry-run")
    assert status == 0, err
    digest = re.compile(": [0-9a-f]{8},")  # of the counts, as the records will have it
    lines = [digest.sub(",", line) for line in out.splitlines() if line.startswith("Data: ")]
    assert lines == [
        f"Data: PACS: differs, 28 pictures in {data}/PACS.",
        f"Data: VLCS: verified: as published, 10,729 pictures in {data}/VLCS.",
        f"Data: OfficeHome: not seen, no {data}/office_home here; the jobs look at it where they "
        "run.",
        "Data: EmojiStyles: in the package.",
        "Data: ./pets: consistent, 8 pictures in pets.",
    ]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda root: (root / "b" / "owl").mkdir(), "the class folders in 'b' are not those in"),
        (lambda root: [(root / e / "owl").mkdir() for e in "ab"], "has no picture in 'owl'"),
    ],
)
def test_an_own_tree_is_looked_at(data, capsys, spoil, problem):
    spoil(own(data.parent))
    for more in ([], ["--dry-run"]):
        status, _, err = carft(capsys, ["./pets"], "--data_dir", data, *more)
        assert status == 1 and "1 problem, nothing was done" in err and problem in err
    assert not (data.parent / "out").exists()


def test_both_tools_have_the_same_name_for_a_path(data, capsys):
    grow(data.parent / "PACS", {e: {"cat": 2, "dog": 2} for e in "ab"})
    commands = []
    status, out, err = carft(capsys, ["./PACS/"], "--data_dir", data, "--launcher", "dummy")
    assert status == 0, err
    commands.append({line for line in out.splitlines() if line.startswith("Dummy launcher")})
    given = ["--algorithms", "CARFT", "--datasets", "./PACS", "--data_dir", str(data), "--n_trials"]
    given += ["1", "--n_hparams", "1", "--single_test_envs", "--output_dir", "out"]
    given += ["--command_launcher", "dummy", "--skip_confirmation"]
    assert harness_sweep.main(["launch", *given]) == 0
    out = capsys.readouterr().out
    commands.append({line for line in out.splitlines() if line.startswith("Dummy launcher")})
    assert commands[0] == commands[1] and len(commands[0]) == 2
    text = "name: x\ndatasets: [./PACS]\nalgorithms: [CARFT]\nsteps: {PACS/: 3}\n"
    made = sources.parse(text, "x.yaml")
    assert made.datasets == ("./PACS",) and made.environments["./PACS"] == ("a", "b")
    assert made.steps_of("./PACS", "CARFT") == 3


def test_data_is_not_checked_where_every_job_asks_for_that(data, capsys, monkeypatch):
    hparams = json.dumps({"data_edition": "unchecked"})
    more = ["--data_dir", data, "--dry-run"]
    status, out, err = carft(capsys, ["VLCS"], *more, "--hparams", hparams)
    assert status == 0 and "Data: VLCS: not checked, as asked.\n" in out, err
    monkeypatch.setenv("DOMAINBED_CARFT_DISABLE", "1")
    status, out, err = carft(capsys, ["VLCS"], *more)
    assert status == 0 and "Data: VLCS: not checked, as asked.\n" in out, err


def test_slurms_jobs_may_find_data_that_is_not_here(data, capsys, monkeypatch):
    monkeypatch.setattr("domainbed_carft.launchers.problems", lambda *given: [])
    monkeypatch.setattr(launching, "run", lambda *given: [])
    more = ["--data_dir", "/nowhere", "--launcher", "slurm", "--yes"]
    status, out, err = carft(capsys, ["PACS"], *more)
    assert status == 0 and "PACS: not seen, no /nowhere/PACS here; the jobs look at it" in out, err
    more[1] = data
    status, _, err = carft(capsys, ["VLCS"], *more)
    assert status == 1 and "__MACOSX" in err


def test_switches_that_are_words_are_refused(data, capsys):
    hparams = json.dumps({"data_augmentation": "no"})
    more = ["--data_dir", data, "--launcher", "dummy", "--hparams", hparams]
    status, _, err = carft(capsys, ["PACS"], *more, algorithms=["ERM"])
    assert status == 1 and "data_augmentation: it is 'no', expected true or false" in err
