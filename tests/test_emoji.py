"""EmojiStyles as DomainBed sees it, and its unpacking."""

import dataclasses
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import pytest
import torch

from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.data import benchmarks, emoji, picture_files, verify
from domainbed_carft.method import objective, prompts
from domainbed_carft.pictures.protocols import plan_for
from domainbed_carft.pictures.transforms import PlanTransform
from domainbed_carft.plugin import data_sets
from domainbed_carft.suites import catalogue

HPARAMS = {"class_names": "dataset:EmojiStyles", "clip_backbone": "tiny"}


def test_emoji_styles_meets_domainbeds_contract():
    hparams = dict(HPARAMS)
    dataset = data_sets.EmojiStyles("not read", [1], hparams)
    assert len(dataset) == 4 and dataset.num_classes == 10
    assert dataset.input_shape == (3, 48, 48)
    assert sorted(dataset.ENVIRONMENTS) == dataset.ENVIRONMENTS  # as sorted folders would be
    for environment in dataset:
        x, y = environment[0]
        assert x.shape == (3, 48, 48) and x.dtype == torch.float32 and y == 0
    assert prompts.class_names(hparams, 10) == sorted(prompts.BUILT_IN_CLASSES["EmojiStyles"])
    assert hparams == HPARAMS


def test_only_training_environments_are_augmented():
    dataset = data_sets.EmojiStyles("", [1], dict(HPARAMS))
    moves = [not torch.equal(env[5][0], env[5][0]) for env in dataset]
    assert moves == [True, False, True, True]
    still = data_sets.EmojiStyles("", [1], {**HPARAMS, "data_augmentation": False})
    assert all(torch.equal(env[5][0], env[5][0]) for env in still)


def test_other_hosts_get_pictures_of_224_pixels():
    dataset = data_sets.EmojiStyles("", [1], {"data_augmentation": True, "batch_size": 8})
    assert dataset.input_shape == (3, 224, 224)
    assert all(env[0][0].shape == (3, 224, 224) for env in dataset)
    dataset = data_sets.EmojiStyles("not read")  # SWAD and MIRO transform by themselves
    picture, label = dataset[2][0]
    assert (picture.size, picture.mode, label) == ((64, 64), "RGB", 0)
    assert dataset.input_shape == (3, 224, 224)
    assert dataset.environments == dataset.ENVIRONMENTS
    names = prompts.class_names({"class_names": "dataset:EmojiStyles"}, 10)
    assert names == sorted(prompts.BUILT_IN_CLASSES["EmojiStyles"])


def test_jobs_that_start_together_share_one_unpacked_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: emoji.style_folders(), range(4)))
    (folder,) = folders
    with zipfile.ZipFile(str(files("domainbed_carft") / "assets" / "emoji_styles.zip")) as archive:
        expected = {n for n in archive.namelist() if not n.endswith("/")}
    unpacked = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert unpacked == expected
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # no left-overs


def test_emoji_shift_divides_the_pictures_of_one_style():
    sides = [emoji.shift_folders() / side / "noto" for side in ("train", "test")]
    trained, tested = ({f"{p.parent.name}/{p.name}" for p in at.glob("*/*")} for at in sides)
    styles = {f"{p.parent.name}/{p.name}" for p in emoji.style_folders().glob("noto/*/*")}
    assert trained | tested == styles and not trained & tested
    assert {path.split("/")[0] for path in tested} == {path.split("/")[0] for path in styles}
    dataset = data_sets.EmojiShift(None, (), dict(HPARAMS))
    assert len(dataset) == 1 and len(dataset[0]) == len(trained) > 2 * len(tested) - 10
    assert dataset.data_edition == "verified: of the package"


def correct_predictions(clip, weights, classes, style, groups):
    """Whether each picture of a style is predicted right, by the largest logit of its groups."""
    root = emoji.shift_folders() / "test" if style == "noto" else emoji.style_folders()
    paths = [path for path in sorted((root / style).glob("*/*")) if path.parent.name in groups]
    transform = PlanTransform(plan_for("clip", 48, False))
    x = torch.stack([transform(picture_files.open_picture(path)) for path in paths])
    with torch.no_grad():
        all_logits = (clip.model.visual(x) @ weights.T).tolist()

    correct = []
    for path, logits in zip(paths, all_logits, strict=True):
        best = max(groups, key=lambda name: logits[classes.index(name)])
        correct.append(groups[best] == groups[path.parent.name])
    return correct


def test_the_emoji_shift_suite_equals_a_direct_computation(monkeypatch, capsys):
    suite = catalogue.get("EmojiShift")
    of_emoji_styles = dataclasses.replace(suite, sets=suite.sets[:4])  # the others take longer
    monkeypatch.setitem(catalogue.SUITES, "EmojiShift", lambda: of_emoji_styles)
    arguments = ["evaluate", "--suite", "EmojiShift", "--clip", "tiny", "--workers", "0", "--json"]
    assert cli.main(arguments) == 0

    document = json.loads(capsys.readouterr().out)
    clip = backbone.load("tiny")
    classes = sorted(prompts.BUILT_IN_CLASSES["EmojiStyles"])
    words = prompts.prompts(prompts.contexts("emoji"), classes)
    weights = objective.zero_shot_weights(backbone.text_features(clip, words)).classes
    people = {"face", "hand", "person"}
    artefacts = {"building", "clothing", "tool", "vehicle"}
    union = {name: "people" for name in people} | {name: "made" for name in artefacts}
    union |= {"animal": "living", "plant": "living", "food": "food"}
    all_classes = {name: name for name in classes}
    without_people = {name: name for name in classes if name not in people}
    means = []
    groups_by_style = {
        "noto": all_classes,
        "fluent3d": all_classes,
        "line": without_people,
        "twemoji": union,
    }
    for style, groups in groups_by_style.items():
        right = correct_predictions(clip, weights, classes, style, groups)
        scores = document["sets"][style]
        assert scores["complete"] and scores["n"] == len(right), style
        assert abs(scores["right"] - sum(right)) <= 2, style  # resized by torch, not by Pillow

        means.append(sum(right) / len(right))
    assert document["mean"] == pytest.approx(sum(means[1:]) / 3, abs=0.02)


def test_reports_name_the_embedded_copy():
    """The value in the records stays what it was."""
    report = verify.verify("EmojiStyles")
    assert report.data_edition == "verified: of the package"
    assert "the 1,716 pictures, the copy included in the package" in report.as_text()
    label = benchmarks.edition_label(report.data_edition)
    assert label == "verified: the copy included in the package"
    assert benchmarks.edition_label("verified: as published") == "verified: as published"
