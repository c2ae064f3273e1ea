"""`domainbed_carft.build`: an algorithm for a training loop of your own."""

import numpy as np
import pytest
import torch
from domainbed import hparams_registry
from fake_checkout import REPO
from helpers.algorithms import same_state
from PIL import Image
from torchvision import transforms

import domainbed_carft
from domainbed_carft.errors import CarftError
from domainbed_carft.images.dataset_facts import DatasetFacts, EnvironmentFacts
from domainbed_carft.images.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from domainbed_carft.method import algorithms

NAMES = ["cat", "dog"]
TINY = {"clip_backbone": "tiny"}
LABELS = torch.tensor([0, 1, 1, 0])


def build(algorithm="CARFT", class_names=NAMES, **options):
    return domainbed_carft.build(algorithm, class_names, **{"hparams": TINY, **options})


def batch():
    return torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(1)), LABELS


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA")


def test_build_equals_constructor_and_prints_nothing(capfd):
    algorithm = build(steps=7, num_domains=2)
    assert capfd.readouterr() == ("", "")

    hparams = {**TINY, "class_names": NAMES, "total_steps": 7}
    expected = algorithms.CARFT((3, 48, 48), 2, 2, hparams)
    for _ in range(2):
        assert algorithm.update([batch()]) == expected.update([batch()])
    assert same_state(algorithm, expected)


def test_preprocess_uses_imagenet_normalisation_that_the_algorithm_undoes(image):
    algorithm = build(steps=7)
    square = transforms.Compose(
        [
            transforms.Resize(48, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(48),
            transforms.ToTensor(),
        ]
    )(image.convert("RGB"))

    tensor = algorithm.preprocess(image)

    assert torch.equal(tensor, transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)(square))
    clip_input = transforms.Normalize(CLIP_MEAN, CLIP_STD)(square)
    torch.testing.assert_close(algorithm.input(tensor[None])[0], clip_input, rtol=0, atol=1e-5)


def test_preprocess_uses_normalisation_of_the_dataset(image):
    names = ["heron", "stork"]
    half = ((0.5,) * 3, (0.25,) * 3)
    facts = DatasetFacts([EnvironmentFacts("pond", names, half)])

    tensor = build(class_names=names, steps=7, dataset_facts=facts).preprocess(image)

    imagenet_tensor = build(steps=7).preprocess(image)
    std, mean = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_STD, IMAGENET_MEAN))
    torch.testing.assert_close(tensor * 0.25 + 0.5, imagenet_tensor * std + mean)


@pytest.mark.parametrize(
    ("algorithm", "hparams", "messages"),
    [
        ("CARFT", {}, ["lr_schedule 'cosine'"]),
        ("CLIPood", {"lr_schedule": "constant"}, ["average 'beta'"]),
        ("CLIPood", {}, ["lr_schedule 'cosine'", "average 'beta'"]),
        ("StarFT", {"lr_schedule": "constant"}, ["StarFT's KL falls to 0"]),
        ("CaRot", {"lr_schedule": "constant"}, ["CaRot's teacher"]),
    ],
)
def test_build_without_steps_rejects_schedules_that_need_total_steps(algorithm, hparams, messages):
    with pytest.raises(CarftError) as caught:
        build(algorithm, hparams={**TINY, **hparams})
    for problem, message in zip(caught.value.problems, messages, strict=True):
        assert message in problem and "pass steps=..." in problem


def test_build_without_steps_reports_invalid_values_as_well():
    with pytest.raises(CarftError) as caught:
        build(hparams={**TINY, "lr": "x"})
    value, schedule = caught.value.problems
    assert value == "lr is 'x', expected a number > 0" and "pass steps=..." in schedule


@pytest.mark.parametrize(
    ("algorithm", "hparams"),
    [
        ("CARFT", {"lr_schedule": "constant", "average": "ema"}),
        ("StarFT", {"lr_schedule": "constant", "kl_weight": 0}),
        ("CLIPZeroShot", {}),
        ("CARFT", {"total_steps": 9}),
    ],
)
def test_build_without_steps_trains_otherwise(algorithm, hparams):
    assert build(algorithm, hparams={**TINY, **hparams}).update([batch()])["loss"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": "CARFTT"}, "no algorithm is called 'CARFTT'; did you mean CARFT"),
        ({"class_names": "PACS"}, "class_names is 'PACS', expected a list with one name per class"),
        ({"class_names": []}, r"class_names is \[\], expected a list"),
        ({"class_names": ["cat", 3]}, "expected a list with one name per class"),
        ({"hparams": {**TINY, "kl_wieght": 1}}, "called 'kl_wieght'; did you mean kl_weight"),
        ({"hparams": {**TINY, "lr": -1}}, "lr is -1, expected a number > 0"),
        ({"hparams": {"clip_backbone": "nope.pt"}}, "clip_backbone is 'nope.pt', expected"),
        ({"steps": 0}, "steps is 0, expected a whole number of at least 1"),
    ],
)
def test_build_rejects_invalid_arguments(change, message):
    with pytest.raises(CarftError, match=message):
        build(**{"algorithm": "CARFT", "steps": 7, **change})


IMAGES = torch.zeros(4, 3, 48, 48)


@pytest.mark.parametrize(
    ("minibatches", "message"),
    [
        ((IMAGES, LABELS), "minibatch 0 is a Tensor, expected .* a list of pairs"),
        ([], "got no minibatches, expected .* a list of pairs"),
        ([(IMAGES, LABELS, LABELS)], "minibatch 0 is a tuple, expected"),
        ([(IMAGES, LABELS), (IMAGES, LABELS + 1)], r"y of minibatch 1 .*\) with 2, .* 0 to 1$"),
        ([(IMAGES, LABELS - 1)], "y of minibatch 0 .* with -1, expected"),
        ([(IMAGES, LABELS.int())], "is torch.int32 of shape .* expected torch.int64"),
        ([(IMAGES[:3], LABELS)], r"of shape \(4,\), expected .* of shape \(3,\)"),
        ([(IMAGES.byte(), LABELS)], "x of minibatch 0 is torch.uint8 .* algorithm.preprocess"),
        ([(IMAGES[0], LABELS)], r"x of minibatch 0 is torch.float32 of shape \(3, 48, 48\)"),
    ],
)
def test_update_rejects_invalid_minibatches(minibatches, message):
    with pytest.raises(CarftError, match=message):
        build(steps=2).update(minibatches)


def test_build_accepts_hparams_of_the_registry():
    hparams = hparams_registry.default_hparams("CARFT", "EmojiStyles")
    assert build(hparams=hparams).hparams["total_steps"] == hparams["total_steps"]


@pytest.mark.slow
def test_example_trains_predicts_and_saves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = (REPO / "examples" / "train_in_a_loop.py").read_text(encoding="utf-8")
    exec(code.replace("batch_size=16", "batch_size=4"), {})  # to save time

    *steps, last = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in steps] == ["step 0", "step 5", "step 10", "step 15"]
    assert steps[0].endswith("KL 0.0000") and not steps[1].endswith("KL 0.0000")
    assert float(last.removeprefix("accuracy on an unseen style: ")) > 0.5
    assert "words" in torch.load("carft.pt", weights_only=True)
