"""Whether the data is still what a run was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError
from domainbed_carft.method import dataset_facts, prompts
from domainbed_carft.method.dataset_facts import named_dataset
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.pictures.clip_input import CLIPInput
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.text import differences


class Comparison(NamedTuple):
    """A fact of the data: its name, its value in training, and its value now."""

    name: str
    before: Any
    now: Any


def require_same_data(
    run: TrainedRun, dataset: Any, targets: Sequence[int], facts: dataset_facts.DatasetFacts
) -> None:
    """Raise CarftError, with both values, if the data differs from what the run was trained on."""
    domains = run.content["model_num_domains"] + len(targets)
    comparisons = [
        Comparison("environments", domains, len(dataset)),
        Comparison("classes", len(run.classes), dataset.num_classes),
    ]
    if named_dataset(run.hparams["class_names"]) is not None:
        for environment in facts.environments:
            if environment.classes:
                names = [prompts.clean(name) for name in environment.classes]
                comparisons.append(Comparison("classes", run.classes, names))

    edition = run.hparams.get("data_edition", "")
    if facts.edition and edition not in ("", UNCHECKED):
        comparisons.append(Comparison("data_edition", edition, facts.edition))

    normalisation = dataset_facts.agreed_normalisation(facts.environments)
    if normalisation:
        model_input = run.algorithm.input
        input_now = CLIPInput(model_input.preprocessing, *normalisation)
        comparisons.append(Comparison("normalisation", _rounded(model_input), _rounded(input_now)))

    for name, before, now in comparisons:
        if before != now:
            is_text = isinstance(before, str)
            before_text, now_text = (before, now) if is_text else differences(before, now)
            raise CarftError(
                f"the data set {run.args['dataset']} is not what {run.path} was trained on: {name} "
                f"{before_text} then, {now_text} now. Restore the data, or give its place with "
                "--data_dir"
            )


def _rounded(model_input: CLIPInput) -> list[list[float]]:
    """Scale and shift of an input, to four decimals."""
    return [
        [round(value, 4) for value in buffer.flatten().tolist()] for buffer in model_input.buffers()
    ]
