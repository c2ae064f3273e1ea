"""Decoding, image plans and the two stages, compared with Pillow and torchvision."""

import dataclasses
import json
import os
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision import transforms as T

from domainbed_carft.data import emoji, image_files
from domainbed_carft.images import augmentation, stages
from domainbed_carft.images.loading import decode
from domainbed_carft.images.plan import FAST, JITTERS, Augmentation, ImagePlan
from domainbed_carft.images.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
)
from domainbed_carft.images.protocols import plan_for, plan_for_job
from domainbed_carft.images.transforms import PlanTransform, get_plan
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
    """Save an embedded image, not square, in many modes and formats."""
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
def _load_truncated_images(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


@pytest.mark.parametrize("name", FILES)
def test_decoded_pixels_equal_pillows(folder, name):
    decoded = decode(str(folder / name))
    assert np.array_equal(decoded.numpy(), np.array(image_files.open_image(folder / name)))
    assert decoded.is_contiguous()


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ("shortest", T.Compose([T.Resize(224, T.InterpolationMode.BICUBIC), T.CenterCrop(224)])),
        ("squash", T.Resize((224, 224), T.InterpolationMode.BICUBIC)),
    ],
)
def test_images_of_suites_are_resized_as_by_torchvision_with_pillow(folder, resize, expected):
    image = decode(str(folder / "plain.jpg"))
    plan = plan_for("clip", 224, False, Preprocessing.from_hparam(f"224 bicubic {resize}"))
    resized = stages.resize_by_pillow(plan, image)
    assert np.array_equal(resized.numpy(), np.array(expected(Image.fromarray(image.numpy()))))


def test_transform_of_the_preset_domainbed_is_upstreams():
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
    plan = plan_for("domainbed", 224, augment=True)
    assert plan.is_random
    assert repr(T.Compose(PlanTransform(plan).transforms)) == repr(upstream)


@pytest.mark.parametrize(("hparam", "size"), [("", 336), ("224 bicubic shortest", 224)])
@pytest.mark.parametrize("is_for_model", [False, True])
def test_images_have_the_size_of_the_hparam_or_else_of_the_model(hparam, size, is_for_model):
    """Of a model with 336 pixels, whose input module resizes images of another size."""
    hparams = {"preprocessing": hparam}
    plan = plan_for_job(hparams, Preprocessing(336), is_for_model=is_for_model)
    assert plan.size == size


@pytest.mark.parametrize(("protocol", "preprocessing"), PRESETS)
@pytest.mark.parametrize("augment", [False, True])
def test_plan_is_recovered_from_json(protocol, preprocessing, augment):
    plan = plan_for(protocol, 224, augment, preprocessing)
    job_plan = dataclasses.replace(plan, mode="fast", jitter="numba").for_model(
        336, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    )
    assert ImagePlan.from_json(json.loads(json.dumps(job_plan.as_json()))) == job_plan


@pytest.mark.parametrize("jitter", JITTERS)
def test_resumed_job_keeps_the_jitter_of_its_description(jitter):
    plan = dataclasses.replace(plan_for("domainbed", 224, augment=True), mode=FAST, jitter="torch")
    started = dataclasses.replace(plan, jitter=jitter)
    assert plan.jittered_as(started.describe()) == started
    assert started.jittered_as("another description") == started


def test_changed_transform_has_no_plan():
    transform = PlanTransform(plan_for("domainbed", 224, augment=False))
    assert get_plan(transform) == plan_for("domainbed", 224, augment=False)

    transform.transforms[-1] = T.Normalize(CLIP_MEAN, CLIP_STD)
    assert get_plan(transform) is None


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
def test_invalid_json_of_a_plan_is_refused(field, value):
    fields = {**plan_for("domainbed", 224, augment=True).as_json(), field: value}
    with pytest.raises((ValueError, TypeError, KeyError)):
        ImagePlan.from_json(fields)


@pytest.mark.parametrize(("protocol", "preprocessing"), PRESETS)
@pytest.mark.parametrize("augment", [False, True])
def test_stages_equal_pillows_transform(folder, protocol, preprocessing, augment):
    plan = plan_for(protocol, 224, augment, preprocessing)
    transform = PlanTransform(plan)
    squares, choices, expected = [], [], []
    for name in FILES:
        torch.manual_seed(0)
        expected.append(transform(image_files.open_image(folder / name)))
        state_after_transform = torch.get_rng_state()

        torch.manual_seed(0)
        square = stages.crop(plan, decode(str(folder / name)))
        choices.append(stages.draw_choices(plan))
        assert torch.equal(torch.get_rng_state(), state_after_transform)
        assert square.dtype == torch.uint8 and square.shape == (224, 224, 3)
        squares.append(square)

    images = stages.second_stage(plan, torch.stack(squares), torch.stack(choices))
    levels_per_unit = 255 * torch.tensor(plan.std).view(3, 1, 1)
    difference = (images - torch.stack(expected)).abs() * levels_per_unit
    if not (augment and plan.augmentation.jitter_ranges):
        # Both round after rows and after columns, and bicubic weights can double a difference.
        assert difference.max() <= (2.01 if plan.interpolation == "bicubic" else 1.01)
        assert (difference > 1.01).float().mean() < 1e-4
        assert difference.mean() <= 0.01
    else:  # the jitter magnifies differences of one grey level
        assert difference.mean() <= 0.05
        assert (difference <= 6).float().mean() >= 0.99


def random_choices(count):
    """Return choices (count, 10) like `draw_choices`, but with larger factors."""
    generator = torch.Generator().manual_seed(0)
    choices = torch.rand(count, augmentation.N_COLUMNS, generator=generator)
    for column in (augmentation.FLIP, augmentation.GREY):
        choices[:, column] = (choices[:, column] < 0.3).float()
    choices[:, augmentation.ORDER] = choices[:, augmentation.ORDER].argsort(1).float()
    factors = choices[:, augmentation.FACTORS]  # a view
    factors[:, : augmentation.HUE] *= 2
    factors[:, augmentation.HUE] -= 0.5
    return choices


def test_jittered_batches_are_equal_on_device_and_cpu(device):
    # torch on the device and, if it is installed, numba on the CPU
    assert stages.jitter_backend(device) == "torch"
    noise = torch.randint(256, (24, 16, 16, 3), dtype=torch.uint8)
    noise[:4] = noise[:4, :, :, :1]  # greys have no hue
    plan = ImagePlan(
        size=16,
        resize="squash",
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        augmentation=Augmentation(jitter_ranges=((0.0, 2.0),) * 4),
        jitter="numba",
    )
    noise_on_device = noise.to(device)
    with devices.refuse_waits():
        on_device = stages.second_stage(plan, noise_on_device, random_choices(24))
    assert on_device.device == noise_on_device.device

    on_cpu = stages.second_stage(plan, noise, random_choices(24))
    assert ((on_device.cpu() - on_cpu).abs() < 4e-4).float().mean() > 0.999


@pytest.mark.parametrize("marker", [b"", b"\xff\xff\xe1\x00\x04xx", b"\xff\xe1\x00\x04xx"])
def test_jpeg_beyond_pillows_limit_is_refused(folder, tmp_path, marker):
    path = tmp_path / "bomb.jpg"
    content = (folder / "grey.jpg").read_bytes()
    size = content.index(b"\xff\xc0") + 5
    content = content[:size] + struct.pack(">HH", 60_000, 60_000) + content[size + 4 :]
    path.write_bytes(content[:2] + marker + content[2:])
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit of"):
        decode(str(path))


@pytest.mark.parametrize("read", [decode, image_files.open_image])
def test_pipe_is_refused_without_waiting(tmp_path, read):
    path = tmp_path / "image.jpg"
    os.mkfifo(path)
    with pytest.raises(OSError, match="it is a pipe, a socket or a device"):
        read(str(path))
