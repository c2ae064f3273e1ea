"""A declared sweep: which data sets, algorithms, settings and trials, and so which jobs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed_carft.jobs.job import Job, identity, seed_hash
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep.shape import Override, Variant

TASK = "domain_generalization"


@dataclass(frozen=True)
class Declaration:
    """A sweep; ``sweep.shape.Shape`` says what each field is.

    ``facts`` are those of each data set; ``test_environments`` the indices to leave out.
    ``hparams_text`` is what DomainBed's own flag ``--hparams`` was given, word for word, since job
    identities depend on its spelling; ``text`` that of the file; None where there is none.
    """

    name: str
    datasets: tuple[str, ...]
    algorithms: tuple[str, ...]
    facts: Mapping[str, Dataset]
    test_environments: Mapping[str, tuple[int, ...]]
    description: str = ""
    trials: int = 3
    hparams_seeds: range = range(1)
    steps: Mapping[str, int] = field(default_factory=dict)
    hparams: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[Override] = ()
    variants: Mapping[str, Variant] = field(default_factory=lambda: {"": Variant()})
    selection: tuple[str, ...] = ("training-domain", "oracle")
    protocol: str | None = None
    holdout_fraction: float = 0.2
    compare_with: tuple[str, ...] = ()
    task: str = TASK
    hparams_text: str | None = None
    text: str | None = None

    @property
    def environments(self) -> dict[str, tuple[str, ...]]:
        """The labels of each data set's environments."""
        return {name: self.facts[name].labels for name in self.datasets}

    def algorithms_of(self, variant: str) -> tuple[str, ...]:
        """The algorithms that run in the variant of that name."""
        return tuple(n for n in self.algorithms if self.variants[variant].covers("", n))

    def hparams_of(self, dataset: str, algorithm: str, variant: str = "") -> dict[str, Any]:
        """What is set of the hyperparameters, the later of these over the earlier."""
        preset = {"protocol": self.protocol} if self.protocol else {}
        layers = [o.hparams for o in self.overrides if o.covers(dataset, algorithm)]
        merged = {**preset, **self.hparams}
        for layer in (*layers, self.variants[variant].hparams):
            merged |= layer
        return merged

    def steps_of(self, dataset: str, algorithm: str) -> int | None:
        """Declared steps; None leaves them to the data set."""
        layers = [o.steps for o in self.overrides if o.covers(dataset, algorithm) and o.steps]
        return layers[-1] if layers else self.steps.get(dataset)

    def jobs(self, data_dir: str, output: Path) -> list[Job]:
        """All jobs, variant by variant, trial by trial; whether their folders exist is not asked.

        Arguments, seeds and folder names are those of upstream file domainbed/scripts/sweep.py at
        b93c22a, so that either tool goes on with the other's folder.
        """
        return [
            Job(args, output / variant / identity(args), variant)
            for variant in self.variants
            for args in self._arguments(variant, data_dir)
        ]

    def _arguments(self, variant: str, data_dir: str) -> Iterator[dict[str, Any]]:
        for trial, dataset, algorithm in itertools.product(
            range(self.trials), self.datasets, self.algorithms_of(variant)
        ):
            common = {
                "data_dir": data_dir,
                "task": self.task,
                "holdout_fraction": self.holdout_fraction,
                "dataset": dataset,
                "algorithm": algorithm,
                "trial_seed": trial,
                **self._optional(dataset, algorithm, variant),
            }
            for test_envs, choice in itertools.product(self._targets(dataset), self.hparams_seeds):
                seed = seed_hash(dataset, algorithm, test_envs, choice, trial)
                yield {**common, "test_envs": test_envs, "hparams_seed": choice, "seed": seed}

    def _optional(self, dataset: str, algorithm: str, variant: str) -> dict[str, Any]:
        """Arguments that are part of the identity only where they are given."""
        optional: dict[str, Any] = {}
        steps = self.steps_of(dataset, algorithm)
        if steps is not None:
            optional["steps"] = steps
        if self.hparams_text is not None:
            optional["hparams"] = self.hparams_text
        elif hparams := self.hparams_of(dataset, algorithm, variant):
            optional["hparams"] = json.dumps(hparams, sort_keys=True)
        return optional

    def _targets(self, dataset: str) -> list[list[int]]:
        """Test environments of each job: one at a time, and pairs with one of them if needed.

        Leave-one-domain-out cross-validation looks at the pairs in which the target is.
        """
        count = len(self.facts[dataset].labels)
        if count == 1:  # a user's own data: there is nothing to leave out
            return [[]]
        targets = self.test_environments[dataset]
        chosen = [[index] for index in targets]
        if "leave-one-domain-out" in self.selection:
            pairs = itertools.combinations(range(count), 2)
            chosen += [list(pair) for pair in pairs if set(pair) & set(targets)]
        return sorted(chosen)

    @property
    def n_jobs(self) -> int:
        """How many jobs there are."""
        targets = sum(len(self._targets(dataset)) for dataset in self.datasets)
        algorithms = sum(len(self.algorithms_of(variant)) for variant in self.variants)
        return self.trials * len(self.hparams_seeds) * targets * algorithms

    def schedules(self) -> list[tuple[str, str, int, int, int, bool]]:
        """Of our algorithms on each data set: steps, those to warm up, total_steps.

        The last says whether the rate falls to 0 at total_steps.
        """
        found: dict[Any, None] = {}
        for variant, dataset in itertools.product(self.variants, self.datasets):
            for algorithm in self.algorithms_of(variant):
                if algorithm not in ours.ALGORITHMS:
                    continue
                value = {h.name: h.default((algorithm, dataset)) for h in ours.HPARAMS}
                value |= self.hparams_of(dataset, algorithm, variant)
                steps = self.steps_of(dataset, algorithm) or self.facts[dataset].steps
                falls = value["lr_schedule"] == "cosine" and algorithm != "CLIPZeroShot"
                warmup, total = value["warmup_steps"], value["total_steps"]
                found[dataset, algorithm, steps, warmup, total, falls] = None
        return list(found)
