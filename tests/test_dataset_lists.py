"""Datasets from a CSV file: read, verified, split, trained and evaluated like folders."""

import csv
import json
import random

import pytest
import runs_jobs
from domainbed import datasets

from domainbed_carft import cli
from domainbed_carft.data import listing, verification
from domainbed_carft.errors import CarftError


def write_list(file, rows, header="path,environment,class"):
    file.parent.mkdir(exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header.split(","), *rows])
    return file


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A folder of images, and a shuffled list of them in another folder."""
    place = tmp_path_factory.mktemp("copies")
    folder = runs_jobs.write_images(place / "pets", 4)
    rows = [[f"../{path.relative_to(place)}", *path.parts[-3:-1]] for path in folder.rglob("*.png")]
    rows[0][0] = f"./{rows[0][0]}"
    random.Random(1).shuffle(rows)
    return folder, write_list(place / "lists" / "pets.csv", rows)


def test_list_has_the_images_and_records_of_its_folder(copies, tmp_path, capsys):
    jobs = [runs_jobs.train_job(tmp_path / c.stem, c, "CARFT", "--steps", "2") for c in copies]
    folder_record, list_record = (runs_jobs.records(job)[-1] for job in jobs)
    assert list_record["data_edition"].startswith("consistent") and "env0_out_acc" in list_record
    differing = {key for key, value in folder_record.items() if value != list_record[key]}
    assert differing <= {"args", "hparams", "step_time", "evaluation_time"}

    measured = runs_jobs.evaluate_json(capsys, jobs[1])
    assert runs_jobs.accuracies_by_split(measured) == runs_jobs.accuracies(list_record)
    moved = ("--data_dir", copies[1])
    assert runs_jobs.evaluate_json(capsys, jobs[1], *moved)["sets"] == measured["sets"]


def test_absolute_paths_give_the_order_of_the_folder(copies, tmp_path):
    in_folder = listing.list_environments(copies[0]).paths()
    rows = [
        (path, environment, name)
        for environment, classes in in_folder.items()
        for name, paths in classes.items()
        for path in paths
    ]
    file = write_list(tmp_path / "absolute.csv", [*reversed(rows)])
    assert listing.list_environments(file).paths() == in_folder


def test_job_parses_its_list_once(copies, tmp_path):
    listing._parse_list.cache_clear()
    runs_jobs.train_job(tmp_path, copies[1], "CLIPZeroShot")
    assert listing._parse_list.cache_info().misses == 1


def test_changed_list_is_parsed_again(tmp_path):
    for path in ("a.png", "b.png"):
        file = write_list(tmp_path / "l.csv", [(path, "a", "x")])
        assert listing.read_list(file) == {"a": {"x": {path: 2}}}


def test_list_is_verified_like_its_folder(copies, capsys):
    reports = []
    for path in copies:
        assert cli.main(["data", "verify", str(path), "--json", "--decode"]) == 0
        reports.append(json.loads(capsys.readouterr().out))
    for key in ("status", "counts", "data_edition", "problems", "differences", "decoded"):
        assert reports[0][key] == reports[1][key]


@pytest.mark.slow
def test_sweep_of_a_list_is_launched_and_collected(copies, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(copies[1].parent)
    (tmp_path / "sweep.yaml").write_text(
        "name: lists\nalgorithms: [CLIPZeroShot]\ndatasets: [pets.csv]\ntrials: 1\nsteps: 1\n"
        "hparams: {clip_backbone: tiny}\nselection: [training-domain]\n"
    )
    launch = [
        "sweep",
        "launch",
        str(tmp_path / "sweep.yaml"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert cli.main([*launch, "--yes"]) == 0
    assert "Data: pets.csv: consistent" in capsys.readouterr().out
    assert cli.main(["collect", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out
    assert "art" in table and "pets.csv" in table


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,environment\n", r"l.csv:1: missing class; expected a first line with the columns"),
        (b"path,environment,class\n", "l.csv lists no images"),
        (b"path,environment,class\na.png,a,\n", r"l.csv:2: got \['a.png', 'a', ''\], expected a v"),
        (b"path,environment,class\na.png,a\n", r"l.csv:2: got \['a.png', 'a'\]"),
        (b"path,environment,class\na.png,a,b,c\n", "l.csv:2: got"),
        (b"path,environment,class\na.png,a,b\n./a.png,c,b\n", "l.csv:3: 'a.png' is also in line 2"),
        (b"path,environment,class\na.gif,a,b\n", "l.csv:2: 'a.gif' does not end in .jpg, .jpeg, "),
        (b'path,environment,class\na.png,a,"b\n', "l.csv:.*expected a CSV file"),
        (b"path,environment,class\na.png,\xff,b\n", "l.csv:2: invalid start byte; save .* UTF-8"),
        (b"path,environment,class\na.png,a,b\n\ngone/b.png,a,b\n", "'line 4: gone/b.png'"),
    ],
)
def test_invalid_list_is_an_error_with_the_line(content, message, tmp_path):
    (tmp_path / "a.png").write_bytes(b"image")
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(CarftError, match=message):
        listing.list_environments(tmp_path / "l.csv")


@pytest.mark.parametrize("spelling", ["absolute", "link to the file", "link to the folder"])
@pytest.mark.parametrize("pair", [("b", "x"), ("a", "y")], ids=["other environment", "other class"])
def test_same_image_under_another_path_is_an_error(spelling, pair, tmp_path, carft):
    folder = runs_jobs.write_images(tmp_path / "images", 1)
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "link.png").symlink_to(next(folder.rglob("*.png")))
    image = next(folder.rglob("*.png")).relative_to(tmp_path)
    other = {
        "absolute": tmp_path / image,
        "link to the file": "link.png",
        "link to the folder": f"link/{image.relative_to('images')}",
    }[spelling]
    file = write_list(tmp_path / "l.csv", [(image, "a", "x"), (other, *pair)])

    done = carft("data", "verify", file)
    assert done.returncode == 2
    assert f"l.csv:3: '{other}' is the same image as '{image}' in line 2; list" in done.stderr


def test_environment_of_a_list_can_have_any_name(tmp_path):
    folder = runs_jobs.write_images(tmp_path / "images", 1)
    rows = [(path, f".{path.parts[-3]}", path.parts[-2]) for path in folder.rglob("*.png")]
    report = verification.verify(str(write_list(tmp_path / "l.csv", rows)))
    assert report.status == "consistent" and [*report.counts] == [".art", ".photo", ".sketch"]


@pytest.mark.parametrize("names", [("caf\u00e9", "cafe\u0301"), ("cafe\u0301", "caf\u00e9")])
def test_names_that_look_equal_are_told_apart(names, tmp_path):
    (tmp_path / "0.png").write_bytes(b"image")
    (tmp_path / "1.png").write_bytes(b"image")
    file = write_list(tmp_path / "l.csv", [("0.png", "a", names[0]), ("1.png", "b", names[1])])
    (problem,) = datasets.get_dataset_class(str(file)).data_problems(None)
    assert "only one of them has 'cafe\\u0301', 'café' (two names look equal" in problem


def test_faults_and_classes_are_problems_like_those_of_folders(tmp_path):
    for name in "abcde":
        (tmp_path / f"{name}.png").write_bytes(b"" if name == "e" else b"image")
    pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x")]
    rows = [(f"{letter}.png", *pair) for letter, pair in zip("abcde", pairs)]
    file = write_list(tmp_path / "l.csv", rows)
    report = verification.verify(str(file))
    assert report.status == "broken" and f"carft data verify {file}" in report.error_text
    assert any("'c' has no image in 'y'" in problem for problem in report.problems)
    assert any("1 empty file (restore the original): 'e.png'" in p for p in report.problems)

    (problem,) = datasets.get_dataset_class(str(file)).data_problems(None)
    assert (
        "environments 'a' and 'c' must have the same classes; only one of them has 'y'" in problem
    )
