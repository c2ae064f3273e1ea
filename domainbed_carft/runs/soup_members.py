"""The members of a soup: compatibility, mean weights, and the settings in the soup's file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.files.weights import sha256
from domainbed_carft.images.plan import FAST, ImagePlan
from domainbed_carft.method.algorithms import CLASSES, hparam_values, recorded_hparams
from domainbed_carft.runs import saved, splits
from domainbed_carft.runs.merge_weights import fold_head_scale, mean
from domainbed_carft.runs.run import Run
from domainbed_carft.wording import quantity

# Runs with the same values held out the same images and started from the same weights.
SHARED_ARGS = ("dataset", "test_envs", "trial_seed", "holdout_fraction", "uda_holdout_fraction")
SHARED_FACTS = ("clip_digest", "prompts_digest", "protocol", "data_edition")

# The hparams that a soup needs to read images and to predict. Hparams of the training get the
# defaults of SOUP_ALGORITHM, the simplest one.
SOUP_HPARAMS = (
    *SHARED_FACTS,
    "clip_backbone",
    "clip_revision",
    "contexts",
    "class_names",
    "preprocessing",
)
SOUP_ALGORITHM = "CLIPFineTune"

# The arguments that a soup keeps if all members have the same values.
SOUP_ARGS = ("algorithm", *SHARED_ARGS, "task", "data_dir")
SIZES = ("model_input_shape", "model_num_classes", "model_num_domains")


@dataclass(frozen=True)
class Member:
    """A run of a soup.

    Attributes:
        run: the run.
        sha256: SHA-256 of the weights file.
        state: the weights, with the head scaled like the heads of the other members.
        validation: mean accuracy on the out-splits of the training environments, a share of 1; nan
            before it is measured.
    """

    run: Run
    sha256: str
    state: Mapping[str, Tensor]
    validation: float = math.nan

    def describe(self, weight: float) -> dict[str, Any]:
        """Return the description in the soup's file; ``weight`` is the run's share of the mean."""
        run = self.run

        def get_seed(name: str) -> int | None:
            seed = run.args.get(name)
            return seed if type(seed) is int and run.soup is None else None

        return {
            "run": str(run.path),
            "sha256": self.sha256,
            "algorithm": run.args["algorithm"],
            "hparams_seed": get_seed("hparams_seed"),
            "seed": get_seed("seed"),
            "step": splits.get_step(run),
            "wise_ft_alpha": run.alpha,
            "weight": weight,
            "validation": self.validation,
        }


def require_compatible(runs: Sequence[Run]) -> None:
    """Raise CarftError, naming run and difference, unless the weights can be averaged."""
    if len(runs) < 2:
        raise CarftError(f"got {quantity(len(runs), 'run')}, expected at least two to average")

    for run in runs:
        if run.hparams["head_init"] == "random" and run.algorithm.trains_head:
            raise CarftError(
                f"{run.path} started from a random head, which differs between runs; expected the "
                "zero-shot head"
            )
        algorithm = run.args["algorithm"]
        if CLASSES[algorithm].trains_text:
            raise CarftError(
                f"{run.path} is a run of {algorithm}, whose head depends on its own text encoder; "
                "expected runs that start from the same head"
            )
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise CarftError("a run is listed twice; expected different runs")

    first = runs[0]
    for run in runs[1:]:
        differences = _find_differences(run, first)
        if differences:
            raise CarftError(
                f"{run.path} and {first.path} differ in {', '.join(differences)}; expected runs "
                "that share the initial CLIP model, the prompts, and the division of the data "
                "into training and validation images"
            )


def _find_differences(run: Run, first: Run) -> list[str]:
    """Return the settings that members of a soup must share and that differ."""
    differences = [name for name in SHARED_ARGS if run.args.get(name) != first.args.get(name)]
    differences += [
        name for name in SHARED_FACTS if run.hparams.get(name) != first.hparams.get(name)
    ]

    buffer_pairs = zip(run.algorithm.input.buffers(), first.algorithm.input.buffers())
    if not all(
        torch.equal(buffer.cpu(), first_buffer.cpu()) for buffer, first_buffer in buffer_pairs
    ):
        differences.append("the images' normalisation")
    if saved.get_architecture(run) != saved.get_architecture(first):
        differences.append("the architecture of the CLIP model")
    return differences


def make_members(runs: Sequence[Run]) -> list[Member]:
    """Return the runs as members, sorted by the digest of their files, with equal head scales.

    A head predicts with its scale times its weights. Some algorithms train the product, others only
    the weights. If the scales differ, all members get the product and a scale of 1.
    """
    states: list[dict[str, Tensor]] = []
    for run in runs:
        state = run.algorithm.state_dict()
        states.append({name: tensor.cpu() for name, tensor in state.items()})

    head_scales = {float(state["head_factor"]) for state in states}
    if len(head_scales) > 1:
        states = [fold_head_scale(state) for state in states]

    members = [Member(run, sha256(run.path), state) for run, state in zip(runs, states)]
    return sorted(members, key=_by_digest)


def _by_digest(member: Member) -> tuple[str, str]:
    return member.sha256, str(member.run.path)


def shared_content(members: Sequence[Member], data_dir: str | None) -> dict[str, Any]:
    """Return the content of a soup's weights file, without description and weights.

    The content has only the settings that all members share and that are needed to read images and
    to predict.

    Args:
        members: the runs of the soup.
        data_dir: folder of the data. Default: the folder recorded by the first member.
    """
    contents = [member.run.content for member in members]
    first = contents[0]
    shared_arguments = _shared_items([content["args"] for content in contents])
    arguments: dict[str, Any] = {
        name: shared_arguments[name] for name in SOUP_ARGS if name in shared_arguments
    }
    arguments.setdefault("algorithm", SOUP_ALGORITHM)
    arguments["data_dir"] = data_dir or first["args"].get("data_dir")

    shared: dict[str, Any] = {"args": arguments, "model_hparams": _soup_hparams(members)}
    for name in SIZES:
        shared[name] = first[name]

    # Plans of fast images differ only in the augmentation, which a soup does not use.
    plans = [member.run.image_plan for member in members]
    if all(plan.mode == FAST for plan in plans):
        plan = min(plans, key=ImagePlan.describe).without_augmentation()
        shared |= {"images": plan.describe(), "image_plan": plan.as_json()}
    return shared


def _soup_hparams(members: Sequence[Member]) -> dict[str, Any]:
    """Return the hparams of a soup: SOUP_HPARAMS from its members, otherwise defaults."""
    first = members[0].run.hparams
    shared = _shared_items([member.run.hparams for member in members])
    algorithm_hparams = {*recorded_hparams(SOUP_ALGORITHM)}
    defaults = hparam_values(SOUP_ALGORITHM, members[0].run.args["dataset"])

    hparams = {name: value for name, value in shared.items() if name not in algorithm_hparams}
    if "data_augmentation" in first:  # an hparam of DomainBed
        hparams["data_augmentation"] = False

    hparams |= defaults
    hparams |= {name: first[name] for name in SOUP_HPARAMS if name in first}
    hparams["head_scale"] = "folded" if float(members[0].state["head_factor"]) == 1.0 else "outside"
    hparams["amp"] = shared.get("amp", "off")
    hparams["context_scale"] = shared.get("context_scale", "logit_scale")
    return hparams


def _shared_items(mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the items that all ``mappings`` share."""
    first = mappings[0]
    return {
        name: value
        for name, value in first.items()
        if all(name in mapping and mapping[name] == value for mapping in mappings[1:])
    }


def mean_weights(members: Sequence[Member]) -> dict[str, Tensor]:
    """Return the mean of the members' weights, bit-identical for each order of the members."""
    return mean([member.state for member in sorted(members, key=_by_digest)])
