"""What a transform asks for, as a plan of two stages: a picture in the loader, a batch after it.

Pictures stay in bytes until the batch is normalised. The first stage draws all, from torch's global
generator in the order of the transform's own steps, and so what the transform would have drawn.
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
from torchvision.transforms import functional as by_pillow
from torchvision.transforms.v2 import functional as by_tensors

from domainbed_carft.pictures import batches

Range = tuple[float, float]

# The jitter's operations by the numbers that ColorJitter draws their order in.
OPERATIONS = [
    getattr(by_pillow, f"adjust_{name}") for name in ("brightness", "contrast", "saturation", "hue")
]


class Plan(NamedTuple):
    """A transform's steps; a step that it lacks is None."""

    size: int  # px a side
    resize: str  # a random "crop", both sides ("squash"), or the "shortest" and then the centre
    interpolation: str
    mean: tuple[float, ...]  # of [0, 1], a channel; another model's may take its place
    std: tuple[float, ...]
    scale: Range | None = None  # of the crop, as the ratio
    ratio: Range | None = None
    flip: float | None = None  # a probability, as grey
    ranges: tuple[Range | None, ...] | None = None  # brightness, contrast, saturation, hue
    grey: float | None = None
    jitter: str = "batch"  # in the second stage, or in the first, "pillow"

    @property
    def draws(self) -> bool:
        """Whether a picture becomes another each time."""
        steps = self.flip, self.ranges, self.grey
        return self.resize == "crop" or any(step is not None for step in steps)


def plan_of(transform: Any, jitter: str = "batch") -> Plan | None:
    """The plan of a torchvision ``Compose`` like ours and upstream's; None of any other transform.

    Such go through Pillow as they are: what a step that we do not know does, we cannot do.
    """
    steps = list(transform.transforms) if type(transform) is transforms.Compose else []

    def step(kind: type) -> Any:
        return steps.pop(0) if steps and type(steps[0]) is kind else None

    crop = step(transforms.RandomResizedCrop)
    resize = step(transforms.Resize)
    centre = step(transforms.CenterCrop)
    flip = step(transforms.RandomHorizontalFlip)
    colours = step(transforms.ColorJitter)
    grey = step(transforms.RandomGrayscale)
    to_tensor, normalise = step(transforms.ToTensor), step(transforms.Normalize)
    if steps or to_tensor is None or normalise is None or (crop is None) == (resize is None):
        return None
    sides = np.atleast_1d((crop or resize).size).tolist()
    if crop is not None:
        how, fits = "crop", centre is None
    elif centre is None:
        how, fits = "squash", len(sides) == 2 and not isinstance(resize.size, int)
    else:
        how, fits = "shortest", len(sides) == 1
        sides += centre.size
    interpolation = (crop or resize).interpolation.value
    fits = fits and len({*sides}) == 1 and interpolation in ("bilinear", "bicubic")
    channels = {len(normalise.mean), len(normalise.std)}
    if not fits or getattr(resize, "max_size", None) is not None or channels != {3}:
        return None
    return Plan(
        size=sides[0],
        resize=how,
        interpolation=interpolation,
        mean=tuple(normalise.mean),
        std=tuple(normalise.std),
        scale=crop and tuple(crop.scale),
        ratio=crop and tuple(crop.ratio),
        flip=flip and flip.p,
        ranges=colours and (colours.brightness, colours.contrast, colours.saturation, colours.hue),
        grey=grey and grey.p,
        jitter=jitter,
    )


def first_stage(plan: Plan, picture: Tensor) -> tuple[Tensor, Tensor]:
    """Crop and resize a picture (H, W, 3), uint8, to (size, size, 3), uint8.

    With it what was drawn for it, (10,), float32: whether to flip, the order of the jitter's four
    operations, their four factors, whether to turn grey.
    """
    # Four dimensions, the channels innermost in memory: torch resizes these fastest, in bytes.
    pixels = picture.unsqueeze(0).permute(0, 3, 1, 2)
    square = [plan.size, plan.size]
    if plan.resize == "shortest":
        mode = transforms.InterpolationMode(plan.interpolation)
        pixels = by_tensors.resize(pixels, [plan.size], mode, antialias=True)
        pixels = by_tensors.center_crop(pixels, square)
    else:
        if plan.resize == "crop":
            box = transforms.RandomResizedCrop.get_params(pixels, plan.scale, plan.ratio)
            pixels = by_tensors.crop(pixels, *box)
        pixels = F.interpolate(pixels, square, mode=plan.interpolation, antialias=True)
    pixels = pixels[0].permute(1, 2, 0).contiguous()
    flip = plan.flip is not None and bool(torch.rand(1) < plan.flip)
    order, factors = [0, 1, 2, 3], [1.0, 1.0, 1.0, 0.0]
    if plan.ranges is not None:
        drawn, *values = transforms.ColorJitter.get_params(*plan.ranges)
        order = drawn.tolist()
        factors = [whole if f is None else f for f, whole in zip(values, factors)]
        if plan.jitter == "pillow":
            jittered = Image.fromarray(pixels.numpy())
            for number in order:
                if plan.ranges[number] is not None:
                    jittered = OPERATIONS[number](jittered, factors[number])
            pixels = torch.from_numpy(np.array(jittered))
    grey = plan.grey is not None and bool(torch.rand(1) < plan.grey)
    return pixels, torch.tensor([flip, *order, *factors, grey], dtype=torch.float32)


def second_stage(plan: Plan, pictures: Tensor, drawn: Tensor, out: Tensor | None = None) -> Tensor:
    """Flip, jitter, turn grey, normalise: (N, S, S, 3), uint8 -> (N, 3, S, S), float32.

    ``drawn``, (N, 10), stays on the host; the pictures may be on any device, which the host does
    not wait for. On the processor by compiled loops, if numba is installed; then the result is
    ``out`` if that is given, of its shape: new memory for a large batch costs more than all this.
    """
    rows = drawn.numpy()
    order = rows[:, 1:5].astype(np.int64)
    asked = [r is not None and plan.jitter == "batch" for r in plan.ranges or (None,) * 4]
    factors = rows[:, 5:9].copy()
    factors[:, 3] = (factors[:, 3].astype(np.float64) * 255).astype(np.int64) % 256
    settings = batches.Settings(
        flip=rows[:, 0] > 0,
        order=np.where(np.array(asked)[order], order, -1),
        factors=factors,
        grey=rows[:, 9] > 0,
        # x / 255, less the mean, over the deviation
        scale=(1 / (255 * np.array(plan.std))).astype(np.float32),
        shift=(-np.array(plan.mean) / np.array(plan.std)).astype(np.float32),
    )
    if pictures.device.type == "cpu" and has_numba():
        from domainbed_carft.pictures import compiled

        if out is None:
            out = torch.empty(len(pictures), 3, plan.size, plan.size)
        compiled.second_stage(pictures.contiguous().numpy(), *settings, out.numpy())
        return out
    return batches.second_stage(pictures, settings)


def jitter_path(device: torch.device | str) -> str:
    """What applies the jitter for a model on ``device``: on a processor torch takes the longest."""
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
