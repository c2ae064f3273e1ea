"""Two stages against Pillow's path, with images of all modes: decoding, plans, what is drawn."""

import dataclasses
import json
import os
import re
import signal
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision import transforms as T

from domainbed_carft.data import emoji, image_files
from domainbed_carft.images import augmentation, stages
from domainbed_carft.images.loading import decode
from domainbed_carft.images.plan import Augmentation, ImagePlan
from domainbed_carft.images.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
)
from domainbed_carft.images.protocols import plan_for
from domainbed_carft.images.transforms import PlanTransform, find_plan
from domainbed_carft.machine import devices

FILES = (
    "plain.jpg",
    "progressive.jpg",
    "grey.jpg",
    "rgb inside.jpg",
    "turned.jpg",
    "long.jpg",
    "inks.jpg",
    "cut off.jpg",
    "palette.png",
    "16 bit.png",
    "rgba.png",
    "named.jpg",
)
PRESETS = [
    ("domainbed", None),
    ("clip", Preprocessing(224)),
    ("clip", Preprocessing.from_hparam("224 bilinear squash")),
    ("wise-ft", Preprocessing(224)),
    ("lipsum-ft", None),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One of our images in all modes, not square."""
    folder = tmp_path_factory.mktemp("in all modes")
    emojis = sorted((emoji.style_folders() / "fluent3d" / "face").iterdir())
    rgba = Image.open(emojis[0]).convert("RGBA").resize((301, 257))
    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "teal"), rgba).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6

    image.save(folder / "plain.jpg", quality=75)
    image.save(folder / "progressive.jpg", progressive=True, subsampling=0)
    image.convert("L").save(folder / "grey.jpg")
    Image.merge("RGB", image.split()[::-1]).save(folder / "rgb inside.jpg", keep_rgb=True)
    image.save(folder / "turned.jpg", exif=turned)

    content = (folder / "plain.jpg").read_bytes()
    (folder / "long.jpg").write_bytes(content + b"more")
    (folder / "cut off.jpg").write_bytes(content[: len(content) // 2])

    image.convert("CMYK").save(folder / "inks.jpg")
    image.convert("P").save(folder / "palette.png", transparency=3)
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(
        folder / "16 bit.png"
    )
    rgba.save(folder / "rgba.png")
    image.save(folder / "named.jpg", "PNG")
    return folder


@pytest.fixture(autouse=True)
def truncated_images_as_in_the_harness(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


@pytest.mark.parametrize("name", FILES)
def test_images_are_decoded_as_by_pillow(folder, name):
    decoded = decode(str(folder / name))
    assert np.array_equal(decoded.numpy(), np.array(image_files.open_image(folder / name)))
    assert decoded.is_contiguous()


def test_images_that_pillow_refuses_are_refused(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 no image")
    with pytest.raises(Exception) as expected:
        image_files.open_image(path)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        decode(str(path))


def test_upstreams_steps_are_the_plans_of_the_presets():
    """Recognised from torchvision's own steps, as a host's would be."""
    training_plan = plan_for("domainbed", 224, augment=True)
    upstream = T.Compose(
        [
            T.RandomResizedCrop(224, scale=(0.7, 1.0)),
            T.RandomHorizontalFlip(),
            T.ColorJitter(0.3, 0.3, 0.3, 0.3),
            T.RandomGrayscale(),
            T.ToTensor(),
            T.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    assert find_plan(upstream) == training_plan and training_plan.is_random


@pytest.mark.parametrize(("protocol", "preprocessing"), PRESETS)
@pytest.mark.parametrize("augment", [False, True])
def test_a_plan_comes_back_from_its_transform_and_from_json(protocol, preprocessing, augment):
    plan = plan_for(protocol, 224, augment, preprocessing)
    steps = PlanTransform(plan).transforms
    recognised = find_plan(T.Compose(steps))
    resize = recognised.resize if augment else plan.resize  # a random crop does not tell
    assert dataclasses.replace(recognised, resize=resize) == dataclasses.replace(
        plan, resize=resize
    )

    job_plan = dataclasses.replace(plan, mode="fast", jitter="numba").for_model(
        336, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    )
    assert ImagePlan.from_json(json.loads(json.dumps(job_plan.as_json()))) == job_plan


def test_a_transform_whose_steps_were_changed_has_the_plan_of_its_steps():
    transform = PlanTransform(plan_for("domainbed", 224, augment=False))
    transform.transforms[-1] = T.Normalize(CLIP_MEAN, CLIP_STD)
    assert find_plan(transform).mean == CLIP_MEAN

    transform.transforms.append(T.RandomErasing())
    assert find_plan(transform) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("size", 224.0),
        ("resize", "crop"),
        ("interpolation", "nearest"),
        ("mean", [0.5]),
        ("mean", "abc"),
        ("std", [0.5, 0.0, 0.5]),
        ("std", [0.5, float("nan"), 0.5]),
        ("mode", "slow"),
        ("jitter", ["numba"]),
        ("is_for_model", 1),
        ("augmentation", []),
        ("augmentation", {"crop_scale": [1.0, 0.7]}),
    ],
)
def test_json_that_is_no_plan_is_refused(field, value):
    fields = {**plan_for("domainbed", 224, augment=True).as_json(), field: value}
    with pytest.raises((ValueError, TypeError, KeyError)):
        ImagePlan.from_json(fields)


def test_other_transforms_have_no_image_plan():
    class Flip(T.RandomHorizontalFlip):
        pass

    end = [T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)]
    square = T.Resize((8, 8))
    assert find_plan(T.Compose([square, *end]))
    for steps in (
        [],
        end,
        [square],
        [square, T.ToTensor()],
        [T.Resize(8), *end],
        [T.Resize((8, 9)), *end],
        [T.Resize(8), T.CenterCrop(9), *end],
        [T.Resize((8, 8), T.InterpolationMode.NEAREST), *end],
        [square, Flip(), *end],
        [square, *end, T.RandomErasing()],
        [square, T.ColorJitter(0.1), T.RandomHorizontalFlip(), *end],
    ):
        assert find_plan(T.Compose(steps)) is None
    assert find_plan(square) is None
    assert find_plan(None) is None


def level_difference(
    image_plan: ImagePlan, actual: torch.Tensor, expected: torch.Tensor
) -> torch.Tensor:
    """The difference of normalised images, in grey levels."""
    return (actual - expected).abs() * torch.tensor(image_plan.std).view(3, 1, 1) * 255


@pytest.mark.parametrize(("protocol", "preprocessing"), PRESETS)
@pytest.mark.parametrize("augment", [False, True])
def test_both_stages_equal_pillows_transform(folder, protocol, preprocessing, augment):
    plan = plan_for(protocol, 224, augment, preprocessing)
    transform = PlanTransform(plan)
    squares = []
    choices = []
    expected = []
    for name in FILES:
        torch.manual_seed(0)
        expected.append(transform(image_files.open_image(folder / name)))
        state_after_transform = torch.get_rng_state()

        torch.manual_seed(0)
        square, square_choices = stages.first_stage(plan, decode(str(folder / name)))
        assert torch.equal(torch.get_rng_state(), state_after_transform)
        assert square.dtype == torch.uint8 and square.shape == (224, 224, 3)
        squares.append(square)
        choices.append(square_choices)

    images = stages.second_stage(plan, torch.stack(squares), torch.stack(choices))
    difference = level_difference(plan, images, torch.stack(expected))
    if not (augment and plan.augmentation.jitter_ranges):
        # Both round between rows and columns; bicubic weights can double such a difference.
        assert difference.max() <= (2.01 if plan.interpolation == "bicubic" else 1.01)
        assert (difference > 1.01).float().mean() < 1e-4
        assert difference.mean() <= 0.01
    else:  # of one grey level the jitter makes more
        assert difference.mean() <= 0.05
        assert (difference <= 6).float().mean() >= 0.99


def batch_jitter_plan() -> ImagePlan:
    """A plan for squares of 16 pixels with larger jitters than usual, in the second stage."""
    return ImagePlan(
        size=16,
        resize="squash",
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        augmentation=Augmentation(jitter_ranges=((0.0, 2.0),) * 4),
        jitter="numba",
    )


def random_choices(count: int) -> torch.Tensor:
    """Random choices (count, 10) as the first stage makes them, with larger factors than usual."""
    generator = torch.Generator().manual_seed(0)
    choices = torch.rand(count, augmentation.N_COLUMNS, generator=generator)
    for column in (augmentation.FLIP, augmentation.GREY):
        choices[:, column] = (choices[:, column] < 0.3).float()
    choices[:, augmentation.ORDER] = choices[:, augmentation.ORDER].argsort(1).float()
    factors = choices[:, augmentation.FACTORS]  # a view
    factors[:, : augmentation.HUE] *= 2
    factors[:, augmentation.HUE] -= 0.5
    return choices


def test_unneeded_operations_are_left_out():
    half = (0.5,) * 3
    transform_with_jitter = T.Compose(
        [T.Resize((16, 16)), T.ColorJitter(0, 0.5, 0, 0.2), T.ToTensor(), T.Normalize(half, half)]
    )
    jitter_plan = dataclasses.replace(find_plan(transform_with_jitter), jitter="numba")
    pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8)
    torch.manual_seed(0)
    expected = transform_with_jitter(Image.fromarray(pixels.numpy()))
    torch.manual_seed(0)
    square, choices = stages.first_stage(jitter_plan, pixels)
    difference = level_difference(
        jitter_plan, stages.second_stage(jitter_plan, square[None], choices[None]), expected
    )
    assert difference.mean() < 0.1


def test_jittered_batches_are_the_same_on_a_device_and_the_processor(device):
    """By torch on the device and, where it is installed, by numba on the processor."""
    assert stages.jitter_backend(device) == "torch"
    noise = torch.randint(256, (24, 16, 16, 3), dtype=torch.uint8)
    noise[:4] = noise[:4, :, :, :1]  # greys have no hue
    noise_plan = batch_jitter_plan()
    noise_on_device = noise.to(device)
    with devices.refused_waits():
        on_device = stages.second_stage(noise_plan, noise_on_device, random_choices(24))
    assert on_device.device == noise_on_device.device

    on_processor = stages.second_stage(noise_plan, noise, random_choices(24))
    difference = level_difference(noise_plan, on_device.cpu(), on_processor)
    assert (difference < 0.0255).float().mean() > 0.999


@pytest.mark.parametrize("marker", [b"", b"\xff\xff\xe1\x00\x04xx", b"\xff\xe1\x00\x04xx"])
def test_a_jpeg_beyond_pillows_limit_is_not_decoded(folder, tmp_path, marker):
    path = tmp_path / "bomb.jpg"
    content = (folder / "grey.jpg").read_bytes()
    size = content.index(b"\xff\xc0") + 5
    content = content[:size] + struct.pack(">HH", 60_000, 60_000) + content[size + 4 :]
    path.write_bytes(content[:2] + marker + content[2:])
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit of"):
        decode(str(path))


@pytest.mark.parametrize("read", [decode, image_files.open_image])
def test_a_pipe_is_refused_without_waiting(tmp_path, read):
    path = tmp_path / "image.jpg"
    os.mkfifo(path)
    signal.alarm(20)
    try:
        with pytest.raises(OSError, match="it is a pipe, a socket or a device"):
            read(str(path))
    finally:
        signal.alarm(0)
    with pytest.raises(OSError, match="it is a pipe, a socket or a device"):
        read("/dev/zero")
