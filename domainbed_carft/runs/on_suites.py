"""`carft evaluate --suite`: a run, or a CLIP without one, measured on whole test sets."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import ImageFile
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from domainbed_carft import files
from domainbed_carft.clips import backbone
from domainbed_carft.data.tasks import TASKS
from domainbed_carft.errors import CarftError, refusals
from domainbed_carft.jobs.folder import RECORDS
from domainbed_carft.method import objective, prompts
from domainbed_carft.pictures import loading
from domainbed_carft.pictures import plan as planning
from domainbed_carft.runs import evaluate, predict, saved
from domainbed_carft.runs import splits as data
from domainbed_carft.runs.evaluate import BINS, Tally, percent
from domainbed_carft.suites import known, records, scoring
from domainbed_carft.suites.sets import Found, Suite, TestSet
from domainbed_carft.text import shown, table

# Logits (N, K) of pictures (N, 3, R, R), once for each variant of the weights.
Predict = Callable[[Tensor], Iterable[Tensor]]


def run(arguments: argparse.Namespace) -> None:
    """Evaluate and print, or write to ``--output``; keep a record in the folder of a job."""
    if arguments.path and not (arguments.suite or arguments.clip):
        file, besides = evaluate.run(arguments, functools.partial(of_task, arguments))
        keep(file, besides.get("test_set", {}))
        return
    if not arguments.suite or (arguments.path is None) == (arguments.clip is None):
        raise CarftError(
            "expected RUN, or RUN and --suite NAME, or --clip NAME and --suite NAME: a CLIP is "
            "evaluated on a suite, and without a run"
        )
    suite = known.get(arguments.suite)
    device = data.choose_device(arguments.device)
    if arguments.clip:
        files.require_output(arguments.output)
        found = looked_up(suite, arguments.data_dir)
        (sets,) = measured(found, *zero_shot(suite, arguments.clip, device), 1, device, arguments)
        about = {"clip": arguments.clip, "algorithm": "zero-shot CLIP"}
        document = {**about, **described(suite, found, sets)}
    else:
        file = saved.weights_file(arguments.path, arguments.which)
        files.require_output(arguments.output, (file,))
        opened = saved.open_run(file)
        document = of_weights(suite, opened, device, arguments)
    text = json.dumps(document, indent=1) + "\n" if arguments.json else as_text(document, suite)
    with files.stream(arguments.output) as out:
        out.write(text)
    if not arguments.clip:
        keep(file, document)


def of_weights(
    suite: Suite, opened: saved.TrainedRun, device: torch.device, arguments: argparse.Namespace
) -> dict[str, Any]:
    """The document of a run on a suite."""
    found = of_run(suite, opened, arguments.data_dir)
    algorithm = opened.algorithm.to(device)
    how = (found, plan_of(opened), lambda x: [algorithm.predict(x)], 1, device, arguments)
    (sets,) = measured(*how)
    return {**facts_of(opened), **described(suite, found, sets)}


def of_task(
    arguments: argparse.Namespace, opened: saved.TrainedRun, device: torch.device
) -> tuple[dict[str, Any], str]:
    """A task's own test set, beside the splits of its training set; nothing for other data."""
    name = opened.args["dataset"]
    if name not in TASKS or tuple(opened.classes) != known.get(name).classes:
        return {}, ""
    suite = known.get(name)
    if told := refusals(of_run, suite, opened, arguments.data_dir):  # the splits are there
        return {"test_set": {"problems": told}}, f"\n{shown(told[0])}\n"
    document = of_weights(suite, opened, device, arguments)
    return {"test_set": document}, "\n" + as_text(document, suite)


def looked_up(suite: Suite, data_dir: str | None) -> list[tuple[TestSet, Found]]:
    """Each set of the suite with what is found of it; CarftError if that is nothing."""
    if data_dir is None and not suite.embedded:
        raise CarftError(
            f"--suite {suite.name} needs --data_dir, the folder that contains the test sets"
        )
    found = [(one, one.find(Path(data_dir or "."))) for one in suite.sets]
    if not any(copy.samples for _, copy in found):
        told = "; ".join(f"{one.name}: {'; '.join(copy.problems)}" for one, copy in found)
        raise CarftError(f"no test set of the suite {suite.name} is in {data_dir}: {told}")
    return found


def of_run(
    suite: Suite, run: saved.TrainedRun, data_dir: str | None
) -> list[tuple[TestSet, Found]]:
    """The same, for a run; raises CarftError unless its classes are the suite's, in order."""
    if tuple(run.classes) != suite.classes:
        pairs = itertools.zip_longest(run.classes, suite.classes)
        here, there = next(pair for pair in pairs if pair[0] != pair[1])
        raise CarftError(
            f"{run.path} has {len(run.classes):,} classes, expected the {len(suite.classes):,} of "
            f"the suite {suite.name} under their names and in their order (found {here!r} instead "
            f"of {there!r}); evaluate a run that was trained on these"
        )
    return looked_up(suite, data_dir or run.args.get("data_dir"))


def plan_of(run: saved.TrainedRun) -> planning.Plan:
    """The run's own test transform, to the pixels that its CLIP reads."""
    plan = planning.plan(predict.transform_of(run))
    assert plan  # as of all transforms of ours
    return plan._replace(size=run.algorithm.input.wanted.resolution)


def zero_shot(suite: Suite, name: str, device: torch.device) -> tuple[planning.Plan, Predict]:
    """What the CLIP ``name`` (as `backbone.load`) reads and predicts with the suite's words."""
    clip = backbone.load(name)
    words = prompts.prompts(prompts.contexts(suite.contexts, 1), suite.classes)
    weights = objective.zero_shot_weights(backbone.text_features(clip, words)).classes.to(device)
    encoder, wanted = clip.model.visual.to(device), clip.preprocessing
    plan = planning.Plan(
        wanted.resolution, wanted.resize, wanted.interpolation, wanted.mean, wanted.std
    )
    return plan, lambda x: [clip.logit_scale * F.normalize(encoder(x).float(), dim=-1) @ weights.T]


@dataclass(frozen=True)
class _Pictures(Dataset[Any]):
    """Squares (S, S, 3), uint8, before they are normalised, and labels."""

    samples: Sequence[tuple[Any, int]]
    border: int
    plan: planning.Plan

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        sample, label = self.samples[number]
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            is_file = isinstance(sample, str)
            picture = loading.decode(sample) if is_file else torch.as_tensor(sample)
        except Exception as error:  # Pillow's decoders raise a dozen kinds
            raise CarftError(f"{sample} cannot be read: {error}; restore the file") from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before
        height, width = (side - self.border for side in picture.shape[:2])
        inner = picture[self.border : height, self.border : width]
        return planning.first(self.plan, inner)[0], label


@torch.no_grad()
def measured(
    found: Sequence[tuple[TestSet, Found]], plan: planning.Plan, logits: Predict, variants: int,
    device: torch.device, arguments: argparse.Namespace,
) -> list[dict[str, Tally]]:  # fmt: skip
    """For each of the ``variants`` that ``logits`` gives, the predictions on each set.

    ``arguments`` has batch_size and workers. Raises CarftError where a picture cannot be read.
    """
    there = [(one, copy) for one, copy in found if copy.samples]
    total = sum(len(copy.samples) for _, copy in there)
    processes = data.workers(arguments.workers, total >= data.MANY_PICTURES)
    tallies = [{one.name: Tally(len(one.classes)) for one, _ in there} for _ in range(variants)]
    with tqdm(total=total, unit="picture", desc="evaluating", delay=2, disable=None) as bar:
        for one, copy in there:
            index = scoring.padded(one.groups).to(device)
            items = _Pictures(copy.samples, one.border, plan)
            try:
                loader = DataLoader(items, arguments.batch_size, num_workers=processes)
                for squares, labels in loader:
                    drawn = loading.NOTHING_DRAWN.expand(len(squares), -1)
                    x = planning.second(plan, squares.to(device), drawn)
                    for of_variant, found_logits in zip(tallies, logits(x)):
                        of_variant[one.name].add(scoring.scores(found_logits, index), labels)
                    bar.update(len(squares))
            except CarftError as error:  # with a worker's traceback
                reason = str(error).rstrip().rpartition("\n")[2].rpartition("CarftError: ")[2]
                raise CarftError(f"a picture of {one.name}: {reason}") from error
    return tallies


def described(
    suite: Suite, found: Sequence[tuple[TestSet, Found]], tallies: Mapping[str, Tally]
) -> dict[str, Any]:
    """The figures for JSON, as shares of 1; the means are None unless each set is complete."""
    sets: dict[str, dict[str, Any]] = {}
    for one, copy in found:
        if one.name in tallies:
            of_set = tallies[one.name]
            right = int(of_set.confusion.trace())
            sets[one.name] = {
                "n": of_set.count,
                "right": right,
                "accuracy": of_set.accuracy,
                "interval": scoring.wilson(right, of_set.count),
                "ece": of_set.ece,
                "complete": not copy.problems,
            }
            if one.per_class:
                sets[one.name]["mean_per_class"] = of_set.mean_per_class
    whole = {name: one["accuracy"] for name, one in sets.items() if one["complete"]}
    problems = {one.name: list(copy.problems) for one, copy in found if copy.problems}
    return {"suite": suite.name, "sets": sets, **suite.means(whole), "problems": problems}


def facts_of(run: saved.TrainedRun) -> dict[str, Any]:
    """What a document and a record say of the weights."""
    return {
        "run": str(run.path),
        "algorithm": run.args["algorithm"],
        "weights": run.path.name,
        "step": run.step,
        "wise_ft_alpha": run.alpha,
    }


def keep(file: Path, document: Mapping[str, Any]) -> None:
    """Add a line to the records in the folder of the weights ``file``, if that is a job's."""
    if "sets" in document and (file.parent / RECORDS).exists():
        records.append(file.parent, document)


def as_text(document: Mapping[str, Any], suite: Suite) -> str:
    """A table for people, what the means are of, and what is missing."""
    published = suite.published.get(document.get("clip", ""), {})
    rows = []
    per_class = any("mean_per_class" in one for one in document["sets"].values())
    for name, one in document["sets"].items():
        low, high = map(percent, one["interval"])
        mark = "" if one["complete"] else " (incomplete)"
        figures = [percent(one["accuracy"]), f"{low} to {high}", percent(one["ece"])]
        figures += [percent(one.get("mean_per_class"))] if per_class else []
        rows.append([name + mark, f"{one['n']:,}", *figures, f"{published.get(name, '-')}"])
    head = ["test set", "pictures", "accuracy (%)", "95% interval", "ECE (%)"]
    head += ["mean per class (%)"] * per_class + ["published (%)"]
    title = document.get("clip") or f"{document['algorithm']} ({document['run']})"
    lines = [shown(f"{title} on the suite {suite.name}"), "", table(head, rows), ""]
    lines += [f"{words}: {percent(document[key])}" for key, words in suite.titles.items()]
    lines += _problems(document)
    lines.append(f"Intervals are Wilson's; ECE has {BINS} bins.")
    if published:
        lines.append(f"Published: {suite.source}.")
    return "\n".join([*lines, ""])


def as_rows(head: str, documents: Mapping[str, Mapping[str, Any]], suite: Suite) -> str:
    """The accuracies of several, a row each by its name, and what is missing."""
    (first, *_) = documents.values()
    rows = [
        [name, *(percent(one["accuracy"]) for one in document["sets"].values()),
         *(percent(document[key]) for key in suite.titles)]
        for name, document in documents.items()
    ]  # fmt: skip
    names = [name if one["complete"] else f"{name}*" for name, one in first["sets"].items()]
    return "\n".join([table([head, *names, *suite.titles.values()], rows), *_problems(first)])


def ends(suite: Suite, document: Mapping[str, Any]) -> dict[str, float | None]:
    """Accuracy in distribution and the mean of the shifts, as the axes of WiSE-FT's plot."""
    usual = next((one.name for one in suite.sets if not one.shifted), "")
    inner = document["sets"].get(usual, {}).get("accuracy")
    return {"in_domain": inner, "out_of_domain": document["mean"]}


def _problems(document: Mapping[str, Any]) -> list[str]:
    told = [f"  {name}: {'; '.join(found)}" for name, found in document["problems"].items()]
    head = "A mean needs all of its sets, complete. Missing or incomplete:"
    return [head, *map(shown, told)] if told else []
