"""`carft evaluate`: a run on the splits of its data set, or it or a CLIP on whole test sets."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.clips import backbone
from domainbed_carft.data.tasks import TASKS
from domainbed_carft.errors import CarftError, UnreadableError
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.method import objective, prompts
from domainbed_carft.pictures import loading
from domainbed_carft.pictures import plan as planning
from domainbed_carft.runs import evaluate, saved
from domainbed_carft.runs import splits as data
from domainbed_carft.runs.default_weights import choose_weights, describe_choice
from domainbed_carft.runs.evaluate import BINS, Predict, percent
from domainbed_carft.runs.predict import SOME_SKIPPED, transform_of
from domainbed_carft.runs.suite_pictures import Copies, Pictures, looked_up, nothing_readable
from domainbed_carft.suites import catalogue, records
from domainbed_carft.suites.test_sets import Suite
from domainbed_carft.text import shown, table

Z = 1.959963984540054  # of 95%, two-sided


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print, or write to ``--output``; keep a record in the folder of a job.

    Returns SOME_SKIPPED, as `predict` does, if a picture of a test set could not be read.
    """
    path, clip, name = arguments.path, arguments.clip, arguments.suite
    if (path is None) == (clip is None) or (clip and not name):
        raise CarftError(
            "expected RUN, or RUN and --suite NAME, or --clip NAME and --suite NAME: a CLIP is "
            "evaluated on a suite, and without a run"
        )
    file = None if path is None else choose_weights(path, arguments.which)
    files.require_output(arguments.output, (file,))
    arguments.device = data.choose_device(arguments.device)
    record = {}
    status = 0
    if file is None:
        suite = catalogue.get(name)
        found = looked_up(suite, arguments.data_dir)
        clips = zero_shot(suite, clip, arguments.device)
        (sets,) = measured(suite, found, arguments, *clips, 1)
        document = {"clip": clip, "algorithm": "zero-shot CLIP", **sets}
        text = as_text(document)
    elif name:
        document = record = of_weights(name, saved.open_run(file), arguments)
        text = as_text(document)
    else:
        opened = saved.open_run(file)
        document = evaluate.measured(opened, arguments)
        text = evaluate.as_text(document)
        task = opened.args["dataset"]
        if task in TASKS and tuple(opened.classes) == catalogue.get(task).classes:
            try:  # its own test set, too
                document["test_set"] = record = of_weights(task, opened, arguments)
                text += "\n" + as_text(record)
            except CarftError as error:  # the splits are there
                document["test_set"] = {"problems": [str(error)]}
                text += f"\n{shown(str(error))}\n"
                status = SOME_SKIPPED if isinstance(error, UnreadableError) else 0
    if file and (choice := describe_choice(path, arguments.which, file)):
        text = f"{choice}\n{text}"
    with files.stream(arguments.output) as out:
        out.write(json.dumps(document, indent=1) + "\n" if arguments.json else text)
    if file and record:
        keep(file, record)
    return status or exit_status([document, record])


def exit_status(documents: Iterable[Mapping[str, Any]]) -> int:
    """SOME_SKIPPED if one of what `measured` gives has a set that could not be read, else 0."""
    return SOME_SKIPPED if any(document.get("unread") for document in documents) else 0


def of_weights(name: str, opened: saved.TrainedRun, how: argparse.Namespace) -> dict[str, Any]:
    """The document of a run on the suite called ``name``."""
    (found,) = of_run(name, opened, how)(evaluate.predicting(opened, how.device), 1)
    return {**facts_of(opened), **found}


def of_run(
    name: str, run: saved.TrainedRun, how: argparse.Namespace
) -> Callable[[Predict, int], list[dict[str, Any]]]:
    """`measured` of a suite for a run, whose own test transform is used.

    Raises CarftError for an unknown suite, without one of its sets, and unless the run's classes
    are the suite's, in order.
    """
    suite = catalogue.get(name)
    if tuple(run.classes) != suite.classes:
        pairs = itertools.zip_longest(run.classes, suite.classes)
        here, there = next(pair for pair in pairs if pair[0] != pair[1])
        raise CarftError(
            f"{run.path} has {len(run.classes):,} classes, expected the {len(suite.classes):,} of "
            f"the suite {suite.name} in their order (found {here!r} instead of {there!r})"
        )
    found = looked_up(suite, how.data_dir or run.args.get("data_dir"))
    plan = planning.plan_of(transform_of(run))
    assert plan  # as of all transforms of ours
    plan = plan._replace(size=run.algorithm.input.preprocessing.resolution)
    return functools.partial(measured, suite, found, how, plan)


def zero_shot(suite: Suite, name: str, device: torch.device) -> tuple[planning.Plan, Predict]:
    """What the CLIP ``name`` (as `backbone.load`) reads, and predicts with the suite's words."""
    clip = backbone.load(name)
    words = prompts.prompts(prompts.contexts(suite.contexts, 1), suite.classes)
    features = backbone.text_features(clip, words)
    weights = objective.zero_shot_weights(features).classes.to(device)
    encoder, wanted = clip.model.visual.to(device), clip.preprocessing
    plan = planning.Plan(
        wanted.resolution, wanted.resize, wanted.interpolation, wanted.mean, wanted.std
    )
    return plan, lambda x: [clip.logit_scale * F.normalize(encoder(x).float(), dim=-1) @ weights.T]


def measured(
    suite: Suite, found: Copies, how: argparse.Namespace, plan: planning.Plan, predict: Predict,
    variants: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """For each of the ``variants`` that ``predict`` gives the figures for JSON, as shares of 1.

    A set with a folder or a picture that cannot be read has none; UnreadableError where all are so.
    The means are None unless each set is complete. ``how``: device, batch_size, workers.
    """

    def of_squares(x: Tensor) -> Any:
        return predict(planning.second_stage(plan, x, loading.NO_AUGMENTATION.expand(len(x), -1)))

    sets: list[dict[str, Any]] = [{} for _ in range(variants)]
    problems = {one.name: list(copy.problems) for one, copy in found}
    unread = []
    for one, copy in found:
        if copy.is_unreadable:
            unread.append(one.name)
            continue
        items = Pictures(copy.samples, one.border, plan)
        split = data.Split(one.name, suite.name, one.shifted, items)
        of_set = len(one.classes), one.groups
        try:
            tallies = evaluate.tallied([split], of_squares, how, variants, *of_set)
        except CarftError as error:  # costs no other set its figures
            problems[one.name].append(str(error))
            unread.append(one.name)
            continue
        for of_variant, (tally,) in zip(sets, tallies):
            if tally.count:
                of_variant[one.name] = {
                    "n": tally.count,
                    "right": tally.right,
                    "accuracy": tally.accuracy,
                    "interval": wilson(tally.right, tally.count),
                    "ece": tally.ece,
                    "complete": not copy.problems,
                    **({"mean_per_class": tally.mean_per_class} if one.per_class else {}),
                }
    told = {name: sentences for name, sentences in problems.items() if sentences}
    if not sets[0]:
        raise nothing_readable(suite, told)
    whole = [{name: o["accuracy"] for name, o in of.items() if o["complete"]} for of in sets]
    return [
        {
            "suite": suite.name,
            "sets": of_variant,
            **suite.means(accuracies),
            "problems": told,
            "unread": unread,
        }
        for of_variant, accuracies in zip(sets, whole)
    ]


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of a binomial share (JASA 22, 1927), ``right`` of ``count`` > 0."""
    share, spread = right / count, Z * Z / count
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def facts_of(run: saved.TrainedRun) -> dict[str, Any]:
    """What a document and a record say of the weights."""
    return {
        "run": str(run.path),
        "algorithm": run.args["algorithm"],
        "title": run.title,
        "weights": run.path.name,
        "step": data.step_of(run),
        "wise_ft_alpha": run.alpha,
    }


def keep(file: Path, document: Mapping[str, Any]) -> None:
    """Add a line to the records in the folder of the weights ``file``, if that is a job's.

    None where a picture could not be read: an earlier record may be complete.
    """
    if (file.parent / RECORDS).exists() and not document["unread"]:
        records.append(file.parent, document)


def as_text(document: Mapping[str, Any]) -> str:
    """A table for people, what the means are of, and what is missing."""
    suite, sets = catalogue.get(document["suite"]), document["sets"]
    published = suite.published.get(document.get("clip", ""), {})
    rows = []
    for name, one in sets.items():
        low, high = map(percent, one["interval"])
        figures = [percent(one["accuracy"]), f"{low} to {high}", percent(one["ece"])]
        figures += [percent(one.get("mean_per_class")), f"{published.get(name, '-')}"]
        mark = "" if one["complete"] else " (incomplete)"
        rows.append([name + mark, f"{one['n']:,}", *figures])
    head = ["test set", "pictures", "accuracy (%)", "95% interval", "ECE (%)"]
    head += ["mean per class (%)", "published (%)"]
    title = document.get("clip") or f"{document['title']} ({document['run']})"
    lines = [shown(f"{title} on the suite {suite.name}"), "", table(head, rows), ""]
    lines += [f"{words}: {percent(document[key])}" for key, words in suite.titles.items()]
    lines += _problems(document)
    lines.append(f"Intervals are Wilson's; ECE has {BINS} bins.")
    if published:
        lines.append(f"Published: {suite.source}.")
    return "\n".join([*lines, ""])


def as_rows(head: str, documents: Mapping[str, Mapping[str, Any]]) -> str:
    """The accuracies of several on one suite, a row each by its name, and what is missing."""
    (first, *_) = documents.values()
    titles = catalogue.get(first["suite"]).titles
    rows = [
        [name, *(percent(one["accuracy"]) for one in document["sets"].values()),
         *(percent(document[key]) for key in titles)]
        for name, document in documents.items()
    ]  # fmt: skip
    names = [name if one["complete"] else f"{name}*" for name, one in first["sets"].items()]
    return "\n".join([table([head, *names, *titles.values()], rows), *_problems(first)])


def _problems(document: Mapping[str, Any]) -> list[str]:
    told = [f"  {name}: {'; '.join(found)}" for name, found in document["problems"].items()]
    head = "A mean needs all of its sets, complete. Missing or incomplete:"
    return [head, *map(shown, told)] if told else []
