"""The presets of the hparam `protocol`, compared with Pillow, in datasets and algorithms."""

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_carft.datasets import included
from domainbed_carft.errors import CarftError
from domainbed_carft.images.dataset_facts import DatasetFacts, EnvironmentFacts
from domainbed_carft.images.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from domainbed_carft.images.protocols import plan_for
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.method import algorithms


def test_domainbed_squashes_test_images_and_clip_crops_them():
    ramp = np.linspace(0, 255, 120).astype(np.uint8)
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:30, :, 0] = ramp
    pixels[30:, :, 1] = ramp
    image = Image.fromarray(pixels)

    squashed = image.resize((48, 48), Image.Resampling.BILINEAR)
    cropped = image.resize((96, 48), Image.Resampling.BICUBIC).crop((24, 0, 72, 48))
    for protocol, expected, mean, std in (
        ("domainbed", squashed, IMAGENET_MEAN, IMAGENET_STD),
        ("clip", cropped, CLIP_MEAN, CLIP_STD),
    ):
        x = PlanTransform(plan_for(protocol, 48, augment=False))(image).permute(1, 2, 0).numpy()
        assert np.abs(x * std + mean - np.asarray(expected) / 255).max() < 0.02
    for protocol in ("wise-ft", "lipsum-ft"):
        assert plan_for(protocol, 48, augment=False) == plan_for("clip", 48, augment=False)


@pytest.mark.parametrize(
    ("protocol", "crop_scale", "flip_probability", "changes_colours"),
    [
        ("domainbed", (0.7, 1.0), 0.5, True),
        ("clip", (0.7, 1.0), 0.5, False),
        ("wise-ft", (0.9, 1.0), None, False),
        ("lipsum-ft", (0.08, 1.0), 0.5, False),
    ],
)
def test_augmentation_equals_the_recipes(protocol, crop_scale, flip_probability, changes_colours):
    augmentation = plan_for(protocol, 48, augment=True).augmentation
    assert augmentation.crop_scale == crop_scale
    assert augmentation.flip_probability == flip_probability
    assert (augmentation.jitter_ranges is not None) == changes_colours
    assert augmentation.grey_probability == (0.1 if changes_colours else None)


def settings(weights, dataset, **overrides):
    values = algorithms.hparam_values("CARFT", "Debug28")
    values |= {"class_names": f"dataset:{dataset}", "clip_backbone": str(weights)}
    return {**values, "data_augmentation": True, "class_balanced": False, **overrides}


def test_emoji_styles_follows_the_protocol(random_tiny, capsys):
    values = settings(random_tiny, "EmojiStyles", protocol="clip")
    dataset = included.EmojiStyles("", [0], values)
    assert dataset[0].transform.transforms[-1].mean == CLIP_MEAN
    kinds = [type(step).__name__ for step in dataset[1].transform.transforms]
    assert "ColorJitter" not in kinds and "RandomHorizontalFlip" in kinds

    algorithm = algorithms.CLIPZeroShot(
        dataset.input_shape, 10, 3, values, dataset_facts=dataset.dataset_facts
    )
    x = dataset[0][0][0][None]
    assert torch.equal(algorithm.input(x), x)  # already normalised for CLIP
    assert "CLIP protocol: clip (training: crop of 70" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("requested", "followed"),
    [("clip", "domainbed"), ("domainbed", "clip"), ("clip", None), ("clip", "host")],
)
def test_dataset_with_another_protocol_is_refused(random_tiny, requested, followed):
    values = settings(random_tiny, "Pets", protocol=requested)
    facts = None
    if followed:
        facts = DatasetFacts([EnvironmentFacts("art", ["a", "b", "c"])], protocol=followed)
    else:
        values["class_names"] = ["a", "b", "c"]
    with pytest.raises(CarftError, match=f"protocol is '{requested}'"):
        algorithms.CARFT((3, 28, 28), 3, 2, values, dataset_facts=facts)


def test_datasets_of_the_package_do_not_follow_the_protocol_of_a_host(random_tiny):
    values = settings(random_tiny, "EmojiStyles", protocol="host")
    dataset = included.EmojiStyles("", [0], values)
    with pytest.raises(CarftError, match="protocol is 'host', but .* its transforms .domainbed"):
        algorithms.CARFT(dataset.input_shape, 10, 3, values, dataset_facts=dataset.dataset_facts)


@pytest.mark.parametrize("requested", ["domainbed", "host"])
def test_transforms_of_a_host_are_recorded_as_host(random_tiny, capsys, requested):
    values = settings(random_tiny, "Pets", protocol=requested)
    environments = [EnvironmentFacts(name, ["a", "b", "c"]) for name in "xy"]
    facts = DatasetFacts(environments, protocol="host")
    algorithm = algorithms.CARFT((3, 28, 28), 3, 2, values, dataset_facts=facts)
    assert algorithm.recorded_facts()["protocol"] == "host"
    assert "CLIP protocol: host (" in capsys.readouterr().out
