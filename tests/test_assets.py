"""The embedded pictures, their split, their contexts and the tiny CLIP."""

from __future__ import annotations

import csv
import io
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TOOLS = Path(__file__).resolve().parent.parent / "tools"
ASSETS = resources.files("domainbed_carft") / "assets"
DOMAINS = ("fluent3d", "line", "noto", "twemoji")
LIMIT = 12 * 2**20


@pytest.fixture(scope="module")
def split() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((ASSETS / "emoji_split.csv").read_text("ascii"))))


@pytest.fixture(scope="module")
def archive() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO((ASSETS / "emoji_styles.zip").read_bytes()))


@pytest.fixture(scope="module")
def concepts():
    """The module with the naming rules, which lives with the scripts and not in the wheel."""
    if not TOOLS.is_dir():
        pytest.skip("needs the source tree")
    sys.path.insert(0, str(TOOLS))
    try:
        import emoji_concepts
    finally:
        sys.path.remove(str(TOOLS))
    return emoji_concepts


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO((ASSETS / "tiny.pt").read_bytes()), weights_only=True)


def test_archive_holds_the_held_out_concepts_and_nothing_else(split, archive, concepts):
    held = [
        concepts.Concept(row["codepoints"], row["name"], row["subgroup"])
        for row in split
        if row["split"] == "held_out"
    ]
    expected = {f"{d}/{c.cls}/{c.slug}.png" for d in DOMAINS for c in held}
    assert set(archive.namelist()) == expected | {"LICENSES.txt"}
    assert len(archive.namelist()) == len(expected) + 1


def test_no_base_name_is_on_both_sides(split, concepts):
    sides: dict[str, set[str]] = {"held_out": set(), "pretrain": set(), "unused": set()}
    for row in split:
        sides[row["split"]].add(concepts.base_name(row["name"], row["subgroup"]))
    assert sides["held_out"] and sides["pretrain"]
    assert not sides["held_out"] & sides["pretrain"]
    assert sides["unused"] & sides["pretrain"] == set()


def test_nothing_held_out_is_named_by_a_pre_training_emoji(split, concepts):
    """ "hammer and pick" shows a hammer: such pairs are not told by their base names."""
    things = {row["name"] for row in split if row["split"] == "held_out" and row["class"] == "tool"}
    for row in split:
        if row["split"] == "pretrain" and " and " in row["name"]:
            assert not things & set(row["name"].split(" and ")), row["name"]


def test_every_alias_is_that_of_some_emoji(split, concepts, monkeypatch):
    used = set()

    class Recording(dict):
        def get(self, key, default=None):
            if key in self:
                used.add(key)
            return super().get(key, default)

    monkeypatch.setattr(concepts, "_ALIASES", Recording(concepts._ALIASES))
    for row in split:
        concepts.base_name(row["name"], row["subgroup"])
    assert used == set(concepts._ALIASES)


def test_the_disjointness_check_finds_a_straddling_variant(concepts):
    pair = [
        concepts.Concept("1", "man running", "person-activity"),
        concepts.Concept("2", "woman running: facing right", "person-activity"),
    ]
    with pytest.raises(ValueError, match="running"):
        concepts.check_disjoint(pair, {"1": "held_out", "2": "pretrain"})


@pytest.mark.parametrize(
    ("one", "other", "subgroup"),
    [
        ("man running", "person running: facing right", "person-activity"),
        ("man: red hair", "old woman", "person"),
        ("family: man, boy", "family: woman, girl, girl", "family"),
        ("dog face", "guide dog", "animal-mammal"),
        ("left-facing fist", "oncoming fist", "hand-fingers-closed"),
        ("bus", "oncoming bus", "transport-ground"),
        ("merman", "mermaid", "person-fantasy"),
        ("prince", "person with crown", "person-role"),
        ("red apple", "green apple", "food-fruit"),
        ("crying cat", "weary cat", "cat-face"),
    ],
)
def test_variants_share_a_base_name(concepts, one, other, subgroup):
    assert concepts.base_name(one, subgroup) == concepts.base_name(other, subgroup)


def test_different_things_have_different_base_names(concepts):
    names = ["dog", "cat face", "running", "red apple", "pear", "man walking", "person"]
    assert len({concepts.base_name(name, "") for name in names}) == len(names)


def test_every_domain_has_the_same_files_and_every_class_enough(split, archive):
    by_domain = {
        d: {n.split("/", 1)[1] for n in archive.namelist() if n.startswith(d + "/")}
        for d in DOMAINS
    }
    assert all(files == by_domain["noto"] for files in by_domain.values())
    counts = Counter(name.split("/")[0] for name in by_domain["noto"])
    assert len(counts) == 10
    assert min(counts.values()) >= 15
    assert counts == Counter(row["class"] for row in split if row["split"] == "held_out")


def test_pictures_are_64_pixel_rgb_on_white(archive):
    names = [name for name in archive.namelist() if name.endswith(".png")]
    for name in names[::97]:
        picture = Image.open(io.BytesIO(archive.read(name)))
        assert (picture.size, picture.mode) == ((64, 64), "RGB"), name
    corners = [np.asarray(Image.open(io.BytesIO(archive.read(n))))[0, 0].min() for n in names[::13]]
    assert np.mean(np.array(corners) > 250) > 0.9


def test_line_art_is_gray_and_the_others_are_not(archive):
    for domain in DOMAINS:
        name = f"{domain}/food/strawberry.png"
        pixels = np.asarray(Image.open(io.BytesIO(archive.read(name)))).astype(int)
        spread = (pixels.max(axis=2) - pixels.min(axis=2)).max()
        assert (spread < 8) == (domain == "line"), domain


def test_archive_is_small_and_does_not_depend_on_when_it_was_made(archive):
    assert len((ASSETS / "emoji_styles.zip").read_bytes()) <= LIMIT
    assert {info.date_time for info in archive.infolist()} == {(2020, 1, 1, 0, 0, 0)}
    assert archive.namelist() == sorted(archive.namelist())


def test_licences_travel_with_the_pictures(archive):
    text = archive.read("LICENSES.txt").decode()
    assert text == (ASSETS / "LICENSES.txt").read_text("utf-8")
    for domain in DOMAINS:
        assert f"\n{domain}/\n" in text
    for licence in ("Apache License, Version 2.0", "CC-BY 4.0", "CC BY-SA 4.0", "MIT License"):
        assert licence in text
        assert licence.split(",")[0] in (ASSETS / "README.md").read_text("utf-8")


def test_contexts_are_36_templates():
    lines = (ASSETS / "contexts" / "emoji.txt").read_text("ascii").splitlines()
    assert len(lines) == len(set(lines)) == 36
    for line in lines:
        assert line.count("{}") == 1
        assert line == line.strip() == line.lower()
        assert line.format("dog").isprintable()


def test_tiny_loads_with_clip_to_the_last_bit(state):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip.model import build_model
    model = build_model(dict(state)).float()
    assert model.visual.input_resolution == 48
    assert model.context_length == 77
    assert model.vocab_size == 49_408
    for name, value in model.state_dict().items():
        assert state[name].dtype == torch.float32
        assert torch.equal(value, state[name]), name
    with torch.no_grad():
        assert model.encode_image(torch.zeros(1, 3, 48, 48)).shape == (1, 128)


def test_tiny_is_small_because_unused_tokens_are_zero(state):
    used = state["token_embedding.weight"].abs().sum(dim=1) > 0
    assert 300 < int(used.sum()) < 10_000
    assert len(zlib.compress((ASSETS / "tiny.pt").read_bytes(), 6)) <= LIMIT


def test_tiny_knows_every_word_of_its_contexts_and_classes(state, split):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import clip
    classes = sorted({row["class"] for row in split} - {""})
    lines = (ASSETS / "contexts" / "emoji.txt").read_text("ascii").splitlines()
    tokens = clip.tokenize([line.format(cls) for line in lines for cls in classes]).long()
    known = state["token_embedding.weight"].abs().sum(dim=1) > 0
    # The padding after the end token is token 0, which no caption uses.
    assert known[tokens[tokens > 0]].all()


def test_tiny_has_a_usable_scale(state):
    assert 1 < state["logit_scale"].exp().item() <= 100.1
    assert all(bool(torch.isfinite(value).all()) for value in state.values())
