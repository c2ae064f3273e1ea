"""What a transform asks for, as a plan of two stages: a picture in the loader, a batch after it.

Pictures stay in bytes until the batch is normalised. The first stage makes all random choices, from
torch's global generator in the order of the transform's own steps: they are the transform's own.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as pil_functional
from torchvision.transforms.v2 import functional as tensor_functional

from domainbed_carft.pictures import augmentation, batches
from domainbed_carft.pictures.augmentation import BatchOperations

Range = tuple[float, float]

INTERPOLATIONS = ("bilinear", "bicubic")

# The jitter's operations on PIL pictures.
PILLOW_OPERATIONS = {
    augmentation.BRIGHTNESS: pil_functional.adjust_brightness,
    augmentation.CONTRAST: pil_functional.adjust_contrast,
    augmentation.SATURATION: pil_functional.adjust_saturation,
    augmentation.HUE: pil_functional.adjust_hue,
}


class Plan(NamedTuple):
    """A transform's steps; a step that it lacks is None."""

    size: int  # px a side
    resize: str  # a random "crop", both sides ("squash"), or the "shortest" and then the centre
    interpolation: str  # one of INTERPOLATIONS
    mean: tuple[float, ...]  # of [0, 1], a channel; another model's may take its place
    std: tuple[float, ...]
    crop_scale: Range | None = None  # area of the crop, as a share of the picture's
    crop_ratio: Range | None = None  # width of the crop, divided by its height
    flip_probability: float | None = None
    jitter_ranges: tuple[Range | None, ...] | None = None  # brightness, contrast, saturation, hue
    grey_probability: float | None = None
    jitter: str = "batch"  # where the jitter happens: in the second stage, or "pillow", the first

    @property
    def draws(self) -> bool:
        """Whether a picture becomes another each time."""
        random_steps = [self.flip_probability, self.jitter_ranges, self.grey_probability]
        return self.resize == "crop" or any(step is not None for step in random_steps)


def plan_of(transform: Any, jitter: str = "batch") -> Plan | None:
    """The plan of a torchvision ``Compose`` like ours and upstream's; None of any other transform.

    A transform with a step that is not known here has no plan; Pillow applies it as it is.
    """
    steps = list(transform.transforms) if type(transform) is transforms.Compose else []

    def take(kind: type) -> Any:
        return steps.pop(0) if steps and type(steps[0]) is kind else None

    crop = take(transforms.RandomResizedCrop)
    resize = take(transforms.Resize)
    centre = take(transforms.CenterCrop)
    flip = take(transforms.RandomHorizontalFlip)
    colours = take(transforms.ColorJitter)
    grey = take(transforms.RandomGrayscale)
    to_tensor = take(transforms.ToTensor)
    normalise = take(transforms.Normalize)
    if steps or to_tensor is None or normalise is None or (crop is None) == (resize is None):
        return None

    square = _square(crop, resize, centre)
    interpolation = (crop or resize).interpolation.value
    channels = {len(normalise.mean), len(normalise.std)}
    if square is None or interpolation not in INTERPOLATIONS or channels != {3}:
        return None

    return Plan(
        size=square.side,
        resize=square.resize,
        interpolation=interpolation,
        mean=tuple(normalise.mean),
        std=tuple(normalise.std),
        crop_scale=crop and tuple(crop.scale),
        crop_ratio=crop and tuple(crop.ratio),
        flip_probability=flip and flip.p,
        jitter_ranges=colours
        and (colours.brightness, colours.contrast, colours.saturation, colours.hue),
        grey_probability=grey and grey.p,
        jitter=jitter,
    )


class _Square(NamedTuple):
    resize: str  # as in `Plan`
    side: int  # px


def _square(crop: Any, resize: Any, centre: Any) -> _Square | None:
    """The square that a transform's crop or resize makes of a picture; None for another shape."""
    if getattr(resize, "max_size", None) is not None:
        return None

    sides = np.atleast_1d((crop or resize).size).tolist()
    if crop is not None:
        mode = "crop"
        is_known = centre is None
    elif centre is None:
        mode = "squash"
        is_known = len(sides) == 2 and not isinstance(resize.size, int)
    else:
        mode = "shortest"
        is_known = len(sides) == 1
        sides += centre.size
    return _Square(mode, sides[0]) if is_known and len({*sides}) == 1 else None


def first_stage(plan: Plan, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Crop and resize a picture (H, W, 3), uint8, to (size, size, 3), uint8.

    Also returns the random choices for it, (10,), float32, in the columns of `augmentation`:
    whether to flip, the order and factors of the jitter's operations, whether to turn grey.
    """
    pixels = _resized(plan, picture)
    flip = plan.flip_probability is not None and bool(torch.rand(1) < plan.flip_probability)

    order = list(range(augmentation.N_OPERATIONS))
    factors = list(augmentation.UNCHANGED)
    if plan.jitter_ranges is not None:
        drawn_order, *drawn_factors = transforms.ColorJitter.get_params(*plan.jitter_ranges)
        order = drawn_order.tolist()
        factors = [
            neutral if factor is None else factor
            for factor, neutral in zip(drawn_factors, augmentation.UNCHANGED)
        ]
        if plan.jitter == "pillow":
            pixels = _jittered_by_pillow(pixels, plan.jitter_ranges, order, factors)

    grey = plan.grey_probability is not None and bool(torch.rand(1) < plan.grey_probability)
    return pixels, torch.tensor([flip, *order, *factors, grey], dtype=torch.float32)


def _resized(plan: Plan, picture: Tensor) -> Tensor:
    """A picture (H, W, 3), cropped and resized to (size, size, 3); draws a random crop's box."""
    # Four dimensions, the channels innermost in memory: torch resizes these fastest, in bytes.
    pixels = picture.unsqueeze(0).permute(0, 3, 1, 2)
    square = [plan.size, plan.size]
    if plan.resize == "shortest":
        mode = transforms.InterpolationMode(plan.interpolation)
        pixels = tensor_functional.resize(pixels, [plan.size], mode, antialias=True)
        pixels = tensor_functional.center_crop(pixels, square)
    else:
        if plan.resize == "crop":
            box = transforms.RandomResizedCrop.get_params(pixels, plan.crop_scale, plan.crop_ratio)
            pixels = tensor_functional.crop(pixels, *box)
        pixels = F.interpolate(pixels, square, mode=plan.interpolation, antialias=True)

    return pixels[0].permute(1, 2, 0).contiguous()


def _jittered_by_pillow(
    pixels: Tensor, ranges: tuple[Range | None, ...], order: list[int], factors: list[float]
) -> Tensor:
    """A picture (S, S, 3) after those of Pillow's operations that have a range."""
    jittered = Image.fromarray(pixels.numpy())
    for operation in order:
        if ranges[operation] is not None:
            jittered = PILLOW_OPERATIONS[operation](jittered, factors[operation])
    return torch.from_numpy(np.array(jittered))


def second_stage(
    plan: Plan, pictures: Tensor, choices: Tensor, out: Tensor | None = None
) -> Tensor:
    """Flip, jitter, turn grey, normalise: (N, S, S, 3), uint8 -> (N, 3, S, S), float32.

    ``choices``, (N, 10), as `first_stage` returns them, are on the host; the pictures may be on any
    device, and the host does not wait for it. On the processor numba's compiled loops do the work
    if numba is installed; they then write to ``out``, of the result's shape, if that is given: to
    allocate a large batch takes longer than all of the work.
    """
    operations = _batch_operations(plan, choices.numpy())
    if pictures.device.type != "cpu" or not has_numba():
        return batches.second_stage(pictures, operations)

    from domainbed_carft.pictures import compiled

    if out is None:
        out = torch.empty(len(pictures), 3, plan.size, plan.size)
    compiled.second_stage(pictures.contiguous().numpy(), *operations, out.numpy())
    return out


def _batch_operations(plan: Plan, choices: np.ndarray) -> BatchOperations:
    """What the second stage does by a plan and the random choices (N, 10) of the first."""
    ranges = plan.jitter_ranges or (None,) * augmentation.N_OPERATIONS
    is_active = np.array([limits is not None and plan.jitter == "batch" for limits in ranges])
    order = choices[:, augmentation.ORDER].astype(np.int64)

    factors = choices[:, augmentation.FACTORS].copy()
    turns = factors[:, augmentation.HUE].astype(np.float64)
    hue_steps = (turns * augmentation.HUE_STEPS).astype(np.int64)
    factors[:, augmentation.HUE] = hue_steps % augmentation.HUE_WRAP

    mean = np.array(plan.mean)
    std = np.array(plan.std)
    return BatchOperations(
        flip=choices[:, augmentation.FLIP] > 0,
        order=np.where(is_active[order], order, augmentation.NO_OPERATION),
        factors=factors,
        grey=choices[:, augmentation.GREY] > 0,
        # (level / 255 - mean) / std
        scale=(1 / (255 * std)).astype(np.float32),
        shift=(-mean / std).astype(np.float32),
    )


def jitter_path(device: torch.device | str) -> str:
    """What applies the colour jitter for a model on ``device``: "torch", "numba" or "pillow".

    On a processor torch would be the slowest.
    """
    if torch.device(device).type != "cpu":
        return "torch"
    return "numba" if has_numba() else "pillow"


@functools.cache
def has_numba() -> bool:
    """Whether numba can be imported, which fails beside some numpys."""
    try:
        import numba  # noqa: F401
    except Exception:
        return False
    return True
