"""The presets of the hparam ``protocol``, in words and as image plans.

The protocol ``domainbed`` is upstream's (domainbed/datasets.py at b93c22a). ``clip`` is CLIP's
preprocessing, which is bicubic, with the crops and flips of CLIPood, whose code is bilinear.
``wise-ft`` and ``lipsum-ft`` differ from ``clip`` in the crops and flips, which are from two
recipes for ImageNet (mlfoundations/wise-ft, cs-giung/lipsum-ft).
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

HOST = "host"  # the protocol of another DomainBed's transforms

# Descriptions of the presets; `plan_for` returns their plans.
PROTOCOLS = {
    "domainbed": "training: crop of 70 to 100%, flip, colour jitter, 1 in 10 grey; test: squashed",
    "clip": "training: crop of 70 to 100%, flip; test: the model's preprocessing (CLIP: shorter "
    "side resized, bicubic, then cropped to the central square)",
    "wise-ft": "training: crop of 90 to 100%; test: like clip",
    "lipsum-ft": "training: crop of 8 to 100%, flip; test: like clip",
    HOST: "the transforms of this DomainBed, which differ from upstream's",
}

UPSTREAM_SIZE = 224  # side in pixels

CROP_RATIO = (3 / 4, 4 / 3)  # width by height; torchvision's default
FLIP_PROBABILITY = 0.5  # torchvision's default
BLEND_RANGE = (0.7, 1.3)  # for brightness, contrast and saturation
HUE_RANGE = (-0.3, 0.3)  # as a share of the colour circle

_UPSTREAM = Augmentation(
    crop_scale=(0.7, 1.0),
    crop_ratio=CROP_RATIO,
    flip_probability=FLIP_PROBABILITY,
    jitter_ranges=(BLEND_RANGE, BLEND_RANGE, BLEND_RANGE, HUE_RANGE),
    grey_probability=0.1,
)
# Augmentations of the presets with CLIP's preprocessing.
_CLIP_AUGMENTATIONS = {
    "clip": Augmentation((0.7, 1.0), CROP_RATIO, FLIP_PROBABILITY),
    "wise-ft": Augmentation((0.9, 1.0), CROP_RATIO),
    "lipsum-ft": Augmentation((0.08, 1.0), CROP_RATIO, FLIP_PROBABILITY),
}
CLIP_PRESETS = tuple(_CLIP_AUGMENTATIONS)


def plan_for(
    protocol: str, size: int, augment: bool, preprocessing: Preprocessing | None = None
) -> ImagePlan:
    """Return the plan of a preset, or upstream's plan for any other name.

    Args:
        protocol: the value of the hparam.
        size: side of the images in pixels.
        augment: return the plan for training images instead of test images.
        preprocessing: the model's preprocessing, by which all presets except ``domainbed`` resize
            test images; by default OpenAI's.
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


def get_preset(hparams: Mapping[str, Any]) -> str:
    """Return the preset that the hparam ``protocol`` requests; upstream's for any other name."""
    requested = hparams.get("protocol")
    return requested if requested in CLIP_PRESETS else "domainbed"


def plan_for_job(
    hparams: Mapping[str, Any],
    preprocessing: Preprocessing | None,
    *,
    default_size: int = UPSTREAM_SIZE,
    is_for_model: bool,
) -> ImagePlan:
    """Return the plan of a job's training images, augmented by the hparam ``protocol``.

    Args:
        hparams: the job's hyperparameters, with or without ``protocol`` and ``preprocessing``.
        preprocessing: the preprocessing of the job's model, None for other models.
        default_size: side of the images in pixels, without any preprocessing.
        is_for_model: normalise the images for the model instead of by the protocol.
    """
    requested = preprocessing
    if hparams.get("preprocessing"):
        requested = Preprocessing.from_hparam(hparams["preprocessing"])
    size = requested.resolution if requested else default_size
    plan = plan_for(hparams.get("protocol", "domainbed"), size, True, requested)
    if preprocessing is None or not is_for_model:
        return plan

    return plan.for_model(size, preprocessing.mean, preprocessing.std)


def read_plan(content: Mapping[str, Any], clip_input: CLIPInput) -> ImagePlan:
    """Return the plan of a job's training images, or of its test images if it did not augment.

    Without a recorded plan (from a host other than the included harness), the plan follows from
    the protocol. With the protocol ``host`` only the normalisation is known, and the images are
    assumed to be squashed.

    Args:
        content: content of a weights file.
        clip_input: the input module of the algorithm in the file.
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
