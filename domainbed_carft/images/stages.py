"""An image plan in two stages: an image in the loader, a batch after it.

Images stay in bytes until the batch is normalised. The first stage makes all random choices, from
torch's global generator in the order of the transform's own steps: they are the transform's own.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional as pil_functional
from torchvision.transforms.v2 import functional as tensor_functional

from domainbed_carft.images import augmentation, batches
from domainbed_carft.images.augmentation import BatchOperations
from domainbed_carft.images.plan import Augmentation, ImagePlan


def first_stage(plan: ImagePlan, image: Tensor) -> tuple[Tensor, Tensor]:
    """Crop and resize an image (H, W, 3), uint8, to (size, size, 3), uint8.

    Also returns the random choices for it, (10,), float32, in the columns of `augmentation`:
    whether to flip, the order and factors of the jitter's operations, whether to turn grey.
    """
    steps = plan.augmentation or Augmentation()
    pixels = _resized(plan, image)
    flip = steps.flip_probability is not None and bool(torch.rand(1) < steps.flip_probability)

    order = list(range(augmentation.N_OPERATIONS))
    factors = list(augmentation.UNCHANGED)
    if steps.jitter_ranges is not None:
        drawn_order, *drawn_factors = transforms.ColorJitter.get_params(*steps.jitter_ranges)
        order = drawn_order.tolist()
        factors = [
            neutral if factor is None else factor
            for factor, neutral in zip(drawn_factors, augmentation.UNCHANGED)
        ]

    grey = steps.grey_probability is not None and bool(torch.rand(1) < steps.grey_probability)
    return pixels, torch.tensor([flip, *order, *factors, grey], dtype=torch.float32)


def _resized(plan: ImagePlan, image: Tensor) -> Tensor:
    """An image (H, W, 3), cropped and resized to (size, size, 3); draws a random crop's box."""
    # Four dimensions, the channels innermost in memory: torch resizes these fastest, in bytes.
    pixels = image.unsqueeze(0).permute(0, 3, 1, 2)
    square = [plan.size, plan.size]
    steps = plan.augmentation or Augmentation()
    if steps.crop_scale is None and plan.resize == "shortest":
        mode = transforms.InterpolationMode(plan.interpolation)
        pixels = tensor_functional.resize(pixels, [plan.size], mode, antialias=True)
        pixels = tensor_functional.center_crop(pixels, square)
    else:
        if steps.crop_scale is not None:
            box = transforms.RandomResizedCrop.get_params(
                pixels, steps.crop_scale, steps.crop_ratio
            )
            pixels = tensor_functional.crop(pixels, *box)
        pixels = F.interpolate(pixels, square, mode=plan.interpolation, antialias=True)

    return pixels[0].permute(1, 2, 0).contiguous()


def resize_by_pillow(plan: ImagePlan, image: Tensor) -> Tensor:
    """An image (H, W, 3), uint8, as a plan's square (S, S, 3) by Pillow, as its transform does.

    `first_stage` resizes by torch, which differs by rounding. ``plan``: without augmentation.
    """
    whole = Image.fromarray(image.numpy())
    mode = transforms.InterpolationMode(plan.interpolation)
    square = [plan.size, plan.size]
    if plan.resize == "squash":
        resized = pil_functional.resize(whole, square, mode)
    else:
        shortest = pil_functional.resize(whole, [plan.size], mode)
        resized = pil_functional.center_crop(shortest, square)
    return torch.from_numpy(np.array(resized))


def second_stage(
    plan: ImagePlan, images: Tensor, choices: Tensor, out: Tensor | None = None
) -> Tensor:
    """Flip, jitter, turn grey, normalise: (N, S, S, 3), uint8 -> (N, 3, S, S), float32.

    ``choices``, (N, 10), as `first_stage` returns them, are on the host; the images may be on any
    device, and the host does not wait for it. On the processor numba's compiled loops do the work
    if numba is installed; they then write to ``out``, of the result's shape, if that is given: to
    allocate a large batch takes longer than all of the work.
    """
    operations = _batch_operations(plan, choices.numpy())
    if images.device.type != "cpu" or not has_numba():
        return batches.second_stage(images, operations)

    from domainbed_carft.images import compiled

    if out is None:
        out = torch.empty(len(images), 3, plan.size, plan.size)
    compiled.second_stage(images.contiguous().numpy(), *operations, out.numpy())
    return out


def _batch_operations(plan: ImagePlan, choices: np.ndarray) -> BatchOperations:
    """What the second stage does by a plan and the random choices (N, 10) of the first."""
    is_active = np.zeros(augmentation.N_OPERATIONS, dtype=bool)
    if plan.augmentation and plan.augmentation.jitter_ranges:
        is_active[:] = [limits is not None for limits in plan.augmentation.jitter_ranges]
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


def jitter_backend(device: torch.device | str) -> str:
    """What applies the colour jitter for a model on ``device``: "torch" or "numba".

    On a processor numba's loops take a twentieth of torch's time.
    """
    is_processor = torch.device(device).type == "cpu"
    return "numba" if is_processor and has_numba() else "torch"


@functools.cache
def has_numba() -> bool:
    """Whether numba can be imported, which fails beside some numpys."""
    try:
        import numba  # noqa: F401
    except Exception:
        return False
    return True
