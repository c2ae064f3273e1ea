"""What `carft sweep launch` sees of the data before a job starts."""

import shutil

import pytest
from data_trees import even, grow

from domainbed_carft import cli
from domainbed_carft.data import benchmarks
from domainbed_carft.sweep import launch as launching


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


def test_a_dry_run_shows_costs_and_verdicts_before_it_refuses(data, capsys):
    given = ["--data_dir", data, "--dry-run"]
    status, out, err = carft(capsys, ["VLCS", "PACS"], *given)
    assert status == 1 and "1 problem, nothing was done" in err and "__MACOSX" in err
    assert "Data: VLCS: broken: " in out and "Data: PACS: differs: " in out
    assert "8 jobs: 8 not launched" in out and "40,008" in out  # steps of both
    assert not (data.parent / "out").exists()


def test_slurms_jobs_may_find_data_that_is_not_here(data, capsys, monkeypatch):
    monkeypatch.setattr("domainbed_carft.launchers.problems", lambda *given: [])
    monkeypatch.setattr(launching, "run", lambda *given: [])
    more = ["--data_dir", "/nowhere", "--launcher", "slurm", "--yes"]
    status, out, err = carft(capsys, ["PACS"], *more)
    assert status == 0 and "PACS: not checked, no /nowhere/PACS here; each job" in out, err
    more[1] = data
    status, _, err = carft(capsys, ["VLCS"], *more)
    assert status == 1 and "__MACOSX" in err
