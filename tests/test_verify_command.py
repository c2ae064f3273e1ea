"""Trees of a user's own, where data is looked for, and what ``carft data`` prints."""

import json
import os
import re
from pathlib import Path

import pytest
from data_trees import carft, even, grow, jpeg, link_pacs, only, write_pacs

from domainbed_carft.data import benchmarks, comparison, verify
from domainbed_carft.errors import CarftError


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    """A data folder with all pictures of PACS. Not to be changed."""
    return write_pacs(tmp_path_factory.mktemp("it's data"))


@pytest.fixture
def mine(pacs, tmp_path):
    """A data folder with a PACS to be changed at will."""
    return link_pacs(pacs, tmp_path)


# A user's own tree, and counts that a job has


def test_own_trees_must_agree_with_themselves(tmp_path):
    root = grow(tmp_path, even(["cat", "dog", "owl"], ["a", "b", "c"]))
    assert verify.verify(str(root)).verdict == "consistent"
    (root / "b" / "cat" / "0.jpg").unlink()
    assert "'b' has no picture in 'cat'" in only(verify.verify(str(root)), "problems")
    (root / "b" / "cat").rmdir()
    problem = only(verify.verify(str(root)), "problems")
    assert "other class folders than those of 'a': it lacks 'cat', so that 'dog' gets" in problem
    (root / ".cache").mkdir()
    assert "'.cache' would be read as environment 0" in verify.verify(str(root)).problems[0]


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ({}, r"there are no environments; expected the folder whose sub-folders they are"),
        (even(["only"]), r"'art' has 1 class folder, expected at least two"),
        (even(["test", "train"]), r"'art' has the sub-splits 'test', 'train' where its classes"),
    ],
)
def test_too_little_for_domain_generalisation(counts, problem):
    problems = verify.judge("Mine", counts).problems
    assert re.search(problem, problems[0])


def test_one_environment_is_in_order_and_told():
    report = verify.judge("Mine", {"a": {"x": 1, "y": 1}})
    assert report.verdict == "consistent"
    assert "'a' is the only environment, so none can be left out" in report.notes[0]


def test_judging_takes_the_order_that_a_job_has():
    table = benchmarks.get("PACS").editions[0].by_class
    assert verify.judge("PACS", table).verdict == "verified"
    turned = {name: table[name] for name in ("photo", "art_painting", "cartoon", "sketch")}
    report = verify.judge("PACS", turned)
    assert report.verdict == "broken" and report.root is None
    assert "read in the order 'photo', 'art_painting'" in only(report, "problems")


def test_long_lists_are_cut():
    assert comparison.listed(map(str, range(7)), 2) == "'0', '1' and 5 more"


# Where the data is


def test_a_path_is_hinted_at_the_benchmark_of_its_name(pacs, tmp_path):
    report = verify.verify(str(pacs / "PACS"))
    assert report.verdict == "consistent"
    assert "carft data verify PACS --data_dir '" in only(report, "notes")


def test_where_the_data_is_not(tmp_path):
    (tmp_path / "kfold").mkdir()
    with pytest.raises(CarftError, match=r"should be in the folder .*PACS, but .* has 'kfold'\."):
        verify.verify("PACS", tmp_path)
    with pytest.raises(CarftError, match=r"needs --data_dir, the folder that has 'office_home'"):
        verify.verify("OfficeHome")
    with pytest.raises(CarftError, match=r"no such folder, and no benchmark .* did you mean PACS"):
        verify.verify("PASC", tmp_path)
    (tmp_path / "PACS").touch()
    with pytest.raises(CarftError, match=r"PACS is a file, expected the folder of the env"):
        verify.verify(str(tmp_path / "PACS"))
    with pytest.raises(CarftError, match=r"gone cannot be read: No such file"):
        verify.verify("PACS", tmp_path / "gone")


def test_names_that_no_folder_can_have():
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(CarftError, match="there is no such folder"):
            verify.verify(name)
    with pytest.raises(CarftError, match=r"cannot be read: File name too long"):
        verify.verify("PACS", Path("x" * 300))


# The command


def test_the_command_on_a_whole_and_on_a_broken_set(pacs, mine):
    done = carft("verify", "PACS", "--data_dir", pacs)
    assert (done.returncode, done.stderr) == (0, "")
    first, _, *rows, last = done.stdout.splitlines()
    assert first == f"PACS in {pacs / 'PACS'}"
    assert rows[3].split() == ["sketch", "3,929", "7"]
    assert last == "verified: the 9,991 pictures, as published"
    (mine / "PACS" / "__MACOSX").mkdir()
    done = carft("verify", "PACS", "--data_dir", mine)
    assert done.returncode == 1
    assert "problem: the folder '__MACOSX' would be read as environment 0" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("broken: ")


def test_the_command_in_json(tmp_path):
    root = grow(tmp_path / "my own", even(["cat", "dog"]), jpeg())
    (root / "art" / "cat" / "cut.jpg").write_bytes(jpeg()[:-900])
    done = carft("verify", root, "--decode", "--json")
    assert (done.returncode, done.stderr) == (0, "")  # usable; no bar where nobody watches
    said = json.loads(done.stdout)
    assert (said["verdict"], said["pictures"], said["folder"]) == ("differs", 5, str(root))
    assert said["environments"][0] == {
        "name": "art", "pictures": 3, "classes": {"cat": 2, "dog": 1},
    }  # fmt: skip
    (cut,) = said["damaged"]
    assert (cut["path"], cut["truncated"]) == ("art/cat/cut.jpg", True)


def test_the_command_on_a_wrong_name():
    done = carft("verify", "Ofice-Home", "--data_dir", "/")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean OfficeHome? Valid: PACS, VLCS" in done.stderr
    done = carft("verify", "Ofice-Home", "--data_dir", "/", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 2 and (said["name"], said["verdict"]) == ("Ofice-Home", None)
    assert "did you mean OfficeHome?" in said["error"] and said["error"] in done.stderr


def test_the_command_on_an_empty_folder(tmp_path):
    (tmp_path / "PACS").mkdir()
    done = carft("verify", "PACS", "--data_dir", tmp_path)
    _, problem, verdict = done.stdout.splitlines()
    assert (done.returncode, verdict[:7]) == (1, "broken:")
    assert "(no sub-folders); expected 'art_painting'" in problem


def test_the_list():
    done = carft("list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert lines["DomainNet"] == (
        "DomainNet domain_net clip, info, paint, quick, real, sketch 345 586,575 5,001".split()
    )
    assert "24,330 or 24,788" in done.stdout
    assert "\nSWAD and MIRO train on DomainNet for 15,001.\n" in done.stdout
    assert done.stdout.count("SWAD and MIRO") == 1
    said = {one["name"]: one for one in json.loads(carft("list", "--json").stdout)}
    assert list(said) == list(benchmarks.BENCHMARKS)
    assert len(said["DomainNet"]["classes"]) == 345 and said["PACS"]["licence"] == "not stated"
    assert said["VLCS"]["editions"][0]["classes"]["SUN09"]["bird"] == 20
    assert said["TerraIncognita"]["steps"]["CLIPood"] == 5000


def test_names_that_would_break_a_terminal_are_quoted(tmp_path):
    root = grow(tmp_path / "own", even(["cat", "dog"], ["a\nb", os.fsdecode(b"\xff")]))
    done = carft("verify", root)
    assert done.returncode == 0, done.stderr
    assert r"a\nb " in done.stdout and r"\udcff " in done.stdout
