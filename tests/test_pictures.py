"""Two stages against Pillow's path, with pictures of all modes: decoding, plans, what is drawn."""

from __future__ import annotations

import os
import pickle
import re
import signal
import struct
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision import io
from torchvision import transforms as T

from domainbed_carft.clips.pictures import IMAGENET_MEAN, IMAGENET_STD, transform
from domainbed_carft.data import emoji, picture_files
from domainbed_carft.pictures import augmentation, loading, plan
from domainbed_carft.pictures.loading import decode
from domainbed_carft.pictures.plan import Plan

DECODED_BY_TORCHVISION = (
    "plain.jpg",
    "progressive.jpg",
    "grey.jpg",
    "rgb inside.jpg",
    "turned.jpg",
    "long.jpg",
)
DECODED_BY_PILLOW = (
    "inks.jpg",
    "cut off.jpg",
    "palette.png",
    "16 bit.png",
    "rgba.png",
    "named.jpg",
)
PRESETS = [
    ("domainbed", ""),
    ("clip", "224 bicubic shortest"),
    ("clip", "224 bilinear squash"),
    ("wise-ft", "224 bicubic shortest"),
    ("lipsum-ft", "224 bicubic shortest"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of our pictures in all modes, not square."""
    folder = tmp_path_factory.mktemp("in all modes")
    emojis = sorted((emoji.style_folders() / "fluent3d" / "face").iterdir())
    rgba = Image.open(emojis[0]).convert("RGBA").resize((301, 257))
    picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "teal"), rgba).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6

    picture.save(folder / "plain.jpg", quality=75)
    picture.save(folder / "progressive.jpg", progressive=True, subsampling=0)
    picture.convert("L").save(folder / "grey.jpg")
    Image.merge("RGB", picture.split()[::-1]).save(folder / "rgb inside.jpg", keep_rgb=True)
    picture.save(folder / "turned.jpg", exif=turned)

    content = (folder / "plain.jpg").read_bytes()
    (folder / "long.jpg").write_bytes(content + b"more")
    (folder / "cut off.jpg").write_bytes(content[: len(content) // 2])

    picture.convert("CMYK").save(folder / "inks.jpg")
    picture.convert("P").save(folder / "palette.png", transparency=3)
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(
        folder / "16 bit.png"
    )
    rgba.save(folder / "rgba.png")
    picture.save(folder / "named.jpg", "PNG")
    return folder


@pytest.fixture(autouse=True)
def as_the_harness_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)


@pytest.mark.parametrize("name", [*DECODED_BY_TORCHVISION, *DECODED_BY_PILLOW])
def test_pictures_are_decoded_as_by_pillow(folder, monkeypatch, name):
    decoded_by_pillow = []
    decode_with_pillow = loading.decode_with_pillow
    monkeypatch.setattr(
        loading,
        "decode_with_pillow",
        lambda path: decoded_by_pillow.append(path) or decode_with_pillow(path),
    )
    decoded = decode(str(folder / name))
    assert np.array_equal(decoded.numpy(), np.array(picture_files.open_picture(folder / name)))
    assert decoded.is_contiguous()
    assert bool(decoded_by_pillow) == (name in DECODED_BY_PILLOW)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0 no picture"])
def test_pictures_that_pillow_refuses_are_refused(tmp_path, content):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(Exception) as expected:
        picture_files.open_picture(path)
    with pytest.raises(expected.type, match=re.escape(str(expected.value))):
        decode(str(path))
    with pytest.raises(FileNotFoundError):
        decode(str(tmp_path / "missing.jpg"))


def test_each_protocol_has_a_picture_plan():
    training_plan = plan.plan_of(transform("domainbed", 224, augment=True))
    assert training_plan == Plan(
        224,
        "crop",
        "bilinear",
        IMAGENET_MEAN,
        IMAGENET_STD,
        (0.7, 1.0),
        (3 / 4, 4 / 3),
        0.5,
        ((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.3, 0.3)),
        0.1,
    )
    assert training_plan.draws
    assert pickle.loads(pickle.dumps(training_plan)) == training_plan

    test_transform = transform("clip", 96, augment=False, preprocessing="96 bicubic shortest")
    test_plan = plan.plan_of(test_transform)
    assert test_plan[:3] == (96, "shortest", "bicubic") and not test_plan.draws


def test_other_transforms_have_no_picture_plan():
    class Flip(T.RandomHorizontalFlip):
        pass

    end = [T.ToTensor(), T.Normalize((0.5,) * 3, (0.5,) * 3)]
    square = T.Resize((8, 8))
    assert plan.plan_of(T.Compose([square, *end]))
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
        assert plan.plan_of(T.Compose(steps)) is None
    assert plan.plan_of(square) is None
    assert plan.plan_of(None) is None


def level_difference(
    picture_plan: Plan, actual: torch.Tensor, expected: torch.Tensor
) -> torch.Tensor:
    """The difference of normalised pictures, in grey levels."""
    return (actual - expected).abs() * torch.tensor(picture_plan.std).view(3, 1, 1) * 255


class Stages(NamedTuple):
    """Two stages of all pictures, and what they are compared with."""

    plan: Plan
    squares: torch.Tensor  # (N, S, S, 3), of the first stage
    choices: torch.Tensor  # (N, 10), of the first stage
    expected: torch.Tensor  # (N, 3, S, S), by Pillow

    def difference(self) -> torch.Tensor:
        """Of the second stage's pictures, in grey levels."""
        pictures = plan.second_stage(self.plan, self.squares, self.choices)
        return level_difference(self.plan, pictures, self.expected)


def first_stage_of_all(picture_transform, jitter: str, folder: Path) -> Stages:
    """All pictures after the first stage, with two seeds; it draws as the transform does."""
    picture_plan = plan.plan_of(picture_transform, jitter)
    assert picture_plan is not None

    squares = []
    choices = []
    expected = []
    for seed in range(2):
        for name in (*DECODED_BY_TORCHVISION, *DECODED_BY_PILLOW):
            torch.manual_seed(seed)
            expected.append(picture_transform(picture_files.open_picture(folder / name)))
            state_after_transform = torch.get_rng_state()

            torch.manual_seed(seed)
            square, square_choices = plan.first_stage(picture_plan, decode(str(folder / name)))
            assert torch.equal(torch.get_rng_state(), state_after_transform)
            squares.append(square)
            choices.append(square_choices)

    return Stages(picture_plan, torch.stack(squares), torch.stack(choices), torch.stack(expected))


@pytest.mark.parametrize(("protocol", "preprocessing"), PRESETS)
@pytest.mark.parametrize("augment", [False, True])
def test_crops_and_resizes_equal_pillows(folder, protocol, preprocessing, augment):
    protocol_transform = transform(protocol, 224, augment, preprocessing)
    stages = first_stage_of_all(protocol_transform, "pillow", folder)
    assert (stages.squares.dtype, stages.squares.shape[1:]) == (torch.uint8, (224, 224, 3))

    difference = stages.difference()

    if stages.plan.jitter_ranges is None:
        # Both round between rows and columns; bicubic weights can double such a difference.
        assert difference.max() <= (2.01 if stages.plan.interpolation == "bicubic" else 1.01)
        assert (difference > 1.01).float().mean() < 1e-5
        assert difference.mean() <= 0.01
    else:  # of one grey level the jitter makes more
        assert difference.mean() <= 0.05
        assert (difference <= 6).float().mean() >= 0.99


@pytest.mark.parametrize("by", ["torch", "numba"])
def test_colour_jitter_of_batches_equals_pillows(folder, monkeypatch, by):
    if by == "numba" and not plan.has_numba():
        pytest.skip("needs numba, the extra 'fast'")
    monkeypatch.setattr(plan, "has_numba", lambda: by == "numba")

    stages = first_stage_of_all(transform("domainbed", 224, True), "batch", folder)
    squares = stages.squares.clone()
    difference = stages.difference()
    assert torch.equal(stages.squares, squares)
    assert difference.mean() <= 0.1  # far below what is asked, 1.5: the arithmetic is Pillow's
    assert (difference <= 6).float().mean() >= 0.99


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


def test_the_compiled_jitter_equals_torchs(monkeypatch):
    if not plan.has_numba():
        pytest.skip("needs numba, the extra 'fast'")
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(256, (24, 16, 16, 3), generator=generator, dtype=torch.uint8)
    noise[:4] = noise[:4, :, :, :1]  # greys have no hue
    noise_plan = Plan(
        16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, jitter_ranges=((0.0, 2.0),) * 4
    )
    out = torch.empty(24, 3, 16, 16)
    compiled = plan.second_stage(noise_plan, noise, random_choices(24), out)
    assert compiled is out

    monkeypatch.setattr(plan, "has_numba", lambda: False)
    difference = level_difference(
        noise_plan, compiled, plan.second_stage(noise_plan, noise, random_choices(24))
    )
    assert (difference < 0.0255).float().mean() > 0.999


def test_unneeded_operations_are_left_out():
    half = (0.5,) * 3
    transform_with_jitter = T.Compose(
        [T.Resize((16, 16)), T.ColorJitter(0, 0.5, 0, 0.2), T.ToTensor(), T.Normalize(half, half)]
    )
    jitter_plan = plan.plan_of(transform_with_jitter)
    pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8)
    torch.manual_seed(0)
    expected = transform_with_jitter(Image.fromarray(pixels.numpy()))
    torch.manual_seed(0)
    square, choices = plan.first_stage(jitter_plan, pixels)
    difference = level_difference(
        jitter_plan, plan.second_stage(jitter_plan, square[None], choices[None]), expected
    )
    assert difference.mean() < 0.1


def test_pictures_are_normalised_for_another_model():
    data_plan = Plan(4, "squash", "bilinear", (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    pixels = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3)
    expected = T.functional.normalize(
        pixels.permute(0, 3, 1, 2) / 255, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    )
    model_plan = data_plan._replace(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    actual = plan.second_stage(model_plan, pixels, torch.zeros(1, 10))
    assert torch.allclose(actual, expected, atol=1e-5)


@pytest.mark.gpu
def test_pictures_are_the_same_on_gpu_and_cpu():
    pictures = torch.randint(256, (24, 16, 16, 3), dtype=torch.uint8)
    noise_plan = Plan(
        16, "squash", "bilinear", (0.5,) * 3, (0.25,) * 3, jitter_ranges=((0.0, 2.0),) * 4
    )
    on_gpu = plan.second_stage(noise_plan, pictures.cuda(), random_choices(24))
    assert on_gpu.is_cuda

    difference = level_difference(
        noise_plan, on_gpu.cpu(), plan.second_stage(noise_plan, pictures, random_choices(24))
    )
    assert (difference < 0.0255).float().mean() > 0.999


def test_the_jitter_implementation_depends_on_device_and_numba(monkeypatch):
    assert plan.jitter_path("cuda:1") == "torch"
    monkeypatch.setattr(plan, "has_numba", lambda: True)
    assert plan.jitter_path("cpu") == "numba"
    monkeypatch.setattr(plan, "has_numba", lambda: False)
    assert plan.jitter_path(torch.device("cpu")) == "pillow"


def resized_header(content: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header has another size."""
    frame = content.index(b"\xff\xc0") + 5
    return content[:frame] + struct.pack(">HH", height, width) + content[frame + 4 :]


@pytest.mark.parametrize("marker", [b"", b"\xff\xff\xe1\x00\x04xx", b"\xff\xe1\x00\x04xx"])
def test_a_jpeg_beyond_pillows_limit_is_not_decoded(folder, tmp_path, monkeypatch, marker):
    path = tmp_path / "bomb.jpg"
    content = resized_header((folder / "grey.jpg").read_bytes(), 60_000, 60_000)
    path.write_bytes(content[:2] + marker + content[2:])
    monkeypatch.setattr(io, "decode_jpeg", None)
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit of"):
        decode(str(path))


def test_the_pixel_limit_equals_pillows(folder, monkeypatch):
    picture = decode(str(folder / "plain.jpg"))
    decoded_by_pillow = []
    monkeypatch.setattr(loading, "decode_with_pillow", decoded_by_pillow.append)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", picture.shape[0] * picture.shape[1] - 1)
    decode(str(folder / "plain.jpg"))
    assert decoded_by_pillow == [str(folder / "plain.jpg")]

    for limit in (picture.shape[0] * picture.shape[1], None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert decode(str(folder / "plain.jpg")).shape == picture.shape
    assert len(decoded_by_pillow) == 1


@pytest.mark.parametrize("read", [decode, picture_files.open_picture])
@pytest.mark.parametrize("beginning", [b"\xff\xd8\xff", b"RIFF\xff\xff\xff\x7fWEBPVP8 ", b""])
def test_a_file_of_any_size_takes_little_memory(tmp_path, read, beginning):
    path = tmp_path / "picture.webp"
    path.write_bytes(beginning)
    os.truncate(path, 2 * picture_files.LARGEST_FILE)
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="2,147,483,648 bytes, expected at most 1,073,741,824"):
            read(str(path))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [decode, picture_files.open_picture])
def test_a_pipe_is_refused_without_waiting(tmp_path, read):
    path = tmp_path / "picture.jpg"
    os.mkfifo(path)
    signal.alarm(20)
    try:
        with pytest.raises(OSError, match="it is a pipe, a socket or a device"):
            read(str(path))
    finally:
        signal.alarm(0)
    with pytest.raises(OSError, match="it is a pipe, a socket or a device"):
        read("/dev/zero")
