"""The presets of the hparam ``protocol``, in words and as image plans.

The protocol ``domainbed`` is upstream's (domainbed/datasets.py at b93c22a); ``clip`` is CLIP's own
preprocessing, after CLIPood's recipe. ``wise-ft`` and ``lipsum-ft`` are the same with the crops and
flips of two recipes for ImageNet (mlfoundations/wise-ft, cs-giung/lipsum-ft).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from domainbed_carft.images.plan import Augmentation, ImagePlan
from domainbed_carft.images.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
)

if TYPE_CHECKING:
    from domainbed_carft.images.clip_input import CLIPInput

HOST = "host"  # the protocol of a host's own transforms

# The presets of the hparam `protocol`, in words; `plan_for` has them as plans.
PROTOCOLS = {
    "domainbed": "training: crop of 70 to 100%, flip, colour jitter, 1 in 10 grey; test: squashed",
    "clip": "training: crop of 70 to 100%, flip; test: the model's own, of CLIP the shorter side "
    "resized (bicubic), then cropped to the central square",
    "wise-ft": "training: crop of 90 to 100%; test: as clip",
    "lipsum-ft": "training: crop of 8 to 100%, flip; test: as clip",
    HOST: "this DomainBed's own transforms, which differ from upstream's",
}

UPSTREAM_SIZE = 224  # px a side

CROP_RATIO = (3 / 4, 4 / 3)  # width by height; torchvision's default
FLIP_PROBABILITY = 0.5  # torchvision's default
BLEND_RANGE = (0.7, 1.3)  # of brightness, contrast and saturation
HUE_RANGE = (-0.3, 0.3)  # as a share of the colour circle

_UPSTREAM = Augmentation(
    crop_scale=(0.7, 1.0),
    crop_ratio=CROP_RATIO,
    flip_probability=FLIP_PROBABILITY,
    jitter_ranges=(BLEND_RANGE, BLEND_RANGE, BLEND_RANGE, HUE_RANGE),
    grey_probability=0.1,
)
# How the presets with CLIP's own preprocessing change training images.
_CLIP_AUGMENTATIONS = {
    "clip": Augmentation((0.7, 1.0), CROP_RATIO, FLIP_PROBABILITY),
    "wise-ft": Augmentation((0.9, 1.0), CROP_RATIO),
    "lipsum-ft": Augmentation((0.08, 1.0), CROP_RATIO, FLIP_PROBABILITY),
}
CLIP_PRESETS = tuple(_CLIP_AUGMENTATIONS)


def plan_for(
    protocol: str, size: int, augment: bool, preprocessing: Preprocessing | None = None
) -> ImagePlan:
    """The plan of a preset for images of ``size`` pixels a side; of any other name, upstream's.

    ``augment``: for training, not for test. All presets but ``domainbed`` resize test images as
    the model's ``preprocessing`` does, by default OpenAI's.
    """
    if protocol not in CLIP_PRESETS:
        return ImagePlan(
            size=size,
            resize="squash",
            interpolation="bilinear",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            augmentation=_UPSTREAM if augment else None,
        )

    preprocessing = preprocessing or Preprocessing(size)
    return ImagePlan(
        size=size,
        resize=preprocessing.resize,
        interpolation=preprocessing.interpolation,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        augmentation=_CLIP_AUGMENTATIONS[protocol] if augment else None,
    )


def read_plan(content: Mapping[str, Any], clip_input: CLIPInput) -> ImagePlan:
    """The plan of a job's training images, or of the test images if it did not augment.

    ``content`` is that of a file of weights, ``clip_input`` that of the algorithm in it. Foreign
    hosts record no plan: there the protocol tells it. Of ``host`` only the normalisation is known,
    and images are taken to be squashed.
    """
    if content.get("image_plan") is not None:
        return ImagePlan.from_json(content["image_plan"])

    hparams = content["model_hparams"]
    plan = plan_for(
        hparams["protocol"],
        size=content["model_input_shape"][-1],
        augment=bool(hparams.get("data_augmentation", True)),
        preprocessing=Preprocessing.from_hparam(hparams["preprocessing"]),
    )
    if hparams["protocol"] == HOST:
        mean, std = clip_input.data_normalisation()
        plan = dataclasses.replace(plan, mean=mean, std=std)
    return plan
