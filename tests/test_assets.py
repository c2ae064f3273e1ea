"""The embedded pictures, their split, their contexts and the tiny CLIP."""

from __future__ import annotations

import csv
import io
import sys
import warnings
import zipfile
from importlib import resources
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parent.parent / "tools"
ASSETS = resources.files("domainbed_carft") / "assets"
DOMAINS = ("fluent3d", "line", "noto", "twemoji")


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
        import build_emoji
    finally:
        sys.path.remove(str(TOOLS))
    return build_emoji


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return torch.load(io.BytesIO((ASSETS / "tiny.pt").read_bytes()), weights_only=True)


def test_the_emoji_archive_holds_held_out_concepts_only(split, archive, concepts):
    held_out = [
        concepts.Concept(row["codepoints"], row["name"], row["subgroup"])
        for row in split
        if row["split"] == "held_out"
    ]
    expected = {
        f"{domain}/{concept.cls}/{concept.slug}.png" for domain in DOMAINS for concept in held_out
    }

    assert set(archive.namelist()) == expected | {"LICENSES.txt"}
    assert len(archive.namelist()) == len(expected) + 1


def test_no_emoji_is_both_pretraining_and_benchmark(split, concepts):
    sides: dict[str, set[str]] = {"held_out": set(), "pretrain": set(), "unused": set()}
    for row in split:
        sides[row["split"]].add(concepts.base_name(row["name"], row["subgroup"]))

    assert sides["held_out"] and sides["pretrain"]
    assert not sides["held_out"] & sides["pretrain"]
    assert sides["unused"] & sides["pretrain"] == set()


def test_the_emoji_archive_is_reproducible(archive):
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


def test_tiny_was_pretrained_on_all_words_of_its_prompts(state, split):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import clip

    classes = sorted({row["class"] for row in split} - {""})
    lines = (ASSETS / "contexts" / "emoji.txt").read_text("ascii").splitlines()
    tokens = clip.tokenize([line.format(cls) for line in lines for cls in classes]).long()

    is_trained = state["token_embedding.weight"].abs().sum(dim=1) > 0
    # The padding after the end token is token 0, which no caption uses.
    assert is_trained[tokens[tokens > 0]].all()
