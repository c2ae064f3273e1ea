"""All five benchmarks from their folders to the table, on small trees with their real names.

Every tree has the environments and the class folders of the published set and a few small
pictures, among them what copies of the published sets have of oddities.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from data_trees import carft, even, grow, jpeg
from domainbed.lib import reporting
from domainbed.scripts import collect_results, train
from PIL import Image

from domainbed_carft.data import benchmarks, verify
from domainbed_carft.method import backbone, prompts

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


def command_line(name, data, output, *test_envs):
    return [
        *("--algorithm", "CARFT", "--dataset", name, "--data_dir", str(data)),
        *("--output_dir", str(output), "--hparams", HPARAMS, "--steps", "2"),
        *("--workers", "0", "--skip_model_save", "--test_envs", *map(str, test_envs)),
    ]


def trained(tree, test_env, output):
    """Train for two steps, and look at all that the records say."""
    assert train.main(command_line(tree.name, tree.data, output, test_env)) == 0
    records = reporting.load_records(str(output.parent))
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
def test_verified(tree, name):
    made = tree(name)
    done = carft("verify", name, "--data_dir", made.data, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"], report["edition"]) == (0, "differs", None)
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
        pytest.param("VLCS", 2, marks=pytest.mark.slow),
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


# Broken sets


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
    return "'__MACOSX', "


def a_class_less(root, known):
    label = known.classes[2]
    shutil.rmtree(root / known.environments[1].folder / label)
    return f"missing {label!r}, extra none, so labels are wrong from 2 on"


@pytest.mark.parametrize("spoil", [stray, a_class_less])
@pytest.mark.parametrize("name", ["VLCS", "DomainNet"])
def test_what_shifts_positions_is_found_and_refused(name, spoil, tmp_path, capsys, monkeypatch):
    plant(tmp_path, name)
    said = spoil(tmp_path / benchmarks.get(name).folder, benchmarks.get(name))
    done = carft("verify", name, "--data_dir", tmp_path)
    assert done.returncode == 1 and said in done.stdout
    loaded = []
    monkeypatch.setattr(backbone, "load", loaded.append)
    status, message = refused(name, tmp_path, tmp_path / "out", capsys)
    assert status == 2 and said in message and not loaded


def test_a_web_page_with_a_pictures_name(tmp_path, capsys):
    """Only decoding tells; a job comes to it at its first checkpoint, and names it."""
    plant(tmp_path, "VLCS", 2)
    page = tmp_path / "VLCS" / "SUN09" / "dog" / "it's a page.jpg"
    page.write_text("<html>Not found</html>")
    assert verify.verify("VLCS", tmp_path).verdict == "differs"
    done = carft("verify", "VLCS", "--data_dir", tmp_path, "--decode")
    assert done.returncode == 1
    said = '1 picture that cannot be decoded; download again: "SUN09/dog/it\'s a page.jpg"'
    assert said in done.stdout
    status, message = refused("VLCS", tmp_path, tmp_path / "out", capsys)
    assert status == 1 and "cannot identify image file" in message and "it's a page.jpg" in message
