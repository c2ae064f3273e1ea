"""`carft soup`: the mean of the weights of several runs, of all of them or of those that help.

After Wortsman et al., "Model soups" (arXiv 2203.05482; mlfoundations/model-soups, main.py): the
greedy soup takes runs from the best on and keeps one if the mean with it is strictly better, by the
mean accuracy on the out-splits of the training environments alone.

Nothing depends on the order in which the runs are given: all are judged on the same pictures,
through the test transform, and added in the order of their files' digests.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import evaluate as evaluating
from domainbed_carft.runs import saved, splits, suite_evaluation, wise_ft
from domainbed_carft.runs.default_weights import choose_weights
from domainbed_carft.runs.soup_members import (
    Member,
    mean_weights,
    members_of,
    require_alike,
    shared_content,
)
from domainbed_carft.text import counted, shown, table

TABLE = "soup.json"
FILES = {"uniform": "model_soup_uniform.pkl", "greedy": "model_soup_greedy.pkl"}
CHOSEN_BY = {
    "uniform": "all of the runs that were given",
    "greedy": "from the best run on, each that strictly improves the mean accuracy on the "
    "out-splits of the training environments, through the test transform",
}


def run(arguments: argparse.Namespace) -> int:
    """Check, choose by validation, evaluate both soups, write the results, then the weights.

    Returns the exit status: 3 if a test set of ``--suite`` could not be read, else 0.
    """
    arguments.device = splits.choose_device(arguments.device)
    files_of_runs = [choose_weights(path, arguments.which) for path in arguments.paths]
    opened = [saved.open_run(file) for file in files_of_runs]
    require_alike(opened)
    folder = arguments.output
    wise_ft.require_new(folder, [TABLE, *FILES.values()])

    # One run measures all means: its settings are those of a soup, its weights are exchanged.
    members = members_of(opened)
    content = shared_content(members, arguments.data_dir)
    of_all = {**content, "soup": saved.UNKNOWN_SOUP, "model_dict": mean_weights(members)}
    measuring = saved.run_of(of_all, members[0].run.path)
    on_suite = None
    if arguments.suite:
        on_suite = suite_evaluation.of_run(arguments.suite, measuring, arguments)
    all_splits = splits.splits(measuring, arguments.data_dir)
    held_out = [one for one in all_splits if not one.is_target and one.name.endswith("_out")]
    if not held_out:
        raise CarftError(
            f"{measuring.path} has no out-split of a training environment to choose by"
        )
    folder.mkdir(parents=True, exist_ok=True)
    predict = evaluating.predicting(measuring, arguments.device)

    def measure(chosen: Sequence[Member], of: Sequence[splits.Split]) -> dict[str, Any]:
        measuring.algorithm.load_state_dict(mean_weights(chosen))
        (tallies,) = evaluating.tallied(of, predict, arguments, 1, len(measuring.classes))
        return wise_ft.summary(of, tallies)

    def validation(chosen: Sequence[Member]) -> float:
        accuracy: float = measure(chosen, held_out)["in_domain"]
        return accuracy

    members = [replace(member, validation=validation([member])) for member in members]
    best_first = sorted(members, key=lambda member: -member.validation)
    soups = {"uniform": best_first, "greedy": greedy(best_first, validation)}

    rows = {}
    for kind, chosen in soups.items():
        # The in-splits take far longer than the suite.
        rows[kind] = measure(chosen, held_out if on_suite else all_splits)
        rows[kind] |= on_suite(predict, 1)[0] if on_suite else {}

    document = document_of(measuring, soups, rows)
    files.save_text(folder / TABLE, json.dumps(document, indent=1) + "\n")
    for kind, chosen in soups.items():
        soup = description_of(kind, chosen, rows[kind])
        whole = {**content, "soup": soup, "model_dict": mean_weights(chosen)}
        files.save(folder / FILES[kind], functools.partial(torch.save, whole))

    print(f"{shown(str(measuring.args['dataset']))}: soups of {counted(len(members), 'run')}")
    print(as_table(soups, rows))
    print(splits.PICTURES_OF_A_SOUP)
    if on_suite:
        print(suite_evaluation.as_rows("soup", rows))
    print(f"Results and weights: {shown(str(folder))}")
    return suite_evaluation.exit_status(rows.values())


def greedy(
    best_first: Sequence[Member], validation: Callable[[Sequence[Member]], float]
) -> list[Member]:
    """The best run, and each after it with which the ``validation`` of the mean strictly rises."""
    chosen = [best_first[0]]
    best = chosen[0].validation
    for member in best_first[1:]:
        reached = validation([*chosen, member])
        if reached > best:
            chosen.append(member)
            best = reached
    return chosen


def document_of(
    measuring: saved.TrainedRun,
    soups: Mapping[str, Sequence[Member]],
    rows: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What soup.json has; ``rows``: the accuracies of each of ``soups``."""
    return {
        **{name: measuring.args.get(name) for name in ("dataset", "test_envs", "trial_seed")},
        "transform": splits.transform_name(measuring),
        "runs": [
            {
                "run": str(member.run.path),
                "sha256": member.sha256,
                "algorithm": member.run.args["algorithm"],
                "validation": member.validation,
            }
            for member in soups["uniform"]
        ],
        "soups": [
            {
                "soup": kind,
                "chosen_by": CHOSEN_BY[kind],
                "runs": [str(member.run.path) for member in chosen],
                **rows[kind],
            }
            for kind, chosen in soups.items()
        ],
    }


def description_of(kind: str, chosen: Sequence[Member], row: Mapping[str, Any]) -> dict[str, Any]:
    """What a soup's file says of it: how it was chosen, how good it is, what it is made of."""
    return {
        "kind": kind,
        "chosen_by": CHOSEN_BY[kind],
        "in_domain": row["in_domain"],
        "out_of_domain": row["out_of_domain"],
        "members": [member.description(1 / len(chosen)) for member in chosen],
    }


def as_table(soups: Mapping[str, Sequence[Member]], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The accuracies of the soups and, in validation, of the runs."""
    percent = evaluating.percent
    cells = []
    for kind, chosen in soups.items():
        row = rows[kind]
        shares = [percent(row["in_domain"]), percent(row["out_of_domain"])]
        cells.append([kind, str(len(chosen)), *shares])
    for member in soups["uniform"]:
        cells.append([str(member.run.path), "", percent(member.validation), ""])
    return table(["soup or run", "runs", "in-domain (%)", "out-of-domain (%)"], cells)
