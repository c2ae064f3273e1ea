"""Photometric contexts, vectorised: each picture of a batch gets its own effect.

Everything works on float pictures in [0, 1] and draws from the generator it is given.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

EFFECTS = (
    "plain",
    "grayscale",
    "inverted",
    "dark",
    "bright",
    "blurry",
    "pixelated",
    "rotated",
    "tinted",
    "noisy",
    "small",
    "cropped",
)
RESOLUTION = 48
#: Share of augmented pictures whose colours are permuted.
COLOUR_SHUFFLES = 0.15
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """CLIP's mean and standard deviation; shape (n, 3, h, w) kept."""
    return (pictures - _MEAN) / _STD


def view(
    pictures: torch.Tensor, effects: torch.Tensor, generator: torch.Generator, augment: bool
) -> torch.Tensor:
    """Random resized crop and flip, and the effects, at the model's resolution.

    Args:
        pictures: (n, 3, h, w) in [0, 1], on white.
        effects: (n,) indices into EFFECTS.
        generator: source of all randomness.
        augment: whether to crop, flip and shift hues beside the effects.

    Returns:
        (n, 3, RESOLUTION, RESOLUTION) in [0, 1].
    """
    matrices = _windows(effects, generator, augment)
    shape = [len(pictures), 3, 2 * RESOLUTION, 2 * RESOLUTION]
    grid = F.affine_grid(matrices, shape, align_corners=False)
    # Sampled as ink on zero, since what lies outside is padded with zeros and must be white;
    # at double resolution, then averaged, against aliasing.
    ink = F.grid_sample(1 - pictures, grid, mode="bilinear", align_corners=False)
    result = 1 - F.avg_pool2d(ink, 2)
    if augment:
        result = _shuffle_colours(result, generator)
    return _apply_effects(result, effects, generator).clamp(0, 1)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _windows(effects: torch.Tensor, generator: torch.Generator, augment: bool) -> torch.Tensor:
    """Affine matrices, (n, 2, 3), from output to input coordinates: the window each one sees."""
    n = len(effects)
    spread = 1.0 if augment else 0.0
    scale = 1 + spread * _uniform(n, -0.25, 0.1, generator)
    aspect = torch.exp(spread * _uniform(n, -0.15, 0.15, generator))
    angle = spread * _uniform(n, -0.15, 0.15, generator)
    slack = (1 - scale).abs() + 0.05 * spread
    small, cropped, rotated = (effects == EFFECTS.index(e) for e in ("small", "cropped", "rotated"))
    scale = torch.where(small, _uniform(n, 2.0, 2.8, generator), scale)
    scale = torch.where(cropped, _uniform(n, 0.35, 0.5, generator), scale)
    slack = torch.where(small | cropped, 0.5 * (1 - scale).abs(), slack)
    turn = _uniform(n, 0.7, 2.4, generator) * _sign(n, generator)
    angle = torch.where(rotated, turn, angle)
    flip = _sign(n, generator) if augment else torch.ones(n)
    shift = slack[:, None] * (torch.rand(n, 2, generator=generator) * 2 - 1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    wide, high = scale * aspect, scale / aspect
    rows = [flip * wide * cos, -high * sin, shift[:, 0], flip * wide * sin, high * cos, shift[:, 1]]
    return torch.stack(rows, dim=1).view(n, 2, 3)


def _sign(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)


def _shuffle_colours(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Permutes the channels of some pictures: shape tells more than colour does."""
    n = len(pictures)
    order = torch.rand(n, 3, generator=generator).argsort(dim=1)
    keep = torch.rand(n, generator=generator) >= COLOUR_SHUFFLES
    order[keep] = torch.arange(3)
    return pictures.gather(1, order[:, :, None, None].expand_as(pictures))


def _apply_effects(
    pictures: torch.Tensor, effects: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    result = pictures.clone()
    for index, name in enumerate(EFFECTS):
        rows = (effects == index).nonzero()[:, 0]
        change = _CHANGES.get(name)
        if change is not None and len(rows):
            result[rows] = change(pictures[rows], generator)
    return result


def _grayscale(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (x * _LUMA).sum(dim=1, keepdim=True).expand_as(x)


def _inverted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 1 - x


def _dark(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return x * _uniform(len(x), 0.2, 0.5, generator).view(-1, 1, 1, 1)


def _bright(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 1 - (1 - x) * _uniform(len(x), 0.2, 0.45, generator).view(-1, 1, 1, 1)


def _blurry(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian blur, each picture with its own width of 1.5 to 3 pixels."""
    n, channels, height, width = x.shape
    sigma = _uniform(n, 1.5, 3.0, generator).repeat_interleave(channels)[:, None]
    taps = torch.arange(-6, 7)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    flat = F.pad(x.reshape(1, n * channels, height, width), (6, 6, 6, 6), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return flat.view_as(x)


def _pixelated(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blocks of 4 or 6 pixels."""
    coarse = torch.rand(len(x), generator=generator) < 0.5
    by_size = [F.interpolate(F.avg_pool2d(x, s), scale_factor=float(s)) for s in (4, 6)]
    return torch.where(coarse.view(-1, 1, 1, 1), by_size[1], by_size[0])


def _tinted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Multiplied with a saturated colour, as through coloured glass."""
    colour = torch.rand(len(x), 3, generator=generator)
    low, high = colour.amin(1, keepdim=True), colour.amax(1, keepdim=True)
    colour = 0.3 + 0.7 * (colour - low) / (high - low + 1e-6)
    return x * colour[:, :, None, None]


def _noisy(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    level = _uniform(len(x), 0.15, 0.35, generator).view(-1, 1, 1, 1)
    return x + level * torch.randn(x.shape, generator=generator)


_CHANGES = {
    "grayscale": _grayscale,
    "inverted": _inverted,
    "dark": _dark,
    "bright": _bright,
    "blurry": _blurry,
    "pixelated": _pixelated,
    "tinted": _tinted,
    "noisy": _noisy,
}
