"""From a declaration to jobs, under the identities of ``domainbed.scripts.sweep``.

Arguments, seeds and folder names are those of upstream file domainbed/scripts/sweep.py at b93c22a,
so that either tool goes on with the other's folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbed_carft.jobs import train_command
from domainbed_carft.sweep.declaration import Declaration, Variant


@dataclass(frozen=True)
class Job:
    """One call of train: its arguments without the folder, the folder, the variant's name."""

    train_args: Mapping[str, Any]
    folder: Path
    variant: str = ""

    @property
    def command(self) -> str:
        """The command line, quoted for a shell, as ``domainbed.scripts.sweep`` has it."""
        return train_command.line({**self.train_args, "output_dir": str(self.folder)})

    def __str__(self) -> str:
        args = self.train_args
        left_out = " ".join(map(str, args["test_envs"])) or "none"
        where = f"{self.variant} " if self.variant else ""
        return (
            f"{where}{args['dataset']} {args['algorithm']}, test environments {left_out}, "
            f"trial {args['trial_seed']}, hparams seed {args['hparams_seed']}"
        )


def make(declaration: Declaration, data_dir: str, output: Path) -> list[Job]:
    """All jobs, variant by variant, trial by trial; whether their folders exist is not asked."""
    return [
        Job(train_args, output / variant.name / identity(train_args), variant.name)
        for variant in declaration.variants
        for train_args in _train_args(declaration, variant, data_dir)
    ]


def identity(train_args: Mapping[str, Any]) -> str:
    """The name of the job's folder."""
    text = json.dumps(train_args, sort_keys=True)
    return hashlib.md5(text.encode("utf-8"), usedforsecurity=False).hexdigest()


def seed_hash(*args: Any) -> int:
    """DomainBed's seed of some values (domainbed/lib/misc.py at b93c22a)."""
    digest = hashlib.md5(str(args).encode("utf-8"), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 2**31


def _train_args(
    declaration: Declaration, variant: Variant, data_dir: str
) -> Iterator[dict[str, Any]]:
    first = declaration.first_hparams_seed
    for trial_seed, dataset, algorithm in itertools.product(
        range(declaration.trials), declaration.datasets, declaration.algorithms_of(variant)
    ):
        common: dict[str, Any] = {
            "data_dir": data_dir,
            "task": declaration.task,
            "holdout_fraction": declaration.holdout_fraction,
            **_optional(declaration, variant, dataset, algorithm),
        }
        for test_envs, hparams_seed in itertools.product(
            test_env_choices(declaration, dataset),
            range(first, first + declaration.n_hparams_seeds),
        ):
            yield {
                **common,
                "dataset": dataset,
                "algorithm": algorithm,
                "test_envs": test_envs,
                "hparams_seed": hparams_seed,
                "trial_seed": trial_seed,
                "seed": seed_hash(dataset, algorithm, test_envs, hparams_seed, trial_seed),
            }


def _optional(
    declaration: Declaration, variant: Variant, dataset: str, algorithm: str
) -> dict[str, Any]:
    """Arguments that are part of the identity only where they are given."""
    optional: dict[str, Any] = {}
    steps = declaration.steps_of(dataset, algorithm)
    if steps is not None:
        optional["steps"] = steps
    if declaration.hparams_text is not None:
        optional["hparams"] = declaration.hparams_text
    elif hparams := declaration.hparams_of(dataset, algorithm, variant):
        optional["hparams"] = json.dumps(hparams, sort_keys=True)
    return optional


def test_env_choices(declaration: Declaration, dataset: str) -> list[list[int]]:
    """Test environments of each job: one at a time, and all pairs with one of them if needed.

    Leave-one-domain-out cross-validation looks at the pairs in which the target is.
    """
    count = len(declaration.environments[dataset])
    if count == 1:  # a user's own data: there is nothing to leave out
        return [[]]
    targets = declaration.test_environments[dataset]
    chosen = [[index] for index in targets]
    if declaration.pairs:
        pairs = itertools.combinations(range(count), 2)
        chosen += [list(pair) for pair in pairs if set(pair) & set(targets)]
    return sorted(chosen)


def same_but_for_the_data(train_args: Mapping[str, Any]) -> str:
    """What of a job's arguments can change its result, in one spelling.

    Takes ``train_args`` of a sweep as well as the ``args`` of a record, which name every flag.
    """
    hparams: Any = train_args.get("hparams") or "{}"
    with contextlib.suppress(TypeError, ValueError):  # not JSON: compared as the text it is
        hparams = json.loads(hparams)
    relevant = {
        "dataset": train_args.get("dataset"),
        "algorithm": train_args.get("algorithm"),
        "test_envs": list(train_args.get("test_envs") or []),
        "holdout_fraction": train_args.get("holdout_fraction"),
        "hparams_seed": train_args.get("hparams_seed"),
        "trial_seed": train_args.get("trial_seed"),
        "seed": train_args.get("seed"),
        "task": train_args.get("task", "domain_generalization"),
        "steps": train_args.get("steps"),
        "hparams": hparams,
    }
    return json.dumps(relevant, sort_keys=True)
