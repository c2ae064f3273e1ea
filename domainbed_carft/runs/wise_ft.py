"""`carft wise-ft`: the weights between the original CLIP and a run, evaluated, plotted, saved."""

from __future__ import annotations

import argparse
import csv
import io
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from domainbed_carft import files
from domainbed_carft import text as printable
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import evaluate as evaluating
from domainbed_carft.runs import output, passes, saved, wise_ft_folder
from domainbed_carft.runs import splits as data
from domainbed_carft.runs.interpolation import Interpolation
from domainbed_carft.runs.metrics import Tally
from domainbed_carft.sweep.printing import number, table

Tallies = dict[float, list[Tally]]


def run(arguments: argparse.Namespace) -> None:
    """Check, evaluate all alphas in one pass, write the results, then the weights."""
    alphas = checked_alphas(arguments.alphas)
    to_save = chosen(arguments.save, alphas)
    device = passes.choose_device(arguments.device)
    opened = saved.open_run(arguments.path, arguments.which, arguments.class_names)
    folder = wise_ft_folder.Folder(arguments.output, files.sha256(opened.path))
    folder.require_free(to_save)
    splits = data.splits(opened, arguments.data_dir)
    mixed = Interpolation(opened, device, arguments.original)
    if opened.alpha is not None:
        print(
            f"{opened.path} is itself at alpha {opened.alpha:g} of a run: alphas here are between "
            "the original CLIP and this point",
            file=sys.stderr,
        )
    tallies = evaluate(mixed, alphas, splits, arguments, device)
    rows = summarise(alphas, splits, tallies)
    made = folder.write_results(_document(opened, rows), _as_csv(splits, tallies), rows)
    for alpha in to_save:
        mixed.set(alpha)
        folder.save_weights(opened, alpha, mixed.state())
    made += [f"weights of {number(len(to_save), 'alpha')}"] if to_save else []
    output.write(_as_text(opened, rows, arguments.output, made), None)


def checked_alphas(alphas: Iterable[float]) -> list[float]:
    """Sorted; raises CarftError for those outside of [0, 1] and for one given twice."""
    alphas = list(alphas)
    wrong = [alpha for alpha in alphas if math.isnan(alpha) or not 0 <= alpha <= 1]
    if wrong:
        raise CarftError(
            f"--alphas has {', '.join(f'{alpha:g}' for alpha in wrong)}, expected numbers from 0 "
            "(the original CLIP) to 1 (the run)"
        )
    twice = sorted({alpha for alpha in alphas if alphas.count(alpha) > 1})
    if twice:
        raise CarftError(
            f"--alphas has {', '.join(f'{alpha:g}' for alpha in twice)} more than once; give each "
            "once"
        )
    return sorted(alpha + 0.0 for alpha in alphas)  # -0.0 is 0


def chosen(words: Sequence[str], alphas: Sequence[float]) -> list[float]:
    """The alphas that ``--save`` names. Raises CarftError for what is none of ``alphas``."""
    if list(words) in (["all"], ["none"]):
        return list(alphas) if words[0] == "all" else []
    try:
        wanted = sorted({float(word) for word in words})
    except ValueError as error:
        raise CarftError(
            f"--save {' '.join(words)}: expected all, none, or some of --alphas"
        ) from error
    unknown = [alpha for alpha in wanted if alpha not in alphas]
    if unknown:
        raise CarftError(
            f"--save {unknown[0]:g} is none of --alphas {' '.join(f'{a:g}' for a in alphas)}; "
            "only what is evaluated is saved"
        )
    return wanted


def evaluate(
    mixed: Interpolation,
    alphas: Sequence[float],
    splits: Sequence[data.Split],
    arguments: argparse.Namespace,
    device: torch.device,
) -> Tallies:
    """Each picture is read once, and predicted with the weights of each alpha in turn.

    For a batch the weights are set in place: that takes a few passes over them, little beside
    predicting the batch, and no memory for each alpha.
    """
    algorithm = mixed.algorithm
    classes = algorithm.head.out_features
    tallies = {alpha: [Tally(classes) for _ in splits] for alpha in alphas}
    size = arguments.batch_size
    with torch.no_grad(), passes.memory_told(size):
        for number, x, y in passes.batches(splits, size, arguments.workers):
            x = x.to(device)
            for alpha in alphas:
                mixed.set(alpha)
                evaluating.count(algorithm.predict(x), y, tallies[alpha][number])
    return tallies


def summarise(
    alphas: Sequence[float], splits: Sequence[data.Split], tallies: Tallies
) -> list[dict[str, Any]]:
    """For each alpha the accuracies, as shares of 1, by split and in the two means of the plot.

    ``in_domain``: over the out-splits of the training environments; ``out_of_domain``: over the
    in-splits of the test environments. None where there is none.
    """
    rows = []
    for alpha in alphas:
        found = {split.name: tally.accuracy for split, tally in zip(splits, tallies[alpha])}
        inner = [found[s.name] for s in splits if not s.is_target and s.name.endswith("_out")]
        outer = [found[s.name] for s in splits if s.is_target and s.name.endswith("_in")]
        means = {"in_domain": _mean(inner), "out_of_domain": _mean(outer)}
        rows.append({"alpha": alpha, **means, "splits": found})
    return rows


def _mean(accuracies: Sequence[float | None]) -> float | None:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(known) / len(known) if known else None


def _document(opened: saved.Run, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "run": str(opened.path),
        "algorithm": opened.args["algorithm"],
        "dataset": opened.args["dataset"],
        "test_envs": list(opened.args["test_envs"]),
        "step": opened.step,
        "run_alpha": opened.alpha,
        "notes": evaluating.notes(opened),
        "alphas": list(rows),
    }


def _as_csv(splits: Sequence[data.Split], tallies: Tallies) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["alpha", "split", "environment", "is_target", "pictures", "accuracy", "ece"])
    for alpha, found in tallies.items():
        for split, tally in zip(splits, found):
            facts = [split.name, split.environment, int(split.is_target), tally.count]
            writer.writerow([alpha, *facts, tally.accuracy, tally.ece])
    return text.getvalue()


def _as_text(
    opened: saved.Run, rows: Sequence[dict[str, Any]], folder: Path, made: Sequence[str]
) -> str:
    shown = [["alpha", "in-domain (%)", "out-of-domain (%)"]]
    for row in rows:
        means = [row["in_domain"], row["out_of_domain"]]
        shown.append(
            [f"{row['alpha']:g}", *("-" if m is None else f"{100 * m:.1f}" for m in means)]
        )
    return (
        f"{opened.args['algorithm']} on {opened.args['dataset']}: alpha 0 is the original CLIP, "
        f"1 the run\n{table(shown)}\n"
        "in-domain: mean over the out-splits of the training environments; out-of-domain: over the "
        f"in-splits of the test environments\n{printable.shown(str(folder))}: "
        f"{', '.join(made)}\n"
    )
