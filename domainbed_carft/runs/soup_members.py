"""The runs of a soup: which fit together, their mean, and what the soup's file takes from them."""

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

# Of a run's arguments and hparams: those whose runs held out the same images and started alike.
SAME_ARGS = ("dataset", "test_envs", "trial_seed", "holdout_fraction", "uda_holdout_fraction")
SAME_HPARAMS = ("clip_digest", "prompts_digest", "protocol", "data_edition")

# The hparams that say what a soup reads and how it predicts. Its others are those of a training,
# which a soup has none of: they get the defaults of the plainest algorithm.
DESCRIBING = (
    *SAME_HPARAMS,
    "clip_backbone",
    "clip_revision",
    "contexts",
    "class_names",
    "preprocessing",
)
PLAINEST = "CLIPFineTune"

# The arguments that a soup keeps where its members share them.
SOUP_ARGS = ("algorithm", *SAME_ARGS, "task", "data_dir")
SIZES = ("model_input_shape", "model_num_classes", "model_num_domains")


@dataclass(frozen=True)
class Member:
    """A run of a soup, the SHA-256 of its file, and its weights, the head's scale as in all others.

    ``validation``: its mean accuracy on the out-splits of the training environments, once measured.
    """

    run: Run
    sha256: str
    state: Mapping[str, Tensor]
    validation: float = math.nan

    def as_dict(self) -> dict[str, Any]:
        """The run, its digest and its algorithm, for JSON."""
        return {
            "run": str(self.run.path),
            "sha256": self.sha256,
            "algorithm": self.run.args["algorithm"],
        }

    def description(self, weight: float) -> dict[str, Any]:
        """What the soup's file says of it; ``weight``: its share of the mean."""
        run = self.run

        def seed_of(name: str) -> int | None:
            seed = run.args.get(name)
            return seed if type(seed) is int and run.soup is None else None

        return {
            **self.as_dict(),
            "hparams_seed": seed_of("hparams_seed"),
            "seed": seed_of("seed"),
            "step": splits.step_of(run),
            "wise_ft_alpha": run.alpha,
            "weight": weight,
            "validation": self.validation,
        }


def require_alike(runs: Sequence[Run]) -> None:
    """Raise CarftError, naming run and difference, unless the mean of their weights makes sense."""
    if len(runs) < 2:
        raise CarftError("carft soup has 1 run, expected at least two")

    for run in runs:
        if run.hparams["head_init"] == "random" and run.algorithm.trains_head:
            raise CarftError(
                f"{run.path} started from a random head, which differs from run to run; expected "
                "the zero-shot head"
            )
        algorithm = run.args["algorithm"]
        if CLASSES[algorithm].trains_text:
            raise CarftError(
                f"{run.path} is a run of {algorithm}, whose head is made by its own text encoder; "
                "expected runs that share a head"
            )
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise CarftError("a run is given twice, expected different ones")

    first = runs[0]
    for run in runs[1:]:
        differences = _differences(run, first)
        if differences:
            raise CarftError(
                f"{run.path} and {first.path} differ in {', '.join(differences)}; expected runs "
                "that share the initial CLIP, the prompts, and the division of the data into "
                "training and validation images"
            )


def _differences(run: Run, first: Run) -> list[str]:
    """In what two runs differ that the members of a soup have to share."""
    differences = [name for name in SAME_ARGS if run.args.get(name) != first.args.get(name)]
    differences += [
        name for name in SAME_HPARAMS if run.hparams.get(name) != first.hparams.get(name)
    ]

    buffer_pairs = zip(run.algorithm.input.buffers(), first.algorithm.input.buffers())
    if not all(
        torch.equal(buffer.cpu(), first_buffer.cpu()) for buffer, first_buffer in buffer_pairs
    ):
        differences.append("the images' normalisation")
    if saved.architecture_of(run) != saved.architecture_of(first):
        differences.append("the CLIP's architecture")
    return differences


def members_of(runs: Sequence[Run]) -> list[Member]:
    """The runs as members, in the order of their files' digests, and with one head scale.

    A head predicts by its scale times its weights, and some algorithms train the product and others
    the weights: where runs differ in that, all get the product, and a scale of 1.
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
    """What the members' soups have in their files besides ``soup`` and weights.

    Of the members' settings these have only what all of them share and what says how to read
    images and to predict. ``data_dir``: where the data is now, if not where a member had it.
    """
    contents = [member.run.content for member in members]
    first = contents[0]
    shared_arguments = _shared_items([content["args"] for content in contents])
    arguments: dict[str, Any] = {
        name: shared_arguments[name] for name in SOUP_ARGS if name in shared_arguments
    }
    arguments.setdefault("algorithm", PLAINEST)
    arguments["data_dir"] = data_dir or first["args"].get("data_dir")

    shared: dict[str, Any] = {"args": arguments, "model_hparams": _hparams_of(members)}
    for name in SIZES:
        shared[name] = first[name]

    # Plans of the fast images differ in nothing but the augmentation, which a soup has not.
    plans = [member.run.image_plan for member in members]
    if all(plan.mode == FAST for plan in plans):
        plan = min(plans, key=ImagePlan.describe).without_augmentation()
        shared |= {"images": plan.describe(), "image_plan": plan.as_json()}
    return shared


def _hparams_of(members: Sequence[Member]) -> dict[str, Any]:
    """The hparams of a soup: DESCRIBING from its members, and no setting of a training."""
    first = members[0].run.hparams
    shared = _shared_items([member.run.hparams for member in members])
    algorithm_hparams = {*recorded_hparams(PLAINEST)}
    defaults = hparam_values(PLAINEST, members[0].run.args["dataset"])
    is_folded = float(members[0].state["head_factor"]) == 1.0

    hparams = {name: value for name, value in shared.items() if name not in algorithm_hparams}
    if "data_augmentation" in first:  # the host's
        hparams["data_augmentation"] = False

    hparams |= defaults
    hparams |= {name: first[name] for name in DESCRIBING if name in first}
    hparams["head_scale"] = "folded" if is_folded else "outside"
    hparams["amp"] = shared.get("amp", "off")
    hparams["context_scale"] = shared.get("context_scale", "logit_scale")
    return hparams


def _shared_items(mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The items that all ``mappings`` have."""
    first = mappings[0]
    return {
        name: value
        for name, value in first.items()
        if all(name in mapping and mapping[name] == value for mapping in mappings[1:])
    }


def mean_weights(members: Sequence[Member]) -> dict[str, Tensor]:
    """The mean of the members' weights, equal to the bit in whichever order they are given."""
    return mean([member.state for member in sorted(members, key=_by_digest)])
