"""The embedded benchmarks: archives, labels, datasets and suites."""

import csv
import hashlib
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import scipy
import torch
from data_trees import files
from fake_checkout import REPO, run_python

from domainbed_carft.data import benchmarks, emoji, emoji_styles, verification
from domainbed_carft.data.emoji_styles import FAMILY_SEEN, NEVER_SEEN, SEEN
from domainbed_carft.datasets import included
from domainbed_carft.method import prompts
from domainbed_carft.results import comparisons
from domainbed_carft.runs.predictions import LoadingOptions
from domainbed_carft.runs.scores import Scores
from domainbed_carft.runs.suites import SuiteTest
from domainbed_carft.suites import catalogue

ASSETS = resources.files("domainbed_carft") / "assets"


def test_style_labels_follow_from_the_pretraining_data():
    rows = csv.DictReader(io.StringIO((ASSETS / "tiny_pretraining.csv").read_text("ascii")))
    trained = {row["style"] for row in rows}
    families = {emoji_styles.get(name).family for name in trained}
    for style in emoji_styles.styles():
        expected = FAMILY_SEEN if style.family in families else NEVER_SEEN
        assert style.label == (SEEN if style.name in trained else expected), style.name


@pytest.mark.slow
def test_archives_contain_held_out_things_and_listed_near_duplicates(tmp_path):
    done = run_python(str(REPO / "tools" / "build_emoji.py"), "--check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_archives_have_known_bytes_and_licences():
    digest = hashlib.sha256((ASSETS / emoji.ARCHIVE).read_bytes()).hexdigest()
    assert digest == "ff4d187db8cbeac21a50c6122ee7ebbe35802fc153a4c6f24d53e23fdea9afb9"
    with zipfile.ZipFile(io.BytesIO((ASSETS / emoji.FURTHER_ARCHIVE).read_bytes())) as archive:
        text = " ".join(archive.read("LICENSES.txt").decode().split())
    for style in emoji_styles.styles():
        assert style.label == SEEN or f"{style.package} {style.version}" in text


def test_concurrent_jobs_share_one_unpacked_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(tmp_path / "cache"))
    with ThreadPoolExecutor(2) as pool:
        (folder,) = set(pool.map(lambda _: emoji.style_folders(), range(2)))
    with zipfile.ZipFile(io.BytesIO((ASSETS / emoji.ARCHIVE).read_bytes())) as archive:
        assert files(folder) == sorted(archive.namelist())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # no temporary folders


def test_emoji_shift_splits_the_images_of_one_style():
    folders = [emoji.shift_folders() / side / "noto" for side in ("train", "test")]
    trained, tested = ({*files(folder)} for folder in folders)
    assert trained | tested == {*files(emoji.style_folders() / "noto")} and not trained & tested
    (environment,) = included.EmojiShift(None, (), {"clip_backbone": "tiny"})
    assert len(environment) == len(trained)


# The datasets


@pytest.mark.parametrize(("name", "label"), [("EmojiStyles", SEEN), ("EmojiUnseen", NEVER_SEEN)])
def test_embedded_datasets_meet_domainbeds_interface_and_augment_only_training(name, label):
    hparams = {"class_names": f"dataset:{name}", "clip_backbone": "tiny"}
    dataset = getattr(included, name)("not read", [1], dict(hparams))
    assert sorted(emoji_styles.names(label)) == dataset.ENVIRONMENTS
    sizes = [emoji_styles.get(style).images for style in dataset.ENVIRONMENTS]
    assert [len(environment) for environment in dataset] == sizes
    x, y = dataset[0][0]
    assert x.shape == dataset.input_shape == (3, 48, 48) and x.dtype == torch.float32 and y == 0
    names = prompts.find_class_names(hparams, 10, dataset.dataset_facts)
    assert names == sorted(prompts.BUILT_IN_CLASSES["EmojiStyles"])

    for number, environment in enumerate(dataset):
        assert torch.equal(environment[5][0], environment[5][0]) == (number == 1)
    unaugmented = getattr(included, name)("", [1], {**hparams, "data_augmentation": False})
    assert all(torch.equal(environment[5][0], environment[5][0]) for environment in unaugmented)
    report = verification.verify(name)
    assert (report.status, report.images) == ("verified", sum(sizes))


def test_other_hosts_receive_224_pixels_or_untransformed_images():
    dataset = included.EmojiStyles("", [1], {"data_augmentation": True, "batch_size": 8})
    assert dataset[0][0][0].shape == dataset.input_shape == (3, 224, 224)
    image, label = included.EmojiStyles("not read")[2][0]  # SWAD and MIRO transform themselves
    assert (image.size, image.mode, label) == ((64, 64), "RGB", 0)


# The suites


def test_emoji_shift_has_different_class_lists_and_group_means(tmp_path):
    suite = catalogue.get("EmojiShift")
    groups = {
        test_set.name: [[suite.classes[place] for place in group] for group in test_set.groups]
        for test_set in suite.sets
    }
    people = ["face", "hand", "person"]
    assert groups["line"] == [[name] for name in suite.classes if name not in people]
    assert groups["twemoji"][:3] == [["food"], ["animal", "plant"], people]
    assert groups["twemoji"][3] == ["building", "clothing", "tool", "vehicle"]
    assert not any(test_set.find(tmp_path).problems for test_set in suite.sets)

    accuracies = dict.fromkeys(groups, 0.5)
    accuracies |= {"fluent3d": 0.3, "line": 0.6, "twemoji": 0.9, "streamline": 1.0}
    means = suite.means(accuracies)
    assert [means["mean"], means["mean_never_seen"]] == pytest.approx([0.6, 0.6])
    assert means["mean_family_seen"] == pytest.approx(0.5)
    del accuracies["streamline"]
    assert suite.means(accuracies)["mean_never_seen"] is None


@pytest.mark.parametrize("protocol", [pytest.param("domainbed", marks=pytest.mark.slow), "clip"])
def test_suite_and_dataset_produce_the_same_input(protocol):
    # Both resize with Pillow; torch's bicubic, in `clip`, would sometimes differ by a grey level.
    styles = emoji_styles.names(NEVER_SEEN)
    hparams = {"clip_backbone": "tiny", "protocol": protocol}
    dataset = included.EmojiUnseen("not read", [*range(len(styles))], hparams)
    suite = catalogue.get("EmojiUnseen")
    copies = {test_set.name: test_set.find(Path()) for test_set in suite.sets}
    test = SuiteTest(
        suite=replace(suite, sets=suite.sets[: len(styles)]),
        copies={name: replace(copy, samples=copy.samples[::4]) for name, copy in copies.items()},
        unread=[],
        plan=dataset[0].transform.plan,
        options=LoadingOptions(torch.device("cpu"), workers=0),
    )
    batches = []

    def predict(images):
        batches.append(images.clone())
        return [torch.zeros(len(images), 10)]

    test.measure(predict, [Scores(run="", algorithm="", title="", classes=[*suite.classes])])
    images = {
        path: environment[position][0]
        for environment in dataset
        for position, (path, _) in enumerate(environment.samples)
    }
    paths = [path for style in styles for path, _ in test.copies[style].samples]
    expected = torch.stack([images[path] for path in paths])
    assert torch.allclose(torch.cat(batches), expected, rtol=0, atol=1e-5)


# Errors


def test_styles_of_a_family_are_one_unit_of_an_interval():
    units = [benchmarks.independent_unit("EmojiUnseen", index) for index in range(5)]
    assert units == ["emojione", "emojione", "emojione", "fxemoji", "streamline"]
    assert benchmarks.independent_unit("EmojiStyles", 2) == "2"

    pairs = {("EmojiUnseen", k, trial): 5.0 * k + trial for k in range(5) for trial in range(2)}
    accuracies = {"CARFT": pairs, "ERM": dict.fromkeys(pairs, 0.0)}
    (by_environment,) = comparisons.compare(accuracies, "ERM", "environment")
    assert (by_environment.n, by_environment.environments) == (3, 5)
    interval = scipy.stats.ttest_1samp([5.5, 15.5, 20.5], 0).confidence_interval()
    assert (by_environment.low, by_environment.high) == pytest.approx([*interval])
    (by_pair,) = comparisons.compare(accuracies, "ERM", "pair")
    assert (by_pair.n, by_pair.mean_difference) == (10, 10.5)
