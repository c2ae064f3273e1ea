"""Trees with the names and shapes of the benchmarks, whole and damaged in every usual way."""

import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_checkout import REPO, run_python
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from domainbed_carft import benchmarks, observed
from domainbed_carft.data import comparison, listing, verify
from domainbed_carft.errors import CarftError


def grow(root, counts, content=b"x"):
    """environment/class/0.jpg, ... below ``root``; returns it."""
    for environment, classes in counts.items():
        for name, pictures in classes.items():
            folder = root / environment / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(pictures):
                (folder / f"{index}.jpg").write_bytes(content)
    return root


def even(names, environments=("art", "photo"), pictures=1):
    return {environment: dict.fromkeys(names, pictures) for environment in environments}


def smaller(monkeypatch, name):
    """Expect but one picture a class of ``name``; returns its environments and classes."""
    known = benchmarks.BENCHMARKS[name]
    table = even(known.classes, [e.folder for e in known.environments])
    edition = benchmarks.Edition("of the test", {e: len(c) for e, c in table.items()}, table)
    monkeypatch.setitem(benchmarks.BENCHMARKS, name, replace(known, editions=(edition,)))
    return known.folder, table


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    """A data folder with all 9,991 pictures of PACS, a byte each. Not to be changed."""
    data = tmp_path_factory.mktemp("it's data")
    grow(data / "PACS", benchmarks.get("PACS").editions[0].by_class)
    return data


@pytest.fixture
def mine(pacs, tmp_path):
    """A data folder with a PACS of links to the former's classes, to be changed at will."""
    for classes in (pacs / "PACS").iterdir():
        (tmp_path / "PACS" / classes.name).mkdir(parents=True)
        for pictures in classes.iterdir():
            (tmp_path / "PACS" / classes.name / pictures.name).symlink_to(pictures)
    return tmp_path


def only(report, kind):
    (sentence,) = getattr(report, kind)
    return sentence


def carft(*arguments):
    return run_python("-m", "domainbed_carft", "data", *map(str, arguments), cwd=REPO, path=[REPO])


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
    assert report.verdict == "differs" and "'Dog' for 'dog'" in only(report, "differences")
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


def test_published_counts_under_other_names_are_no_published_edition():
    table = {e: dict(c) for e, c in benchmarks.get("PACS").editions[0].by_class.items()}
    names = {"dog": "Dog", "horse": "Horse"}  # in the order of the others
    table["photo"] = {names.get(c, c): n for c, n in table["photo"].items()}
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


# Files


def test_counts_are_those_of_image_folder(tmp_path):
    grow(tmp_path, even(["cat", "dog"], pictures=2))
    cat = tmp_path / "art" / "cat"
    for name in ("UP.JPG", "a.b.webp", 'it\'s "quoted" {}.png', "ö.tiff", "notes.txt", "jpg"):
        (cat / name).write_bytes(b"x")
    (cat / "more" / "deeper").mkdir(parents=True)
    (cat / "more" / "deeper" / "1.png").write_bytes(b"x")
    (cat / "folder.jpg").mkdir()
    (tmp_path / "art" / "loose.png").write_bytes(b"x")
    (cat / "linked").symlink_to(tmp_path / "photo" / "dog")
    (cat / "link.png").symlink_to(cat / "0.jpg")
    (cat / "gone.png").symlink_to(cat / "nothing")
    found = listing.read(tmp_path, with_pictures=True)
    for environment in ("art", "photo"):
        theirs = ImageFolder(str(tmp_path / environment))
        ours = [p for p in found.pictures if p.startswith(f"{environment}/")]
        assert sorted(str(tmp_path / p) for p in ours) == sorted(path for path, _ in theirs.samples)
        counts = found.counts[environment]
        assert list(counts) == theirs.classes and sum(counts.values()) == len(theirs)
    odd = found.oddities
    assert sorted(odd.other_files) == ["art/cat/jpg", "art/cat/notes.txt"]
    assert odd.loose == ["art/loose.png"] and odd.broken_links == ["art/cat/gone.png"]
    assert odd.nested == [
        "art/cat/folder.jpg", "art/cat/linked", "art/cat/more", "art/cat/more/deeper",
    ]  # fmt: skip


def test_the_extensions_are_torchvisions():
    assert listing.PICTURES == IMG_EXTENSIONS


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.jpg", b"", r"^empty files with a picture's name: 1 \('art/cat/empty.jpg'\); get"),
        (
            "._0.jpg",
            b"Mac OS X",
            r"^macOS resource forks.*: 1 .*; find '.*mine \{\}' -name '\._\*' -de",
        ),
    ],
)
def test_files_that_end_a_job(tmp_path, name, content, problem):
    root = grow(tmp_path / "mine {}", even(["cat", "dog"]))
    assert verify.verify(str(root)).verdict == "consistent"
    (root / "art" / "cat" / name).write_bytes(content)
    report = verify.verify(str(root))
    assert report.verdict == "broken"
    assert re.search(problem, only(report, "problems"))


def test_links_that_lead_nowhere_or_back(tmp_path):
    root = grow(tmp_path, even(["cat", "dog"]))
    (root / "art" / "cat" / "gone.jpg").symlink_to("nothing")
    (root / "art" / "dog" / "round").symlink_to(root / "art" / "dog")
    problems = verify.verify(str(root)).problems
    assert "links to no picture: 1 ('art/cat/gone.jpg')" in problems[0]
    assert "links to a folder above them" in problems[1]


def test_pipes_are_neither_pictures_nor_read(tmp_path):
    """A picture's name does not make them end."""
    root = grow(tmp_path, even(["cat", "dog"]), jpeg())
    os.mkfifo(root / "art" / "cat" / "pipe.jpg")
    (root / "art" / "dog" / "link.jpg").symlink_to(root / "art" / "cat" / "pipe.jpg")
    done = carft("verify", root, "--decode", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1 and said["damaged"] == []
    (problem,) = said["problems"]
    assert re.match("pipes, sockets or devices with a picture's name.*: 2 .*; remove", problem)


def test_what_is_known_without_decoding_is_told_once(tmp_path):
    root = grow(tmp_path, even(["cat", "dog"]), jpeg())
    (root / "art" / "cat" / "empty.jpg").touch()
    (root / "art" / "cat" / "gone.jpg").symlink_to("nothing")
    report = verify.verify(str(root), decode=True)
    assert report.damaged == () and len(report.problems) == 2
    assert report.pictures == 6  # as DomainBed counts them


def test_what_is_not_read_is_noted(tmp_path):
    root = grow(tmp_path, even(["cat", "dog"]))
    (root / "art" / "cat" / "Thumbs.db").write_bytes(b"x")
    (root / "photo" / "beside.png").write_bytes(b"x")
    report = verify.verify(str(root))
    assert report.verdict == "consistent"
    assert report.notes == (
        "files that are no pictures by their name, and not read: 1 ('art/cat/Thumbs.db')",
        "pictures in no class folder, and not read: 1 ('photo/beside.png')",
    )


def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    root = grow(tmp_path, even(["cat", "dog"]))
    for closed, function in ((root / "art" / "cat", "open"), (root / "photo", "scandir")):
        real = getattr(os, function)

        def refuse(path, *rest, closed=closed, real=real):  # root may read everything
            if path in (closed, str(closed)):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *rest)

        monkeypatch.setattr(os, function, refuse)
    problems = verify.verify(str(root)).problems
    assert "folders that cannot be read: 2 ('photo', 'art/cat')" in problems[-1]
    with pytest.raises(CarftError, match=r"photo cannot be read as a folder \(Permission denied\)"):
        verify.verify(str(root / "photo"))


# Decoding


def jpeg(mode="RGB", size=(64, 64)):
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_decoding_finds_what_is_cut_off_and_what_is_no_picture(tmp_path):
    root = grow(tmp_path / 'it\'s "mine"', even(["cat", "dog"]), jpeg())
    cat = root / "art" / "cat"
    (cat / "cmyk.jpg").write_bytes(jpeg("CMYK"))
    Image.effect_noise((8, 8), 90).convert("P").save(cat / "palette.png", transparency=3)
    assert verify.verify(str(root), decode=True).verdict == "consistent"

    (cat / "it's cut.jpg").write_bytes(jpeg()[:-900])
    report = verify.verify(str(root), decode=True)
    assert (report.verdict, report.decoded) == ("differs", True)
    assert 'pictures that are cut off: 1 ("art/cat/it\'s cut.jpg")' in only(report, "differences")
    assert [(one.path, one.truncated) for one in report.damaged] == [("art/cat/it's cut.jpg", True)]
    assert verify.verify(str(root)).verdict == "consistent"  # only decoding tells

    (cat / "page.png").write_text("<html>Not found</html>")
    report = verify.verify(str(root), decode=True)
    assert report.verdict == "broken"
    assert "pictures that cannot be decoded: 1 ('art/cat/page.png')" in only(report, "problems")
    assert "cannot identify" in report.damaged[1].reason


# A user's own tree, and counts that a job has


def test_own_trees_must_agree_with_themselves(tmp_path):
    root = grow(tmp_path, even(["cat", "dog", "owl"], ["a", "b", "c"]))
    assert verify.verify(str(root)).verdict == "consistent"
    (root / "b" / "cat" / "0.jpg").unlink()
    assert "'b' has no picture in 'cat'" in only(verify.verify(str(root)), "problems")
    (root / "b" / "cat").rmdir()
    problem = only(verify.verify(str(root)), "problems")
    assert "'b' has 2 classes, 3 as in 'a': it lacks 'cat', so that 'dog' gets label 0" in problem
    (root / ".cache").mkdir()
    assert "'.cache' would be read as environment 0" in verify.verify(str(root)).problems[0]


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ({}, r"environments: no sub-folders; the path must be that of the folder"),
        (even(["only"]), r"class folders in 'art': 1, expected at least two"),
        (even(["test", "train"]), r"'art' has the sub-splits 'test', 'train' where its classes"),
    ],
)
def test_too_little_for_domain_generalisation(counts, problem):
    problems = verify.judge("Mine", counts).problems
    assert re.search(problem, problems[0])


def test_one_environment_is_in_order_and_told():
    report = verify.judge("Mine", {"a": {"x": 1, "y": 1}})
    assert report.verdict == "consistent"
    assert "only 'a', so there is none to leave out" in report.notes[0]


def test_class_names_in_other_scripts_are_compared(tmp_path):
    report = verify.judge("Mine", {"a": {"犬": 1, "猫": 1}, "b": {"狗": 1, "鸟": 1}})
    assert report.verdict == "broken"


def test_a_path_is_hinted_at_the_benchmark_of_its_name(pacs, tmp_path):
    report = verify.verify(str(pacs / "PACS"))
    assert report.verdict == "consistent"
    assert "carft data verify PACS --data_dir '" in only(report, "notes")


def test_judging_takes_the_order_that_a_job_has():
    table = benchmarks.get("PACS").editions[0].by_class
    assert verify.judge("PACS", table).verdict == "verified"
    turned = {name: table[name] for name in ("photo", "art_painting", "cartoon", "sketch")}
    report = verify.judge("PACS", turned)
    assert report.verdict == "broken" and report.root is None
    assert "read in the order 'photo', 'art_painting'" in only(report, "problems")


def test_long_lists_are_cut():
    assert comparison.listed(map(str, range(7)), 2) == "'0', '1' and 5 more"


def test_where_the_data_is_not(tmp_path):
    (tmp_path / "kfold").mkdir()
    with pytest.raises(CarftError, match=r"should be in .*PACS, but .* has 'kfold'\. Rename"):
        verify.verify("PACS", tmp_path)
    with pytest.raises(CarftError, match=r"give --data_dir, the folder that has 'office_home'"):
        verify.verify("OfficeHome")
    with pytest.raises(CarftError, match=r"'PASC' is neither .* did you mean PACS\?"):
        verify.verify("PASC", tmp_path)
    (tmp_path / "PACS").touch()
    with pytest.raises(CarftError, match=r"PACS is a file, expected the folder of PACS; if it is"):
        verify.verify("PACS", tmp_path)
    with pytest.raises(CarftError, match=r"PACS' is a file, expected the folder of the env"):
        verify.verify(str(tmp_path / "PACS"))
    with pytest.raises(CarftError, match=r"gone is no folder that can be read \(No such file"):
        verify.verify("PACS", tmp_path / "gone")


def test_names_that_no_folder_can_have():
    for name in ("x" * 300, "a\0b"):
        with pytest.raises(CarftError, match="is neither a benchmark nor a folder"):
            verify.verify(name)
    with pytest.raises(CarftError, match=r"is no folder that can be read \(File name too long"):
        verify.verify("PACS", Path("x" * 300))


def test_names_that_are_listed(tmp_path, monkeypatch):
    """As the harness's train has them."""
    grow(tmp_path / "my pets", even(["cat", "dog"]))
    (tmp_path / "datasets.txt").write_text("pets = my pets\ngone = nowhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DOMAINBED_DATASETS", raising=False)
    report = verify.verify("pets")
    assert (report.name, report.root) == ("pets", tmp_path / "my pets")
    assert report.verdict == "consistent"
    with pytest.raises(CarftError, match=r"'gone' is listed as .*nowhere, but there is no such"):
        verify.verify("gone")
    (tmp_path / "datasets.txt").write_text("pets\n")
    monkeypatch.setenv("DOMAINBED_DATASETS", "datasets.txt")
    with pytest.raises(CarftError, match=r"^datasets\.txt, line 1: expected NAME = PATH"):
        verify.verify("pets")


def test_another_domainbed_has_no_list(tmp_path):
    """Nothing is looked for in it, and it is not in the way."""
    (tmp_path / "domainbed").mkdir()
    (tmp_path / "domainbed" / "__init__.py").touch()
    (tmp_path / "datasets.txt").write_text(f"pets = {tmp_path}\n")
    command = ("-m", "domainbed_carft", "data", "verify", "pets")
    done = run_python(*command, cwd=tmp_path, path=[tmp_path, REPO])
    assert done.returncode == 2 and "'pets' is neither a benchmark nor a folder" in done.stderr


# The command


def test_the_command_on_a_whole_and_on_a_broken_set(pacs, mine):
    done = carft("verify", "PACS", "--data_dir", pacs)
    assert (done.returncode, done.stderr) == (0, "")
    first, *rows, last = done.stdout.splitlines()
    assert first == f"PACS in {pacs / 'PACS'}"
    assert rows[3].split() == ["sketch", "3,929", "pictures", "7", "classes"]
    assert last == "verified: the 9,991 pictures as published"
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
    assert "did you mean OfficeHome? Known: PACS, VLCS" in done.stderr
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
