"""How pictures are normalised: DomainBed's way, CLIP's way, and from one to the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domainbed_carft.errors import CarftError
from domainbed_carft.method import observed

# DomainBed normalises every picture with these (domainbed/datasets.py at b93c22a).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The pictures CLIP was trained on, per RGB channel in [0, 1] (openai/CLIP, clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# What Pillow may open: its reader of PostScript, say, would run a program of the file's.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# The presets of the hparam `protocol`, in words; `protocol` has them as transforms.
PROTOCOLS = {
    "domainbed": "training: crop of 70 to 100%, flip, colour jitter, 1 in 10 grey; test: squeezed "
    "to a square",
    "clip": "training: bicubic crop of 70 to 100%, flip; test: the shorter side resized, bicubic, "
    "and the square in the middle of it",
    "host": "transforms of its own, which this DomainBed has in place of upstream's",
}


def described(protocol: str) -> str:
    """A preset in words; of one that is chosen in place of DomainBed's, that one's as well."""
    replaced = f", in place of domainbed's ({PROTOCOLS['domainbed']})" * (protocol == "clip")
    return f"{protocol} ({PROTOCOLS[protocol]}){replaced}"


class CLIPInput(nn.Module):
    """From the data set's pictures to CLIP's: undo one normalisation, resize, apply the other.

    (N, 3, H, W) of any size, ``mean`` and ``std`` as the data set applied them -> (N, 3, R, R),
    CLIP's, where R is the ``resolution`` in pixels. Both are in the state dict, since a saved run
    predicts without its data set.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        resolution: int,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.resolution = resolution
        theirs, spread, clip_mean, clip_std = (
            torch.tensor(values, dtype=torch.float32) for values in (mean, std, CLIP_MEAN, CLIP_STD)
        )
        # (x * std + mean - clip_mean) / clip_std, folded into one multiplication and one addition
        scale, shift = spread / clip_std, (theirs - clip_mean) / clip_std
        self.register_buffer("scale", scale.view(1, 3, 1, 1))
        self.register_buffer("shift", shift.view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.resolution, self.resolution):
            size = (self.resolution, self.resolution)
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True)
        return x * self.scale + self.shift


def normalisation(environments: Sequence[observed.Environment]) -> observed.Normalisation | None:
    """The one mean and standard deviation that all ``environments`` show; None if none shows any.

    Raises CarftError where they differ: one correction cannot serve both.
    """
    shown = [e for e in environments if e.normalisation is not None]
    for other in shown[1:]:
        if other.normalisation != shown[0].normalisation:
            raise CarftError(
                f"the environments {shown[0].name!r} and {other.name!r} normalise pictures "
                f"differently: {shown[0].normalisation} and {other.normalisation} (mean, standard "
                "deviation); CLIP needs one way for all. Make their transforms equal"
            )
    return shown[0].normalisation if shown else None


def followed_protocol(wanted: str, environments: Sequence[observed.Environment]) -> str:
    """The preset that the pictures of all ``environments`` follow, to be recorded.

    It is ``host`` where a fork transforms in a way of its own, which nobody has to ask for. Raises
    CarftError where ``clip`` is wanted and not followed. Environments that nobody has seen follow
    their host's own, which is ``domainbed``.
    """
    followed = {e.protocol for e in environments} or {"domainbed"}
    if followed == {wanted} or (wanted == "domainbed" and followed == {"host"}):
        return followed.pop()
    raise CarftError(
        f"protocol is {wanted!r}, but the pictures of this data set are transformed by its host, "
        f"{' and '.join(sorted(followed))}: only data sets of DomainBed's "
        "MultipleEnvironmentImageFolder that are given test_envs and hparams, and EmojiStyles, "
        "can follow another one. Leave protocol at 'domainbed'"
    )
