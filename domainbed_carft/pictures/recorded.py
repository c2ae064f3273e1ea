"""The picture plan of a job that is over, by what its file of weights holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from domainbed_carft.pictures.clip_input import CLIPInput
from domainbed_carft.pictures.plan import FAST, JITTER_PART, JITTERS, MODEL_PART, PicturePlan
from domainbed_carft.pictures.preprocessing import Preprocessing
from domainbed_carft.pictures.protocols import HOST, plan_for


def recorded_plan(content: Mapping[str, Any], clip_input: CLIPInput) -> PicturePlan:
    """The plan of a job's training pictures, or of the test pictures if it did not augment.

    ``content`` is that of a file of weights, ``clip_input`` that of the algorithm in it.
    """
    fields = content.get("picture_plan")
    if fields is not None:
        return PicturePlan.from_json(fields)
    return _plan_without_record(content, clip_input)


def _plan_without_record(content: Mapping[str, Any], clip_input: CLIPInput) -> PicturePlan:
    """The plan of a file that has only its description, as of carft 0.1.0, or not even that.

    Other hosts describe no pictures. Their protocol tells the plan; of ``host`` pictures only the
    normalisation is known, and they are taken to be squashed.
    """
    hparams = content["model_hparams"]
    plan = plan_for(
        hparams["protocol"],
        size=content["model_input_shape"][-1],
        augment=bool(hparams.get("data_augmentation", True)),
        preprocessing=Preprocessing.from_hparam(hparams["preprocessing"]),
    )
    if hparams["protocol"] == HOST:
        mean, std = clip_input.undone_normalisation()
        plan = dataclasses.replace(plan, mean=mean, std=std)

    words = str(content.get("pictures", ""))
    mode, _, jitter = words.removesuffix(MODEL_PART).partition(JITTER_PART)
    if mode != FAST or jitter not in JITTERS:
        return plan
    plan = dataclasses.replace(plan, mode=FAST, jitter=jitter)
    if words.endswith(MODEL_PART):
        preprocessing = clip_input.preprocessing
        plan = plan.for_model(plan.size, preprocessing.mean, preprocessing.std)
    return plan
