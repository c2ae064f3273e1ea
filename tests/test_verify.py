"""Trees of the benchmarks, whole and with other environments, classes and counts."""

import hashlib
import json

import pytest
from data_trees import even, grow, link_pacs, only, smaller, write_pacs

from domainbed_carft.data import benchmarks, verify


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
    assert report.verdict == "verified" and report.edition == "as published"
    assert report.pictures == 9991
    assert report.counts["sketch"]["house"] == 80
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
    assert "24,788 pictures of older papers" in only(report, "notes")
    counts["location_38"]["cat"] += 1
    report = verify.judge("TerraIncognita", counts)
    assert (report.verdict, report.edition) == ("differs", None)
    assert "'location_38' has 9,768 pictures, 9,767 in the edition of older papers (+1)" in only(
        report, "differences"
    )


# Environments


@pytest.mark.parametrize("stray", ["__MACOSX", ".ipynb_checkpoints", "eccv_18_annotation_files"])
def test_a_stray_folder_shifts_the_environments(mine, stray):
    (mine / "PACS" / stray).mkdir()
    report = verify.verify("PACS", mine)
    index = sorted(report.counts).index(stray)
    assert report.verdict == "broken"
    assert f"{stray!r} would be read as environment {index}" in only(report, "problems")
    assert not report.differences  # the others are still compared


def test_a_missing_environment(mine):
    for link in (mine / "PACS" / "photo").iterdir():
        link.unlink()
    (mine / "PACS" / "photo").rmdir()
    report = verify.verify("PACS", mine)
    assert (report.verdict, report.edition) == ("broken", None)
    assert "no environment 'photo' (3 sub-folders: 'art_painting'" in only(report, "problems")


@pytest.mark.parametrize("written", ["RealWorld", "Real_World", "real_world"])
def test_real_world_by_other_names(tmp_path, monkeypatch, written):
    folder, table = smaller(monkeypatch, "OfficeHome")
    table[written] = table.pop("Real World")
    grow(tmp_path / folder, table)
    report = verify.verify("OfficeHome", tmp_path)
    assert report.verdict == "differs"  # at the same position
    assert f"rename {written!r} to 'Real World'" in only(report, "differences")


def test_upper_case_vlcs_has_its_environments_in_another_order(tmp_path, monkeypatch):
    folder, table = smaller(monkeypatch, "VLCS")
    for new, old in zip(("CALTECH", "LABELME", "SUN", "PASCAL"), list(table)):
        table[new] = table.pop(old)
    grow(tmp_path / folder, table)
    report = verify.verify("VLCS", tmp_path)
    assert report.verdict == "broken"
    problem = only(report, "problems")
    assert "the order 'CALTECH', 'LABELME', 'PASCAL', 'SUN', expected 'Caltech101', 'Lab" in problem
    assert "'PASCAL' to 'VOC2007'" in problem


def test_sub_splits_in_place_of_classes(tmp_path, monkeypatch):
    folder, table = smaller(monkeypatch, "VLCS")
    for environment in table:
        grow(tmp_path / folder / environment, even(["0", "1"], ["train", "test", "crossval"]))
    report = verify.verify("VLCS", tmp_path)
    assert report.verdict == "broken" and len(report.problems) == 4
    assert "'SUN09' has the sub-splits 'crossval', 'test', 'train'" in report.problems[2]


def test_environments_that_are_one_level_too_deep(mine):
    (mine / "unpacked").mkdir()
    (mine / "PACS").rename(mine / "unpacked" / "kfold")
    (mine / "unpacked").rename(mine / "PACS")
    report = verify.verify("PACS", mine)
    assert report.verdict == "broken"
    assert only(report, "problems") == (
        "the environments are one level too deep, in the folder 'kfold': move its 4 folders up one "
        "level and remove it"
    )
    note = verify.verify(str(mine / "PACS")).notes[0]  # by its path nothing is known of it
    assert "each has the folders 'dog', 'elephant'" in note
    assert note.endswith(f"give {mine / 'PACS' / 'kfold'}")
    grow(mine / "PACS" / "kfold", {"photo": {".": 1}})  # a class with a picture of its own
    assert "If those are the classes" not in "".join(verify.verify(str(mine / "PACS")).notes)


# Classes and counts


def test_a_class_missing_everywhere_is_told_once():
    table = {e: dict(c) for e, c in benchmarks.get("PACS").editions[0].by_class.items()}
    for classes in table.values():
        del classes["guitar"]
    problem = only(verify.judge("PACS", table), "problems")
    assert "'art_painting' has other class folders than the known ones: it lacks 'gui" in problem


def test_a_class_by_another_name_moves_nothing_or_the_labels():
    table = {e: dict(c) for e, c in benchmarks.get("PACS").editions[0].by_class.items()}
    upper = {
        e: {name.capitalize() if name == "person" else name: n for name, n in classes.items()}
        for e, classes in table.items()
    }
    assert verify.judge("PACS", upper).verdict == "differs"
    moved = {e: dict(sorted(classes.items())) for e, classes in upper.items()}
    report = verify.judge("PACS", moved)
    assert report.verdict == "broken"
    assert "it lacks 'person' and it has 'Person' besides, so that 'dog'" in report.problems[0]


def test_a_missing_class_shifts_the_labels(mine):
    (mine / "PACS" / "photo" / "guitar").unlink()
    report = verify.verify("PACS", mine)
    assert report.verdict == "broken"
    problem = only(report, "problems")
    assert problem == (
        "environment 'photo' has other class folders than those of 'art_painting': it lacks "
        "'guitar', so that 'horse' gets label 3 in place of 4; make them the same"
    )
    assert "(-186)" in only(report, "differences")


def test_a_class_too_many(mine):
    (mine / "PACS" / "photo" / ".ipynb_checkpoints").mkdir()
    problems = verify.verify("PACS", mine).problems
    assert "it has '.ipynb_checkpoints' besides, so that 'dog' gets label 1" in problems[0]
    assert "'photo' has no picture in '.ipynb_checkpoints'" in problems[1]


def test_a_class_of_ones_own_that_two_environments_write_differently(tmp_path):
    root = grow(tmp_path, even(["Alarm_Clock", "dog"], ["art", "photo", "sketch"]))
    (root / "photo" / "Alarm_Clock").rename(root / "photo" / "Alarm Clock")
    report = verify.verify(str(root))
    assert report.verdict == "broken"
    problem = only(report, "problems")
    assert "it lacks 'Alarm_Clock' and it has 'Alarm Clock' besides; make them the same" in problem


def test_published_counts_under_other_names_are_no_published_edition():
    table = {e: dict(c) for e, c in benchmarks.get("PACS").editions[0].by_class.items()}
    names = {"dog": "Dog", "horse": "Horse"}  # in the order of the others
    table = {e: {names.get(c, c): n for c, n in inside.items()} for e, inside in table.items()}
    report = verify.judge("PACS", table)
    digest = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:8]
    assert report.data_edition == f"differs: as published, {digest}"
    assert "2 class folders have other names, though in the same order: 'Dog' for 'dog'" in only(
        report, "differences"
    )


def test_a_picture_too_few_is_told_by_class(mine):
    cartoon = mine / "PACS" / "cartoon"
    (cartoon / "guitar").unlink()
    grow(mine / "PACS", {"cartoon": {"guitar": 134}})
    report = verify.verify("PACS", mine)
    assert report.verdict == "differs"
    assert only(report, "differences") == (
        "environment 'cartoon' has 2,343 pictures, 2,344 in the edition as published (-1): "
        "'guitar' 134 in place of 135"
    )
    assert "split files" in only(report, "notes")  # how sure the known count is


def test_a_picture_in_the_wrong_class_leaves_the_totals():
    table = {e: dict(c) for e, c in benchmarks.get("PACS").editions[0].by_class.items()}
    table["photo"]["dog"] -= 1
    table["photo"]["horse"] += 1
    report = verify.judge("PACS", table)
    assert report.verdict == "differs"
    assert "'dog' 188 in place of 189, 'horse' 200 in place of 199" in only(report, "differences")
