"""Whether the steps that a sweep trains and the schedule of its learning rate fit together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep import names
from domainbed_carft.sweep.problems import Problem

if TYPE_CHECKING:
    from domainbed_carft.sweep.declaration import Declaration, Variant

Case = tuple[str, str, "Variant"]


def problems(declaration: Declaration) -> list[Problem]:
    """Warm-ups that outlast the schedule: every such job of ours would be refused."""
    found = []
    for dataset, algorithm, variant in _ours(declaration):
        warmup, total = (
            _value(declaration, (dataset, algorithm, variant), name)
            for name in ("warmup_steps", "total_steps")
        )
        if warmup >= total:
            text = (
                f"warmup_steps is {warmup} for {algorithm} on {dataset}, expected fewer than "
                f"total_steps = {total}; set both"
            )
            found.append(Problem(("hparams",), text))
    return found


def notes(declaration: Declaration) -> list[str]:
    """Schedules that end elsewhere than the training; that may be meant."""
    found = []
    for dataset, algorithm, variant in _ours(declaration):
        if algorithm == "CLIPZeroShot":  # trains nothing
            continue
        case = (dataset, algorithm, variant)
        if _value(declaration, case, "lr_schedule") != "cosine":
            continue
        total = _value(declaration, case, "total_steps")
        steps = declaration.steps_of(dataset, algorithm) or names.dataset(dataset).steps
        if steps != total:
            found.append(
                f"{algorithm} on {dataset} trains {steps:,} steps, but its rate falls to 0 at step "
                f"{total:,}: set the hparam total_steps together with the steps"
            )
    return list(dict.fromkeys(found))


def _ours(declaration: Declaration) -> Iterator[Case]:
    for variant in declaration.variants:
        for algorithm in declaration.algorithms_of(variant):
            if algorithm in ours.ALGORITHMS:
                for dataset in declaration.datasets:
                    yield dataset, algorithm, variant


def _value(declaration: Declaration, case: Case, name: str) -> Any:
    dataset, algorithm, variant = case
    given = declaration.hparams_of(dataset, algorithm, variant)
    return given.get(name, names.OUR_HPARAMS[name].default((algorithm, dataset)))
