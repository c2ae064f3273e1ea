"""The two presets against transforms done by hand, and who follows them."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_algorithms import build, settings

from domainbed_carft.errors import CarftError
from domainbed_carft.method import algorithms, dataset_facts
from domainbed_carft.pictures.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET,
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from domainbed_carft.pictures.protocols import plan_for
from domainbed_carft.pictures.transforms import PlanTransform
from domainbed_carft.plugin import data_sets


@pytest.fixture
def picture():
    """Wide, so that squeezing and cropping differ: a ramp from left to right, red above green."""
    ramp = np.linspace(0, 255, 120).astype(np.uint8)
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:30, :, 0] = ramp
    pixels[30:, :, 1] = ramp
    return Image.fromarray(pixels)


def undone(x, mean, std):
    return x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)


def test_at_test_time_domainbed_squeezes_and_clip_crops(picture):
    squeezed = PlanTransform(plan_for("domainbed", 48, False))(picture)
    cropped = PlanTransform(plan_for("clip", 48, False))(picture)
    by_hand = np.asarray(picture.resize((48, 48), Image.Resampling.BILINEAR)) / 255
    wide = picture.resize((96, 48), Image.Resampling.BICUBIC).crop((24, 0, 72, 48))
    for got, expected, (mean, std) in (
        (squeezed, by_hand, (IMAGENET_MEAN, IMAGENET_STD)),
        (cropped, np.asarray(wide) / 255, (CLIP_MEAN, CLIP_STD)),
    ):
        pixels = undone(got, mean, std).permute(1, 2, 0).numpy()
        assert np.abs(pixels - expected).max() < 0.02


def test_in_training_only_domainbed_changes_colours(picture):
    torch.manual_seed(0)
    picture = picture.resize((80, 60))  # wider ones always give the same crop
    clips = CLIP_MEAN, CLIP_STD
    for name, (mean, std) in {"domainbed": IMAGENET, "clip": clips}.items():
        crops = [
            undone(PlanTransform(plan_for(name, 48, True))(picture), mean, std) for _ in range(40)
        ]
        assert len({x.sum().item() for x in crops}) == 40  # each draw is another crop
        blue = max(x[2].abs().max().item() for x in crops)  # the picture has none
        assert (blue > 0.02) == (name == "domainbed")


def test_wise_ft_crops_a_tenth_at_most_and_never_flips(picture):
    ramp = picture.resize((64, 64)).crop((0, 0, 64, 32)).resize((64, 64))  # red, left to right
    for _ in range(20):
        cropped = PlanTransform(plan_for("wise-ft", 48, True))(ramp)
        red = undone(cropped, CLIP_MEAN, CLIP_STD)[0, 24]
        assert red[0] < 0.13 and red[-1] > 0.87 and (red.diff() > -0.01).all()

    still = [PlanTransform(plan_for(name, 48, False))(picture) for name in ("wise-ft", "clip")]
    assert torch.equal(*still)


def test_lipsum_ft_crops_8_to_100_percent_and_flips(picture):
    crop, flip, *_ = PlanTransform(plan_for("lipsum-ft", 48, True)).transforms
    assert tuple(crop.scale) == (0.08, 1.0) and crop.interpolation.value == "bicubic"
    assert flip.p == 0.5
    still = [PlanTransform(plan_for(name, 48, False))(picture) for name in ("lipsum-ft", "clip")]
    assert torch.equal(*still)


def test_emoji_styles_follows_the_protocol(random_tiny, capsys):
    values = settings(random_tiny, class_names="dataset:EmojiStyles", protocol="clip")
    dataset = data_sets.EmojiStyles("", [0], values)
    assert dataset[0].transform.transforms[-1].mean == CLIP_MEAN

    kinds = [type(step).__name__ for step in dataset[1].transform.transforms]
    assert "ColorJitter" not in kinds and "RandomHorizontalFlip" in kinds

    algorithm = build(algorithms.CLIPZeroShot, dataset.input_shape, 10, 3, values)
    x = dataset[0][0][0][None]
    assert torch.equal(algorithm.input(x), x)  # nothing to undo

    stdout = capsys.readouterr().out
    assert "CLIP protocol: clip (training: crop of 70" in stdout


@pytest.mark.parametrize(
    ("requested", "followed"),
    [("clip", "domainbed"), ("domainbed", "clip"), ("clip", None), ("clip", "host")],
)
def test_pictures_that_contradict_the_protocol_are_refused(random_tiny, requested, followed):
    values = settings(random_tiny, class_names="dataset:Pets", protocol=requested)
    if followed:
        environments = [dataset_facts.EnvironmentFacts("art", ["a", "b", "c"])]
        dataset_facts.remember(values, "Pets", environments, None, followed)
    else:
        values["class_names"] = ["a", "b", "c"]

    with pytest.raises(CarftError, match=f"protocol is '{requested}', but .*Leave protocol at"):
        build(algorithms.CARFT, (3, 28, 28), 3, 2, values)


def test_a_hosts_own_transforms_are_recorded_as_host(random_tiny, capsys):
    for requested in ("domainbed", "host"):
        values = settings(random_tiny, class_names="dataset:Pets", protocol=requested)
        environments = [dataset_facts.EnvironmentFacts(name, ["a", "b", "c"]) for name in "xy"]
        dataset_facts.remember(values, "Pets", environments, None, "host")
        algorithm = build(algorithms.CARFT, (3, 28, 28), 3, 2, values)
        assert algorithm.recorded_facts()["protocol"] == "host"
        assert "CLIP protocol: host (this DomainBed's own transforms" in capsys.readouterr().out
