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
from domainbed_carft.method.hparams import HPARAMS, overlay
from domainbed_carft.runs import saved, splits

# Of a run's arguments and hparams: those whose runs held out the same pictures and started alike.
SAME_ARGS = ("dataset", "test_envs", "trial_seed", "holdout_fraction", "uda_holdout_fraction")
_SAME_HPARAMS = ("clip_digest", "prompts_digest", "protocol", "data_edition")

# The hparams that say what a soup reads and how it predicts. Its others are those of a training,
# which a soup has none of: they get the defaults of the plainest algorithm.
DESCRIBING = (
    *_SAME_HPARAMS, "clip_backbone", "clip_revision", "contexts", "class_names", "preprocessing",
)  # fmt: skip
PLAINEST = "CLIPFineTune"

SIZES = ("model_input_shape", "model_num_classes", "model_num_domains")


@dataclass(frozen=True)
class Member:
    """A run of a soup, the SHA-256 of its file, and its weights, the head's scale as in all others.

    ``validation``: its mean accuracy on the out-splits of the training environments, once measured.
    """

    run: saved.TrainedRun
    sha256: str
    state: Mapping[str, Tensor]
    validation: float = math.nan

    def description(self, weight: float) -> dict[str, Any]:
        """What the soup's file says of it; ``weight``: its share of the mean."""
        run = self.run

        def seed_of(name: str) -> int | None:
            seed = run.args.get(name)
            return seed if type(seed) is int and run.soup is None else None

        return {
            "run": str(run.path),
            "sha256": self.sha256,
            "algorithm": run.args["algorithm"],
            "hparams_seed": seed_of("hparams_seed"),
            "seed": seed_of("seed"),
            "step": splits.step_of(run),
            "wise_ft_alpha": run.alpha,
            "weight": weight,
            "validation": self.validation,
        }


def require_alike(opened: Sequence[saved.TrainedRun]) -> None:
    """Raise CarftError, naming run and difference, unless the mean of their weights makes sense."""
    if len(opened) < 2:
        raise CarftError("carft soup has 1 run, expected at least two")
    first = opened[0]
    for one in opened:
        if one.hparams["head_init"] == "random" and one.algorithm.trains_head:
            told = "random head, which differs from run to run; expected the zero-shot head"
            raise CarftError(f"{one.path} started from a {told}")
        if one.args["algorithm"] == "FLYP":
            told = "whose head is made by its own text encoder; expected runs that share a head"
            raise CarftError(f"{one.path} is a run of FLYP, {told}")
    if len({one.path.resolve() for one in opened}) < len(opened):
        raise CarftError("a run is given twice, expected different ones")
    for other in opened[1:]:
        differing = [name for name in SAME_ARGS if other.args.get(name) != first.args.get(name)]
        differing += [n for n in _SAME_HPARAMS if other.hparams[n] != first.hparams[n]]
        inputs = zip(other.algorithm.input.buffers(), first.algorithm.input.buffers())
        if not all(torch.equal(*two) for two in inputs):
            differing.append("the pictures' normalisation")
        if saved.architecture_of(other) != saved.architecture_of(first):
            differing.append("the CLIP's architecture")
        if differing:
            raise CarftError(
                f"{other.path} and {first.path} differ in {', '.join(differing)}; expected runs "
                "that share the initial CLIP, the prompts, and the division of the data into "
                "training and validation pictures"
            )


def members_of(opened: Sequence[saved.TrainedRun]) -> list[Member]:
    """The runs in an order of their own, by the digests of their files, and with one head scale.

    A head predicts by its scale times its weights, and some algorithms train the product and others
    the weights: where runs differ in that, all get the product, and a scale of 1.
    """
    states = [one.algorithm.state_dict() for one in opened]
    if len({float(state["head_factor"]) for state in states}) > 1:
        states = [folded(state) for state in states]

    digests = [sha256(one.path) for one in opened]
    members = [Member(*parts) for parts in zip(opened, digests, states)]
    return sorted(members, key=lambda member: (member.sha256, str(member.run.path)))


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with the scale of the head in the head; logits are equal up to rounding."""
    return {
        **state,
        "head.weight": state["head.weight"] * state["head_factor"],
        "head_factor": torch.ones_like(state["head_factor"]),
    }


def shared_content(members: Sequence[Member], data_dir: str | None) -> dict[str, Any]:
    """What the members' soups have in their files besides ``soup`` and weights.

    Of the members' settings these have only what all of them share and what says how to read
    pictures and to predict. ``data_dir``: where the data is now, if not where a member had it.
    """
    contents = [member.run.content for member in members]
    first = contents[0]
    arguments: dict[str, Any] = _agreeing([content["args"] for content in contents])
    kept = ("algorithm", *SAME_ARGS, "task", "data_dir")
    arguments = {name: arguments[name] for name in kept if name in arguments}
    arguments.setdefault("algorithm", PLAINEST)
    arguments["data_dir"] = data_dir or first["args"].get("data_dir")

    shared = {
        "args": arguments,
        "model_hparams": _hparams_of(members),
        **{name: first[name] for name in SIZES},
    }
    ways = {str(content.get("pictures")) for content in contents}
    if all(way.startswith("fast") for way in ways):
        shared["pictures"] = min(ways)  # which differ in nothing but the augmentation
    return shared


def _hparams_of(members: Sequence[Member]) -> dict[str, Any]:
    """The hparams of a soup: DESCRIBING from its members, and no setting of a training."""
    first = members[0].run.hparams
    agreeing = _agreeing([member.run.hparams for member in members])
    ours = {hparam.name for hparam in HPARAMS}
    defaults = overlay(PLAINEST, members[0].run.args["dataset"], 0)
    is_folded = float(members[0].state["head_factor"]) == 1.0

    hparams = {name: value for name, value in agreeing.items() if name not in ours}
    if "data_augmentation" in first:  # the host's
        hparams["data_augmentation"] = False
    hparams |= {name: default for name, (default, _) in defaults.items()}
    hparams |= {name: first[name] for name in DESCRIBING}
    hparams["head_scale"] = "folded" if is_folded else "outside"
    hparams["amp"] = agreeing.get("amp", "off")
    hparams["context_scale"] = agreeing.get("context_scale", "logit_scale")
    return hparams


def _agreeing(mappings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The items that all ``mappings`` have."""
    first, *others = mappings
    return {
        name: value
        for name, value in first.items()
        if all(name in other and other[name] == value for other in others)
    }


def mean_weights(members: Sequence[Member]) -> dict[str, Tensor]:
    """The mean of the members' weights, in whichever order they are given."""
    in_order = sorted(members, key=lambda member: (member.sha256, str(member.run.path)))
    return mean([member.state for member in in_order])


def mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor, added in float64; of others, the first."""
    found = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            total = sum(state[name].double() for state in states[1:]) + tensor.double()
            tensor = (total / len(states)).to(tensor.dtype)
        found[name] = tensor
    return found
