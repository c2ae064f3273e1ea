"""All five benchmarks from their folders to the table, on small trees with their real names.

Every tree has the environments and the class folders of the published set and a few small
pictures, among them what copies of the published sets have of oddities.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from data_trees import even, grow, jpeg
from domainbed.lib import reporting
from domainbed.scripts import collect_results, train
from fake_checkout import run_python
from PIL import Image

from domainbed_carft import cli
from domainbed_carft.data import benchmarks, verify
from domainbed_carft.method import prompts

LABELS = {
    "PACS": "A C P S",
    "VLCS": "C L S V",
    "OfficeHome": "A C P R",
    "TerraIncognita": "L100 L38 L43 L46",
    "DomainNet": "clip info paint quick real sketch",
}
PICTURES = {"PACS": 3, "VLCS": 3, "OfficeHome": 1, "TerraIncognita": 2, "DomainNet": 1}  # a class
CONTEXTS = ["a photo of a {}.", "a sketch of a {}."]
HPARAMS = json.dumps(
    {
        **{"clip_backbone": "tiny", "batch_size": 2, "contexts": CONTEXTS},
        "original_precision": "fp32",  # so that the KL is exactly 0 at the original weights
    }
)


@pytest.fixture(autouse=True)
def one_thread():
    """So small a model is no faster with more, and ten times as slow where other work runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What is harmless: each adds to a class folder, and returns how many pictures it added.


def cut_off(folder):
    (folder / 'it\'s "cut" off.jpg').write_bytes(jpeg()[:-900])
    return 1


def cmyk(folder):
    (folder / "for print.JPEG").write_bytes(jpeg("CMYK"))
    return 1


def palette(folder):
    image = Image.effect_noise((9, 12), 90).convert("P")
    image.save(folder / "a palette.png", transparency=3)
    return 1


def not_pictures(folder):
    (folder / "notes to self.txt").write_text("blurred")
    (folder / "Thumbs.db").write_bytes(b"\0")
    return 0


def linked(folder):
    beside = folder.parents[2] / "elsewhere"
    beside.mkdir()
    (beside / "one.jpg").write_bytes(jpeg())
    (folder / "link.jpg").symlink_to(beside / "one.jpg")
    return 1


def oddly_named(folder):
    names = ("it's.jpg", 'say "cheese".png', " two  spaces .jpg", "ö {} $HOME %s.jpg", "-rf.jpg")
    for name in names:
        (folder / name).write_bytes(jpeg())
    return len(names)


ODDITIES = {
    "PACS": (("photo/guitar", cut_off), ("sketch/dog", oddly_named)),
    "VLCS": (("VOC2007/person", cmyk), ("LabelMe/bird", palette)),
    "OfficeHome": (("Real World/Alarm_Clock", linked), ("Real World/TV", oddly_named)),
    "TerraIncognita": (("location_38/empty", not_pictures), ("location_46/cat", cut_off)),
    "DomainNet": (("real/The_Eiffel_Tower", linked), ("quickdraw/zebra", cmyk)),
}


@dataclass
class Tree:
    """One set below a data folder: ``counts`` are pictures by environment and label."""

    name: str
    data: Path
    counts: list[list[int]]

    @property
    def sizes(self):
        return [sum(classes) for classes in self.counts]


def plant(data, name, pictures=1):
    """A whole set below ``data``: environment -> class -> pictures."""
    known = benchmarks.get(name)
    counts = even(known.classes, [e.folder for e in known.environments], pictures)
    grow(data / known.folder, counts, jpeg(size=(9, 12)))
    return counts


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Makes a set with what copies have of oddities, once. Not to be changed."""
    made = {}

    def make(name):
        if name not in made:
            data = tmp_path_factory.mktemp(f"{name}'s data {{}}")
            counts = plant(data, name, PICTURES[name])
            for place, add in ODDITIES[name]:
                environment, label = place.split("/")
                counts[environment][label] += add(data / benchmarks.get(name).folder / place)
            made[name] = Tree(name, data, [list(c.values()) for c in counts.values()])
        return made[name]

    return make


def carft(capsys, *arguments):
    """What ``carft`` ends with, and what it prints."""
    status = cli.main([str(argument) for argument in arguments])
    return status, capsys.readouterr().out


def command_line(name, data, output, *test_envs):
    return [
        *("--algorithm", "CARFT", "--dataset", name, "--data_dir", str(data)),
        *("--output_dir", str(output), "--hparams", HPARAMS, "--steps", "2"),
        *("--workers", "0", "--skip_model_save", "--test_envs", *map(str, test_envs)),
    ]


def trained(tree, test_env, output):
    """Train for two steps, and look at all that the records say."""
    assert train.main(command_line(tree.name, tree.data, output, test_env)) == 0
    records = reporting.read_records(str(output))
    assert [record["step"] for record in records] == [0, 1]
    for record in records:
        assert record["data_edition"] == record["hparams"]["data_edition"]
        assert record["data_edition"].startswith("differs: ")
        words = prompts.digest(CONTEXTS, [prompts.clean(c) for c in known_classes(tree.name)])
        assert record["hparams"]["prompts_digest"] == words
        assert_all_was_evaluated(record, tree.sizes)
    assert records[0]["loss_kl"] == 0 and math.isfinite(records[1]["loss"])


def known_classes(name):
    return benchmarks.get(name).classes


def assert_all_was_evaluated(record, sizes):
    """An accuracy over n pictures is a whole number of n-ths, and n tells which were read."""
    splits = {key for key in record if key.startswith("env")}
    assert splits == {f"env{i}_{s}_acc" for i in range(len(sizes)) for s in ("in", "out")}
    for index, size in enumerate(sizes):
        held_out = int(size * 0.2)
        for split, n in (("in", size - held_out), ("out", held_out)):
            assert n > 0
            hits = record[f"env{index}_{split}_acc"] * n
            assert 0 <= hits <= n and abs(hits - round(hits)) < 1e-6, (index, split)


def table(capsys, folder, selection):
    """The header and CARFT's row of the table under one way of selection."""
    assert collect_results.main(["--input_dir", str(folder)]) == 0
    text = capsys.readouterr().out
    (_, _, rest), *more = [
        part.partition("\n")
        for part in text.split("-------- ")
        if part.startswith("Dataset") and f"model selection method: {selection}" in part
    ]
    assert not more
    header, row = rest.splitlines()[:2]
    return header.split(), row


SELECTIONS = ("training-domain validation set", "test-domain validation set (oracle)")


def assert_table(capsys, folder, name):
    for selection in SELECTIONS:
        header, row = table(capsys, folder, selection)
        assert header == ["Algorithm", *LABELS[name].split(), "Avg"]
        cells = row.split()
        assert cells[0] == "CARFT" and "X" not in cells
        assert row.count("+/- ") == len(LABELS[name].split())


# Whole sets


@pytest.mark.parametrize("name", LABELS)
def test_verified(tree, name, capsys):
    made = tree(name)
    status, text = carft(capsys, "data", "verify", name, "--data_dir", made.data, "--json")
    report = json.loads(text)
    assert (status, report["verdict"], report["edition"]) == (0, "differs", None)
    folders = [e.folder for e in benchmarks.get(name).environments]
    assert [e["name"] for e in report["environments"]] == folders
    assert [list(e["classes"].values()) for e in report["environments"]] == made.counts
    assert all(tuple(e["classes"]) == known_classes(name) for e in report["environments"])
    assert not report["problems"] and len(report["differences"]) == len(folders)


@pytest.mark.parametrize(
    ("name", "test_env"),
    [
        ("PACS", 0),
        ("OfficeHome", 3),
        ("TerraIncognita", 1),
        pytest.param("DomainNet", 4, marks=pytest.mark.slow),
    ],
)
def test_trained_and_tabulated(tree, name, test_env, tmp_path, capsys):
    """An environment is left out, and its column is in the table.

    The columns beside it are filled with copies that say another environment was left out.
    """
    trained(tree(name), test_env, tmp_path / str(test_env))
    lines = (tmp_path / str(test_env) / "results.jsonl").read_text().splitlines()
    own = 100 * json.loads(lines[1])[f"env{test_env}_in_acc"]
    for other in set(range(len(LABELS[name].split()))) - {test_env}:
        copies = [json.loads(line) for line in lines]
        for copy in copies:
            copy["args"]["test_envs"] = [other]
        (tmp_path / str(other)).mkdir()
        text = "".join(json.dumps(copy) + "\n" for copy in copies)
        (tmp_path / str(other) / "results.jsonl").write_text(text)
    capsys.readouterr()
    assert_table(capsys, tmp_path, name)
    _, row = table(capsys, tmp_path, SELECTIONS[1])
    assert row.split()[1 + 3 * test_env] == f"{own:.1f}"


@pytest.mark.parametrize(
    "name", ["VLCS", *(pytest.param(n, marks=pytest.mark.slow) for n in LABELS if n != "VLCS")]
)
def test_swept(tree, name, tmp_path, capsys):
    """By commands alone: a sweep whose jobs leave each environment out, and its table."""
    made, output = tree(name), tmp_path / "a sweep"
    arguments = [
        *("launch", "--datasets", name, "--algorithms", "CARFT", "--data_dir", str(made.data)),
        *("--output_dir", str(output), "--command_launcher", "local", "--single_test_envs"),
        *("--n_hparams", "1", "--n_trials", "1", "--steps", "2", "--hparams", HPARAMS),
    ]
    done = run_python(
        *("-m", "domainbed.scripts.sweep", *arguments, "--skip_confirmation"),
        cwd=tmp_path,
        PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),
        DOMAINBED_CARFT_CACHE=os.environ["DOMAINBED_CARFT_CACHE"],
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = reporting.load_records(str(output))
    targets = [[i] for i in range(len(made.sizes)) for _ in "01"]
    assert sorted(r["args"]["test_envs"] for r in records) == targets
    for record in records:
        assert record["data_edition"].startswith("differs: ")
        assert_all_was_evaluated(record, made.sizes)
    assert_table(capsys, output, name)


# Broken sets


@pytest.fixture
def models(monkeypatch):
    """The CLIPs that were loaded; none of them is to be."""
    from domainbed_carft.method import backbone

    loaded, load = [], backbone.load

    def spy(name):
        loaded.append(name)
        return load(name)

    monkeypatch.setattr(backbone, "load", spy)
    return loaded


def refused(name, data, output, capsys):
    """The exit status and the message of a job that has left nothing which counts as a result."""
    capsys.readouterr()
    status = train.main(command_line(name, data, output, 0))
    assert not (output / "results.jsonl").exists() and not (output / "done").exists()
    return status, capsys.readouterr().err


def stray(root, known):
    fork = root / "__MACOSX" / known.environments[0].folder / known.classes[0] / "._0.jpg"
    fork.parent.mkdir(parents=True)
    fork.write_bytes(b"\0\5\26\7")
    return "the folder '__MACOSX' would be read as environment"


def a_class_less(root, known):
    label = known.classes[2]
    shutil.rmtree(root / known.environments[1].folder / label)
    return f"it lacks {label!r}, so that "


def an_environment_less(root, known):
    shutil.rmtree(root / known.environments[-1].folder)
    return f"no environment {known.environments[-1].folder!r}"


@pytest.mark.parametrize("spoil", [stray, a_class_less, an_environment_less])
@pytest.mark.parametrize("name", ["VLCS", "OfficeHome", "DomainNet"])
def test_what_shifts_positions_is_found_and_refused(name, spoil, tmp_path, capsys, models):
    plant(tmp_path, name)
    said = spoil(tmp_path / benchmarks.get(name).folder, benchmarks.get(name))
    status, text = carft(capsys, "data", "verify", name, "--data_dir", tmp_path)
    assert status == 1 and said in text
    if spoil != an_environment_less:  # else the harness says so first
        status, message = refused(name, tmp_path, tmp_path / "out", capsys)
        assert status == 2 and said in message
    assert not models


def test_a_web_page_with_a_pictures_name(tmp_path, capsys):
    """Only decoding tells; a job comes to it at its first checkpoint, and names it."""
    plant(tmp_path, "VLCS", 2)
    page = tmp_path / "VLCS" / "SUN09" / "dog" / "it's a page.jpg"
    page.write_text("<html>Not found</html>")
    assert verify.verify("VLCS", tmp_path).verdict == "differs"
    status, text = carft(capsys, "data", "verify", "VLCS", "--data_dir", tmp_path, "--decode")
    assert status == 1
    assert '1 picture that cannot be decoded; download again: "SUN09/dog/it\'s a page.jpg"' in text
    status, message = refused("VLCS", tmp_path, tmp_path / "out", capsys)
    assert status == 1 and "cannot identify image file" in message and "it's a page.jpg" in message
