"""What `carft sweep launch` and the harness's own `sweep` see of the data before a job starts."""

import json
import re
import shutil

import pytest
from domainbed.scripts import sweep as harness_sweep
from test_data_check import grow
from test_verify import even
from test_verify import grow as touch

from domainbed_carft import cli
from domainbed_carft.data import benchmarks
from domainbed_carft.sweep import declaration
from domainbed_carft.sweep import names as host


def published(root, name="PACS"):
    """The folders of a benchmark with a picture a class: in order, but no known edition."""
    known = benchmarks.get(name)
    return touch(root / known.folder, even(known.classes, [e.folder for e in known.environments]))


def carft(capsys, datasets, *more, algorithms=("CARFT",)):
    """Exit status, output and errors of a launch of one trial."""
    capsys.readouterr()
    given = ["--algorithms", *algorithms, "--datasets", *datasets, "--n_trials", "1"]
    given += ["--n_hparams", "1", "--single_test_envs", "--output_dir", "out"]
    status = cli.main(["sweep", "launch", *given, *map(str, more)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with PACS in order and VLCS damaged, below the current folder."""
    monkeypatch.chdir(tmp_path)
    host.data_problems.cache_clear()
    published(tmp_path / "data")
    published(tmp_path / "data", "VLCS")
    (tmp_path / "data" / "VLCS" / "__MACOSX").mkdir()
    return tmp_path / "data"


def reordered(data):
    """VLCS read in another order: what a check finds, and training does not."""
    (data / "VLCS" / "__MACOSX").rmdir()
    (data / "VLCS" / "SUN09").rename(data / "VLCS" / "A SUN")


@pytest.mark.parametrize("launcher", ["local", "pool", "dummy"])
def test_broken_data_is_refused_before_the_first_job(data, capsys, launcher):
    shutil.rmtree(data / "PACS" / "photo")
    more = ["--data_dir", data, "--launcher", launcher]
    for algorithms in (("CARFT",), ("ERM",)):
        status, out, err = carft(capsys, ["VLCS", "PACS"], *more, algorithms=algorithms)
        assert status == 1 and "2 problems, nothing was done" in err
        assert f"- The data of VLCS in {data}/VLCS is broken: the folder '__MACOSX'" in err
        assert f"- The data of PACS in {data}/PACS is broken: no environment 'photo'" in err
        assert "jobs" not in out and not (data.parent / "out").exists()
        assert "as it is" not in err  # it could not be


@pytest.mark.parametrize("algorithm", ["CARFT", "ERM"])
def test_what_could_be_trained_on_as_it_is_is_told_how_once(data, capsys, algorithm):
    reordered(data)
    shutil.rmtree(data / "PACS" / "photo")
    given = ["--data_dir", data]
    _, _, err = carft(capsys, ["VLCS", "PACS"], *given, algorithms=[algorithm])
    ours = """To train on it as it is: --hparams '{"data_edition": "unchecked"}'."""
    variables = "To train on it as it is: DOMAINBED_CARFT_DISABLE=1 PYTHONPATH="
    assert err.count("as it is") == 1 and "2 problems" in err
    assert (ours in err) == (algorithm == "CARFT") == (variables not in err)


def test_a_sweep_of_ours_and_others_is_told_both_remedies(data, capsys):
    reordered(data)
    given = ["--algorithms", "ERM", "CARFT", "--datasets", "VLCS", "--single_test_envs"]
    given += ["--data_dir", str(data), "--output_dir", "out"]
    assert cli.main(["sweep", "launch", *given]) == 1
    carfts = capsys.readouterr().err
    given += ["--command_launcher", "dummy", "--skip_confirmation"]
    assert harness_sweep.main(["launch", *given]) == 2
    for err in (carfts, capsys.readouterr().err):
        apart = "as it is: launched apart, the algorithms of domainbed-carft with --hparams '{"
        assert apart in err and "and the others with DOMAINBED_CARFT_DISABLE=1" in err


def test_a_declared_sweep_is_told_what_to_declare(data, capsys):
    reordered(data)
    text = "name: x\ndatasets: [VLCS]\nalgorithms: [CARFT]\n"
    (data.parent / "x.yaml").write_text(text)
    command = ["sweep", "launch", "x.yaml", "--data_dir", str(data), "--output_dir", "out"]
    assert cli.main(command) == 1
    assert "as it is: hparams: {data_edition: unchecked} in the decl" in capsys.readouterr().err
    (data.parent / "x.yaml").write_text(f"{text}hparams: {{data_edition: unchecked}}\n")
    assert cli.main([*command, "--launcher", "dummy"]) == 0


def test_a_dry_run_shows_costs_and_verdicts_before_it_refuses(data, capsys):
    given = ["--data_dir", data, "--dry-run"]
    status, out, err = carft(capsys, ["VLCS", "PACS"], *given)
    assert status == 1 and "1 problem, nothing was done" in err and "__MACOSX" in err
    assert "Data: VLCS: broken.\n" in out and "Data: PACS: differs: " in out
    assert "8 jobs: 8 not launched" in out and "40,008" in out  # steps of both
    status, out, err = carft(capsys, ["VLCS", "PACS"], *given, "--launcher", "poool")
    assert status == 1 and "2 problems" in err and not out
    assert not (data.parent / "out").exists()


def test_a_data_folder_is_asked_for_only_where_it_is_needed(data, capsys, monkeypatch):
    grow(data.parent / "pets", ("a", "b"), ("cat", "dog"), 2)
    (data.parent / "datasets.txt").write_text("Pets = pets\n")
    for names in (["./pets"], ["Pets"], ["./pets", "EmojiStyles"], ["Debug28"]):
        status, out, err = carft(capsys, names, "--launcher", "dummy")
        assert status == 0 and " --data_dir . --dataset " in out, err
    status, _, err = carft(capsys, ["./pets", "RotatedMNIST"])
    assert status == 1 and "--data_dir is missing" in err


def test_all_mistakes_and_all_data_are_told_at_once(data, capsys):
    more = ["--data_dir", data, "--launcher", "poool"]
    status, _, err = carft(capsys, ["VLCS", "OfficeHome"], *more)
    assert status == 1 and "no launcher is called 'poool'" in err and "__MACOSX" in err
    more = ["--data_dir", data, "--launcher", "local"]
    status, _, err = carft(capsys, ["VLCS", "OfficeHome"], *more)
    assert status == 1 and "2 problems" in err
    assert "__MACOSX" in err and "OfficeHome is not there: expected the folder" in err


def test_a_dry_run_shows_each_verdict(data, capsys):
    grow(data.parent / "pets", ("a", "b"), ("cat", "dog"), 2)
    names = ["PACS", "OfficeHome", "EmojiStyles", "./pets"]
    status, out, err = carft(capsys, names, "--data_dir", data, "--dry-run")
    assert status == 0, err
    digest = re.compile(": [0-9a-f]{8},")  # of the counts, as the records will have it
    lines = [digest.sub(",", line) for line in out.splitlines() if line.startswith("Data: ")]
    assert lines == [
        f"Data: PACS: differs, 28 pictures in {data}/PACS.",
        f"Data: OfficeHome: not seen, no {data}/office_home here.",
        "Data: EmojiStyles: in the package.",
        "Data: ./pets: consistent, 8 pictures in ./pets.",
    ]


def test_the_number_of_pictures_is_that_of_a_known_edition(data, capsys, monkeypatch):
    shutil.rmtree(data / "PACS")
    touch(data / "PACS", benchmarks.get("PACS").editions[0].by_class)
    _, out, _ = carft(capsys, ["PACS"], "--data_dir", data, "--dry-run")
    assert f"Data: PACS: verified: as published, 9,991 pictures in {data}/PACS.\n" in out


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda root: (root / "b" / "owl").mkdir(), "'a' and 'b' of ./pets have different classes"),
        (lambda root: [(root / e / "owl").mkdir() for e in "ab"], "has no picture in 'owl'"),
        (
            lambda root: [shutil.rmtree(root / e / "dog") for e in "ab"],
            "class folders in 'a': 1, expected at least two",
        ),
    ],
)
def test_an_own_tree_is_looked_at_by_both_tools(data, capsys, spoil, problem):
    root = grow(data.parent / "pets", ("a", "b"), ("cat", "dog"), 2)
    spoil(root)
    for more in ([], ["--dry-run"]):
        status, _, err = carft(capsys, ["./pets"], "--data_dir", data, *more)
        assert status == 1 and "1 problem, nothing was done" in err and problem in err
    given = ["--algorithms", "ERM", "--datasets", "./pets", "--data_dir", ".", "--n_trials", "1"]
    given += ["--single_test_envs", "--output_dir", "out", "--skip_confirmation"]
    for launcher in ("dummy", "pool", "local"):
        assert harness_sweep.main(["launch", *given, "--command_launcher", launcher]) == 2
        err = capsys.readouterr().err
        assert "1 problem, nothing was run" in err and problem in err
    assert not (data.parent / "out").exists()


def test_both_tools_have_the_same_name_for_a_path(data, capsys):
    grow(data.parent / "PACS", ("a", "b"), ("cat", "dog"), 2)
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
    made = declaration.parse(text, "x.yaml")
    assert made.datasets == ("./PACS",) and made.environments["./PACS"] == ("a", "b")
    assert made.steps_of("./PACS", "CARFT") == 3


def test_a_path_that_is_not_there_is_told_as_one(data, capsys):
    status, _, err = carft(capsys, ["./nonexist"], "--data_dir", data)
    assert status == 1 and "There is no folder ./nonexist" in err


def test_data_is_not_checked_where_every_job_asks_for_that(data, capsys, monkeypatch):
    hparams = json.dumps({"data_edition": "unchecked"})
    more = ["--data_dir", data, "--dry-run"]
    status, out, err = carft(capsys, ["VLCS"], *more, "--hparams", hparams)
    assert status == 0 and "Data: VLCS: not checked, as asked.\n" in out, err
    monkeypatch.setenv("DOMAINBED_CARFT_DISABLE", "1")
    status, out, err = carft(capsys, ["VLCS"], *more)
    assert status == 0 and "Data: VLCS: not checked, as asked.\n" in out, err


def test_slurms_jobs_may_find_data_that_is_not_here(data, capsys, monkeypatch):
    from domainbed_carft.sweep import launching

    monkeypatch.setattr("domainbed_carft.launchers.problems", lambda *given: [])
    monkeypatch.setattr(launching, "run", lambda *given: [])
    more = ["--data_dir", "/nowhere", "--launcher", "slurm", "--yes"]
    status, _, err = carft(capsys, ["PACS"], *more)
    assert status == 0 and "PACS: not seen, no /nowhere/PACS here; the jobs look at it" in err
    more[1] = data
    status, _, err = carft(capsys, ["VLCS"], *more)
    assert status == 1 and "__MACOSX" in err


def test_switches_that_are_words_are_refused(data, capsys):
    hparams = json.dumps({"data_augmentation": "no"})
    more = ["--data_dir", data, "--launcher", "dummy", "--hparams", hparams]
    status, _, err = carft(capsys, ["PACS"], *more, algorithms=["ERM"])
    assert status == 1 and "data_augmentation: it is 'no', expected true or false" in err
