"""`carft soup`: the mean of the weights of several runs, of all of them or of those that help.

After Wortsman et al., "Model soups" (arXiv 2203.05482; mlfoundations/model-soups, main.py): the
greedy soup takes runs from the best on and keeps one if the mean with it is strictly better, by the
mean accuracy on the out-splits of the training environments alone.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import evaluate as evaluating
from domainbed_carft.runs import on_suites, saved, splits, wise_ft
from domainbed_carft.text import counted, shown, table

TABLE = "soup.json"
FILES = {"uniform": "model_soup_uniform.pkl", "greedy": "model_soup_greedy.pkl"}

# Of a run's arguments and hparams: those whose runs held out the same pictures and started alike.
_SAME_ARGS = ("dataset", "test_envs", "trial_seed", "holdout_fraction", "uda_holdout_fraction")
_SAME_HPARAMS = ("clip_digest", "prompts_digest", "head_init", "protocol", "data_edition")


def run(arguments: argparse.Namespace) -> int:
    """Check, choose by validation, evaluate both soups, write the results, then the weights.

    Returns the exit status: 3 if a test set of ``--suite`` could not be read, else 0.
    """
    arguments.device = splits.choose_device(arguments.device)
    opened = [saved.open_run(path, arguments.which) for path in arguments.paths]
    require_alike(opened)
    first, folder, suite = opened[0], arguments.output, arguments.suite
    wise_ft.require_new(folder, [TABLE, *FILES.values()])
    on_suite = on_suites.of_run(suite, first, arguments) if suite else None
    found = splits.splits(first, arguments.data_dir)
    held_out = [one for one in found if not one.is_target and one.name.endswith("_out")]
    if not held_out:
        raise CarftError(f"{first.path} has no out-split of a training environment to choose by")
    folder.mkdir(parents=True, exist_ok=True)
    # The first algorithm measures all: only its own weights have to be kept elsewhere.
    of_first = {name: t.detach().clone() for name, t in first.algorithm.state_dict().items()}
    states = [of_first, *(one.algorithm.state_dict() for one in opened[1:])]
    predict = evaluating.predicting(first, arguments.device)

    def measured(runs: Sequence[int], of: Sequence[splits.Split]) -> dict[str, Any]:
        first.algorithm.load_state_dict(mean([states[index] for index in runs]))
        (tallies,) = evaluating.tallied(of, predict, arguments, 1, len(first.classes))
        return wise_ft.summary(of, tallies)

    alone = [measured([index], held_out)["in_domain"] for index in range(len(states))]
    order = sorted(range(len(states)), key=lambda index: -alone[index])
    chosen, best = order[:1], alone[order[0]]
    for index in order[1:]:
        reached = measured([*chosen, index], held_out)["in_domain"]
        if reached > best:
            chosen, best = [*chosen, index], reached
    soups = {"uniform": order, "greedy": chosen}
    rows = {}
    for kind, runs in soups.items():
        # The in-splits take far longer than the suite.
        rows[kind] = measured(runs, held_out if on_suite else found)
        rows[kind] |= on_suite(predict, 1)[0] if on_suite else {}
    document = {
        **{name: first.args.get(name) for name in ("dataset", "test_envs", "trial_seed")},
        "runs": [
            {"run": str(one.path), "algorithm": one.args["algorithm"], "validation": accuracy}
            for one, accuracy in zip(opened, alone)
        ],
        "soups": [
            {"soup": kind, "runs": [str(opened[index].path) for index in soups[kind]], **row}
            for kind, row in rows.items()
        ],
    }
    files.save_text(folder / TABLE, json.dumps(document, indent=1) + "\n")
    for kind, runs in soups.items():
        # Hparams and seeds are the first run's; which runs it is made of is in TABLE.
        weights = mean([states[index] for index in runs])
        gone = ("best_step", "wise_ft_alpha")
        content = {name: value for name, value in first.content.items() if name not in gone}
        content |= {"model_dict": weights, "wise_ft_step": None}
        files.save(folder / FILES[kind], functools.partial(torch.save, content))
    percent = evaluating.percent
    cells = [
        [kind, str(len(soups[kind])), percent(row["in_domain"]), percent(row["out_of_domain"])]
        for kind, row in rows.items()
    ]
    cells += [[str(opened[index].path), "", percent(alone[index]), ""] for index in order]
    print(f"{shown(str(first.args['dataset']))}: soups of {counted(len(opened), 'run')}")
    print(table(["soup or run", "runs", "in-domain (%)", "out-of-domain (%)"], cells))
    if on_suite:
        print(on_suites.as_rows("soup", rows))
    print(f"Results and weights: {shown(str(folder))}")
    return on_suites.exit_status(rows.values())


def require_alike(opened: Sequence[saved.TrainedRun]) -> None:
    """Raise CarftError, naming run and difference, unless the mean of their weights makes sense."""
    if len(opened) < 2:
        raise CarftError("carft soup has 1 run, expected at least two")
    first = opened[0]
    for one in opened:
        if one.hparams["head_init"] == "random":
            told = "random head, which differs from run to run; expected the zero-shot head"
            raise CarftError(f"{one.path} started from a {told}")
        if one.args["algorithm"] == "FLYP":
            told = "whose head is made by its own text encoder; expected runs that share a head"
            raise CarftError(f"{one.path} is a run of FLYP, {told}")
    if len({one.path.resolve() for one in opened}) < len(opened):
        raise CarftError("a run is given twice, expected different ones")
    for other in opened[1:]:
        differing = [name for name in _SAME_ARGS if other.args.get(name) != first.args.get(name)]
        differing += [n for n in _SAME_HPARAMS if other.hparams[n] != first.hparams[n]]
        if not torch.equal(other.algorithm.head_factor, first.algorithm.head_factor):
            differing.append("head_scale")
        inputs = zip(other.algorithm.input.buffers(), first.algorithm.input.buffers())
        if not all(torch.equal(*two) for two in inputs):
            differing.append("the pictures' normalisation")
        if saved.architecture_of(other) != saved.architecture_of(first):
            differing.append("the CLIP's architecture")
        if differing:
            raise CarftError(
                f"{other.path} and {first.path} differ in {', '.join(differing)}; expected runs of "
                "one start and words, or their mean is no CLIP, and with one division of the data, "
                "or a soup is chosen by pictures that one of them was trained on"
            )


def mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each floating-point tensor, added in float64; of others, the first."""
    found = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            total = sum(state[name].double() for state in states[1:]) + tensor.double()
            tensor = (total / len(states)).to(tensor.dtype)
        found[name] = tensor
    return found
