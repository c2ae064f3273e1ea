"""An image plan in two stages: per image in the loader, then per batch.

Images remain in bytes until the batch is normalised. The first stage, `crop` and `draw_choices`,
makes all random choices with torch's global generator, in the same order as torchvision's
transforms, so that the choices are equal.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import functional, v2

from domainbed_carft.images import augmentation, batches
from domainbed_carft.images.augmentation import BatchOperations
from domainbed_carft.images.plan import Augmentation, ImagePlan


def crop(plan: ImagePlan, image: Tensor) -> Tensor:
    """Crop, at random if the plan does, and resize an image.

    Args:
        plan: the image plan.
        image: pixels (H, W, 3), uint8.

    Returns:
        Pixels (S, S, 3), uint8.
    """
    # torch resizes bytes fastest in four dimensions, with the channels innermost in memory.
    pixels = image.unsqueeze(0).permute(0, 3, 1, 2)
    square = [plan.size, plan.size]
    steps = plan.augmentation or Augmentation()
    if steps.crop_scale is None and plan.resize == "shortest":
        mode = transforms.InterpolationMode(plan.interpolation)
        pixels = v2.functional.resize(pixels, [plan.size], mode, antialias=True)
        pixels = v2.functional.center_crop(pixels, square)
    else:
        if steps.crop_scale is not None:
            box = transforms.RandomResizedCrop.get_params(
                pixels, steps.crop_scale, steps.crop_ratio
            )
            pixels = v2.functional.crop(pixels, *box)
        pixels = F.interpolate(pixels, square, mode=plan.interpolation, antialias=True)

    return pixels[0].permute(1, 2, 0).contiguous()


def draw_choices(plan: ImagePlan) -> Tensor:
    """Draw the random choices for an image after its crop.

    Returns:
        The choices (10,), float32, in the columns of `augmentation`; without draws for a plan
        without augmentation.
    """
    steps = plan.augmentation or Augmentation()
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
    return torch.tensor([flip, *order, *factors, grey], dtype=torch.float32)


def resize_by_pillow(plan: ImagePlan, image: Tensor) -> Tensor:
    """Resize an image with Pillow, whose rounding differs from torch's in `crop`.

    Args:
        plan: a plan without augmentation.
        image: pixels (H, W, 3), uint8.

    Returns:
        Pixels (S, S, 3), uint8.
    """
    original = Image.fromarray(image.numpy())
    mode = transforms.InterpolationMode(plan.interpolation)
    square = [plan.size, plan.size]
    if plan.resize == "squash":
        resized = functional.resize(original, square, mode)
    else:
        shortest = functional.resize(original, [plan.size], mode)
        resized = functional.center_crop(shortest, square)
    return torch.from_numpy(np.array(resized))


def second_stage(
    plan: ImagePlan, images: Tensor, choices: Tensor, out: Tensor | None = None
) -> Tensor:
    """Flip, jitter, turn grey and normalise a batch, on a CPU with numba if it is installed.

    The host does not wait for an accelerator.

    Args:
        plan: the image plan.
        images: pixels (N, S, S, 3), uint8, on any device.
        choices: random choices (N, 10) of `draw_choices`, in host memory.
        out: tensor of the result's shape that numba's loops write to: to allocate a large batch
            takes longer than the second stage.

    Returns:
        Images (N, 3, S, S), float32, on the device of ``images``.
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
    """Return the operations of the second stage, from the random choices (N, 10)."""
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
    """Return the backend of the colour jitter for a model on ``device``: "torch" or "numba".

    On a CPU numba's loops take a twentieth of torch's time.
    """
    return "numba" if torch.device(device).type == "cpu" and has_numba() else "torch"


@functools.cache
def has_numba() -> bool:
    """Return True if numba can be imported, which fails with some versions of numpy."""
    try:
        import numba  # noqa: F401
    except Exception:
        return False
    return True
