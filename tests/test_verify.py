"""Trees of the benchmarks, whole and changed, trees of a user's own, and ``carft data``."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
from data_trees import carft, even, grow, jpeg, link_pacs, only, smaller, write_pacs

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


# What is as published


def test_pacs_as_published(pacs):
    report = verify.verify("PACS", pacs)
    assert (report.verdict, report.edition) == ("verified", "as published")
    assert (report.pictures, report.counts["sketch"]["house"]) == (9991, 80)
    assert not [*report.problems, *report.differences, *report.notes]


@pytest.mark.parametrize("name", ["PACS", "VLCS", "OfficeHome", "TerraIncognita", "DomainNet"])
def test_all_five_sets_by_their_names(name, tmp_path, monkeypatch):
    folder, table = smaller(monkeypatch, name)
    grow(tmp_path / folder, table)
    report = verify.verify(name, tmp_path)
    assert report.verdict == "verified", report
    assert list(report.counts) == list(table)
    assert all(list(report.counts[e]) == list(table[e]) for e in table)


def test_emoji_styles_needs_no_folder():
    report = verify.verify("EmojiStyles")
    assert (report.verdict, report.pictures) == ("verified", 1716)


def test_both_editions_of_terra_incognita_are_recognised():
    known = benchmarks.get("TerraIncognita")
    for edition in known.editions:
        counts = {e: {c: 1 for c in known.classes} for e in edition.counts}
        for environment, total in edition.counts.items():
            counts[environment]["bird"] += total - len(known.classes)
        report = verify.judge("TerraIncognita", counts)
        assert (report.verdict, report.edition) == ("verified", edition.name)
        assert f"the {edition.total:,} pictures, {edition.name}" in report.as_text()
    counts["location_38"]["cat"] += 1
    report = verify.judge("TerraIncognita", counts)
    assert (report.verdict, report.edition) == ("differs", None)
    assert "'location_38' has 9,768 pictures, 9,767 in the edition of older papers (+1)" in only(
        report, "differences"
    )


# What is not


def without(table, name):
    return {key: value for key, value in table.items() if key != name}


def renamed(table, **names):
    return {names.get(key, key): value for key, value in table.items()}


def inside(table, change):
    return {environment: change(classes) for environment, classes in table.items()}


def turned(table):
    return {name: table[name] for name in ("photo", "art_painting", "cartoon", "sketch")}


@pytest.mark.parametrize(
    ("change", "verdict", "said"),
    [
        (lambda t: {"__MACOSX": {}, **t}, "broken", "are '__MACOSX', 'art_painting', .*; rename"),
        (lambda t: without(t, "photo"), "broken", "'cartoon', 'sketch', expected 'art_painting', "),
        (turned, "broken", "are 'photo', 'art_painting'.* expected 'art_painting'"),
        (lambda t: {"kfold": t}, "broken", "the environments are 'kfold', expected 'art_paint"),
        (lambda t: renamed(t, photo="Photo"), "differs", "the same order: rename 'Photo' to 'pho"),
        (
            lambda t: inside(t, lambda c: without(c, "guitar")), "broken",
            "in 'art_painting', 'cartoon', 'photo', 'sketch' are not the known ones: missing 'gui",
        ),
        (
            lambda t: {**t, "photo": without(t["photo"], "guitar")}, "broken",
            "in 'photo' are not the known ones: missing 'guitar', extra none, .* wrong from 3 on;",
        ),
        (
            lambda t: {**t, "photo": {".x": 0, **t["photo"]}}, "broken",
            r"'photo' has no picture in '\.x'.*extra '\.x', so labels are wrong from 0 on; make",
        ),
        (
            lambda t: inside(t, lambda c: renamed(c, person="Person")), "differs",
            "other names, though in the same order: 'Person' for 'person'",
        ),
        (
            lambda t: inside(t, lambda c: dict(sorted(renamed(c, person="Person").items()))),
            "broken", "missing 'person', extra 'Person', so labels are wrong from 0 on",
        ),
        (
            lambda t: {**t, "cartoon": {**t["cartoon"], "guitar": 134}}, "differs",
            r"2,343 pictures, 2,344 in the edition as published \(-1\): 'guitar' 134 in place of 1",
        ),
        (
            lambda t: {**t, "photo": {**t["photo"], "dog": 188, "horse": 200}}, "differs",
            r"\(\+0\): 'dog' 188 in place of 189, 'horse' 200 in place of 199",
        ),
        (
            lambda t: inside(t, lambda c: {"test": 1, "train": 1}), "broken",
            "'photo' has the sub-splits 'test', 'train' where its classes should be",
        ),
    ],
)  # fmt: skip
def test_pacs_with_a_change(change, verdict, said):
    report = verify.judge("PACS", change(benchmarks.get("PACS").editions[0].by_class))
    assert (report.verdict, report.root) == (verdict, None)
    assert re.search(said, " ".join([*report.problems, *report.differences])), report


def test_published_counts_under_other_names_are_no_published_edition():
    table = benchmarks.get("PACS").editions[0].by_class
    table = inside(table, lambda c: renamed(c, dog="Dog", horse="Horse"))
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:8]
    assert verify.judge("PACS", table).data_edition == f"differs: as published, {digest}"


@pytest.mark.parametrize(
    ("name", "names", "verdict", "said"),
    [
        ("OfficeHome", {"Real World": "Real_World"}, "differs", "'Real_World' to 'Real World'"),
        ("OfficeHome", {"Real World": "real_world"}, "differs", "'real_world' to 'Real World'"),
        (
            "VLCS", {"Caltech101": "CALTECH", "SUN09": "SUN", "VOC2007": "PASCAL"}, "broken",
            "are 'CALTECH', 'LabelMe', 'PASCAL', 'SUN', expected 'Caltech101', 'LabelMe', 'SUN",
        ),
    ],
)  # fmt: skip
def test_environments_by_other_names(tmp_path, monkeypatch, name, names, verdict, said):
    folder, table = smaller(monkeypatch, name)
    grow(tmp_path / folder, renamed(table, **names))
    report = verify.verify(name, tmp_path)
    assert report.verdict == verdict
    assert re.search(said, " ".join([*report.problems, *report.differences])), report


@pytest.mark.parametrize(
    ("counts", "verdict", "said"),
    [
        (even(["cat", "dog"]), "consistent", ""),
        ({"a": {"x": 1, "y": 1}}, "consistent", "'a' is the only environment, so none can be"),
        ({}, "broken", "there are no environments; expected the folder whose sub-folders they"),
        ({".cache": {}, **even(["a", "b"])}, "broken", r"'\.cache' would be read as environment 0"),
        (even(["only"]), "broken", "'art' has 1 class folder, expected at least two"),
        (even(["cat", "dog"], pictures=0), "broken", "'art' has no picture in 'cat', 'dog'"),
        (
            {**even(["Alarm_Clock", "dog"]), "z": {"Alarm Clock": 1, "dog": 1}}, "broken",
            "in 'z' are not those in 'art': missing 'Alarm_Clock', extra 'Alarm Clock', so labels",
        ),
    ],
)  # fmt: skip
def test_own_trees_must_agree_with_themselves(counts, verdict, said):
    report = verify.judge("Mine", counts)
    assert report.verdict == verdict
    assert re.search(said, " ".join([*report.problems, *report.notes])), report


def test_long_lists_are_cut():
    assert comparison.listed(map(str, range(7)), 2) == "'0', '1' and 5 more"


# Where the data is, and the command


def test_where_the_data_is_not(tmp_path):
    (tmp_path / "file").touch()
    for name, folder, said in (
        ("PACS", tmp_path, r"PACS should be in the folder .*PACS, which does not exist; rename"),
        ("PACS", Path("x" * 300), r"which does not exist"),
        ("OfficeHome", None, r"needs --data_dir, the folder that has 'office_home'"),
        ("PASC", tmp_path, r"no such folder, and no benchmark .* did you mean PACS"),
        (str(tmp_path / "file"), None, r"file cannot be read as a folder \(Not a directory\)"),
        ("x" * 300, None, "there is no such folder"),
        ("a\0b", None, "there is no such folder"),
    ):
        with pytest.raises(CarftError, match=said):
            verify.verify(name, folder)


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
    assert "problem: the environments are '__MACOSX', " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("broken: ")


def test_the_command_in_json(tmp_path):
    root = grow(tmp_path / "my own", even(["cat", "dog"]), jpeg())
    (root / "art" / "cat" / "cut.jpg").write_bytes(jpeg()[:-900])
    done = carft("verify", root, "--decode", "--json")
    assert (done.returncode, done.stderr) == (0, "")  # usable; no bar where nobody watches
    said = json.loads(done.stdout)
    assert (said["verdict"], said["pictures"], said["root"]) == ("differs", 5, str(root))
    assert said["counts"]["art"] == {"cat": 2, "dog": 1}
    (cut,) = said["damaged"]
    assert (cut["path"], cut["truncated"]) == ("art/cat/cut.jpg", True)
    done = carft("verify", "Ofice-Home", "--data_dir", "/", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 2 and (said["name"], said["verdict"]) == ("Ofice-Home", None)
    assert "did you mean OfficeHome?" in said["error"] and said["error"] in done.stderr


def test_the_list():
    done = carft("list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert lines["DomainNet"] == (
        "DomainNet domain_net clip, info, paint, quick, real, sketch 345 586,575 5,001".split()
    )
    assert "24,330 or 24,788" in done.stdout
    said = {one["name"]: one for one in json.loads(carft("list", "--json").stdout)}
    assert list(said) == list(benchmarks.BENCHMARKS)
    assert len(said["DomainNet"]["classes"]) == 345 and said["PACS"]["licence"] == "not stated"
    assert said["VLCS"]["editions"][0]["by_class"]["SUN09"]["bird"] == 20


def test_names_that_would_break_a_terminal_are_quoted(tmp_path):
    root = grow(tmp_path / "own", even(["cat", "dog"], ["a\nb", os.fsdecode(b"\xff")]))
    done = carft("verify", root)
    assert done.returncode == 0, done.stderr
    assert r"a\nb " in done.stdout and r"\udcff " in done.stdout
