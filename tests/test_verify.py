"""Trees of the benchmarks, whole and with other environments, classes and counts."""

import pytest
from data_trees import even, grow, link_pacs, only, smaller, write_pacs

from domainbed_carft.data import benchmarks, comparison, verify
from domainbed_carft.method import observed


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
    assert not report.problems + report.differences + report.notes


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


def test_links_are_followed(mine):
    assert verify.verify("PACS", mine).verdict == "verified"


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
    assert "the order 'CALTECH', 'LABELME', 'PASCAL', 'SUN', which is another than" in problem
    assert "'PASCAL' to 'VOC2007'" in problem


def test_upper_case_alone_moves_nothing(tmp_path, monkeypatch):
    folder, table = smaller(monkeypatch, "VLCS")
    grow(tmp_path / folder, {e.upper(): classes for e, classes in table.items()})
    report = verify.verify("VLCS", tmp_path)
    assert report.verdict == "differs" and "rename 'CALTECH101'" in only(report, "differences")


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
        "the environments are one level too deep, in the folder 'kfold': move the 4 folders in it "
        "up one level and remove it"
    )
    note = verify.verify(str(mine / "PACS")).notes[0]  # by its path nothing is known of it
    assert "each has the folders 'dog', 'elephant'" in note
    assert note.endswith(f"give {mine / 'PACS' / 'kfold'}")


def test_folders_below_some_classes_are_no_sign_of_that(tmp_path):
    grow(tmp_path, {f"art/{name}": {"2019": 1, "2020": 1} for name in ("cat", "dog")})
    assert "one level deeper" in verify.verify(str(tmp_path)).notes[0]
    (tmp_path / "art" / "cat" / "own.jpg").write_bytes(b"x")
    assert "one level deeper" not in "".join(verify.verify(str(tmp_path)).notes)


# Classes and counts


def test_a_missing_class_shifts_the_labels(mine):
    (mine / "PACS" / "photo" / "guitar").unlink()
    report = verify.verify("PACS", mine)
    assert report.verdict == "broken"
    problem = only(report, "problems")
    assert "'photo' has 6 classes, 7 expected: it lacks 'guitar'" in problem
    assert "'horse' gets label 3 in place of 4" in problem
    assert "(-186)" in only(report, "differences")


def test_a_class_too_many(mine):
    (mine / "PACS" / "photo" / ".ipynb_checkpoints").mkdir()
    problems = verify.verify("PACS", mine).problems
    assert (
        "has '.ipynb_checkpoints' besides, so that 'dog' gets label 1 in place of 0" in problems[0]
    )
    assert "'photo' has no picture in '.ipynb_checkpoints'" in problems[1]


def test_classes_by_other_names(mine):
    photo = mine / "PACS" / "photo"
    (photo / "dog").rename(photo / "Dog")
    report = verify.verify("PACS", mine)
    assert "'Dog' for 'dog'" in only(report, "differences")
    assert report.verdict == "broken"  # since no job can train on two names of one class
    assert "'photo' writes 'Dog' for 'dog' as in 'art_painting'" in only(report, "problems")
    for environment in ("art_painting", "cartoon", "sketch"):
        (mine / "PACS" / environment / "dog").rename(mine / "PACS" / environment / "Dog")
    assert verify.verify("PACS", mine).verdict == "differs"
    (photo / "person").rename(photo / "Person")
    report = verify.verify("PACS", mine)
    assert report.verdict == "broken"
    assert "another order than expected, so that 'elephant' gets label 2" in only(
        report, "problems"
    )


def test_a_class_that_is_there_twice_in_two_spellings(mine):
    grow(mine / "PACS", {"photo": {"Dog": 2}})
    problem = only(verify.verify("PACS", mine), "problems")
    assert "'photo' has 8 classes, 7 expected: it has 'Dog' besides" in problem
    assert "one class twice: 'Dog' and 'dog'; merge them), so that 'dog' gets label 1" in problem


def test_classes_of_ones_own_in_two_spellings(tmp_path):
    root = grow(tmp_path, even(["Dog", "cat", "dog"], ["art", "photo", "sketch"]))
    report = verify.verify(str(root))
    assert report.verdict == "consistent"
    assert "differ only in case are classes of their own: 'Dog', 'dog'" in only(report, "notes")
    (root / "art" / "Dog" / "0.jpg").unlink()
    (root / "art" / "Dog").rmdir()
    assert (
        "it lacks 'Dog', so that 'cat' gets label 0 in place of 1"
        in verify.verify(str(root)).problems[0]
    )


def test_a_class_of_ones_own_that_two_environments_write_differently(tmp_path):
    root = grow(tmp_path, even(["Alarm_Clock", "dog"], ["art", "photo", "sketch"]))
    (root / "photo" / "Alarm_Clock").rename(root / "photo" / "Alarm Clock")
    report = verify.verify(str(root))
    assert report.verdict == "broken"
    assert "rename the class folders, so that they are the same" in only(report, "problems")


def test_published_counts_under_other_names_are_no_published_edition():
    table = {e: dict(c) for e, c in benchmarks.get("PACS").editions[0].by_class.items()}
    names = {"dog": "Dog", "horse": "Horse"}  # in the order of the others
    table = {e: {names.get(c, c): n for c, n in inside.items()} for e, inside in table.items()}
    report = verify.judge("PACS", table)
    found = f"differs: as published, {comparison.digest(report.counts)}"
    assert report.data_edition == found
    assert observed.is_edition(found, found)
    assert observed.is_edition("differs: as published", found)  # of an older record
    assert not observed.is_edition("verified: as published", found)


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
