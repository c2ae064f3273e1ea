"""The training loop: one run of one algorithm on one data set.

Follows upstream file domainbed/scripts/train.py at b93c22a in what is trained on, when a
checkpoint is due, and what a record holds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from domainbed import algorithms, datasets, hparams_registry
from domainbed.lib import checks, errors, misc
from domainbed.lib.fast_data_loader import EnvironmentBatches, EvaluationBatches
from domainbed.lib.splits import Environment, Split, split_environments

EVALUATION_BATCH_SIZE = 64


def choose_hparams(args: argparse.Namespace) -> dict[str, Any]:
    """Return the defaults, or for a seed other than 0 a random draw, with --hparams on top."""
    names = (args.algorithm, args.dataset)
    overrides: dict[str, Any] = json.loads(args.hparams or "{}")
    if not args.hparams_seed:
        return hparams_registry.default_hparams(*names) | overrides
    draw = misc.seed_hash(args.hparams_seed, args.trial_seed)
    return hparams_registry.random_hparams(*names, draw) | overrides


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, and make cuDNN repeatable."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def workers_for(requested: int | None, dataset: Any) -> int:
    """Return how many loader processes to use: as requested, or as many as there is use for."""
    if requested is not None:
        return requested
    # Not os.cpu_count: in a container that is the whole machine's.
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(int(dataset.N_WORKERS), cpus)


def load_environments(
    args: argparse.Namespace, hparams: dict[str, Any]
) -> tuple[Any, list[Environment]]:
    """Build the data set and split it.

    Raises:
        UsageError: the data does not have the declared environments, or a split that the run
            needs is empty.
    """
    dataset = datasets.get_dataset_class(args.dataset)(args.data_dir, args.test_envs, hparams)
    labels = dataset.ENVIRONMENTS
    if len(dataset) != len(labels):
        found = f"{args.dataset} has {len(labels)} environments ({', '.join(labels)})"
        raise errors.UsageError([f"{found}, but the data has {len(dataset)}."])
    environments = split_environments(
        list(dataset),
        args.test_envs,
        args.trial_seed,
        args.holdout_fraction,
        args.uda_holdout_fraction,
        hparams["class_balanced"],
    )
    checks.require(_split_problems(args, labels, environments))
    return dataset, environments


def _split_problems(
    args: argparse.Namespace, labels: Sequence[str], environments: Sequence[Environment]
) -> list[str]:
    """Every split is evaluated, and the accuracy on no items is no number."""
    problems = [
        f"Environment {label!r} has {len(environment.in_split)} in-split and "
        f"{len(environment.out_split)} out-split items; neither may be empty "
        f"(--holdout_fraction {args.holdout_fraction})."
        for label, environment in zip(labels, environments, strict=True)
        if not (len(environment.in_split) and len(environment.out_split))
    ]
    if args.task == "domain_adaptation" and not any(len(e.uda_split) for e in environments):
        problems.append(
            "--task domain_adaptation needs unlabeled items: "
            f"--uda_holdout_fraction {args.uda_holdout_fraction} leaves none."
        )
    return problems


class Run:
    """A data set, its splits, an algorithm, and the folder that the records go to.

    Building one draws the loaders' seeds and then builds the algorithm; `train` does the rest.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        hparams: dict[str, Any],
        dataset: Any,
        environments: Sequence[Environment],
    ) -> None:
        self.args = args
        self.hparams = hparams
        self.dataset = dataset
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.n_workers = workers_for(args.workers, dataset)
        self.n_steps = args.steps or dataset.N_STEPS
        self.checkpoint_freq = args.checkpoint_freq or dataset.CHECKPOINT_FREQ

        training = [i for i in range(len(environments)) if i not in args.test_envs]
        unlabeled = [e.uda_split for e in environments if len(e.uda_split)]
        self._warn_of_small_environments(environments, training)
        self.minibatches = self._endless([environments[i].in_split for i in training])
        self.unlabeled = self._endless(unlabeled) if args.task == "domain_adaptation" else None
        self.splits_to_evaluate = _named_splits(environments, unlabeled)
        # Upstream's count of an epoch: the smallest in-split of all, test environments included.
        smallest = min(len(environment.in_split) for environment in environments)
        self.steps_per_epoch = smallest / hparams["batch_size"]

        self.num_domains = len(training)
        algorithm_class = algorithms.get_algorithm_class(args.algorithm)
        self.algorithm = algorithm_class(
            dataset.input_shape, dataset.num_classes, self.num_domains, hparams
        )
        self.algorithm.to(self.device)
        self._printed_columns: list[str] = []

    def _endless(self, splits: Sequence[Split]) -> EnvironmentBatches:
        return EnvironmentBatches(
            [split.data for split in splits],
            [split.weights for split in splits],
            self.hparams["batch_size"],
            self.n_workers,
        )

    def _warn_of_small_environments(
        self, environments: Sequence[Environment], training: Sequence[int]
    ) -> None:
        batch_size = self.hparams["batch_size"]
        for index in training:
            size = len(environments[index].in_split)
            if size < batch_size:
                print(
                    f"Warning: environment {self.dataset.ENVIRONMENTS[index]!r} has {size} items "
                    f"to train on, fewer than the batch size {batch_size}; "
                    "its batches are drawn with replacement and repeat items."
                )

    def train(self) -> None:
        """Take all steps, record each checkpoint, save the model, and write the file `done`."""
        interval: defaultdict[str, list[Any]] = defaultdict(list)
        for step in range(self.n_steps):
            started = time.time()
            values = self._step()
            interval["step_time"].append(time.time() - started)
            for name, value in values.items():
                interval[name].append(value)
            if step % self.checkpoint_freq == 0 or step == self.n_steps - 1:
                self._checkpoint(step, interval)
                interval.clear()
                if self.args.save_model_every_checkpoint:
                    self._save(f"model_step{step}.pkl")
        self._save("model.pkl")
        with open(os.path.join(self.args.output_dir, "done"), "w", encoding="utf-8") as file:
            file.write("done")

    def _step(self) -> Mapping[str, Any]:
        """Update the algorithm on one batch of each training environment."""
        minibatches = [(x.to(self.device), y.to(self.device)) for x, y in next(self.minibatches)]
        unlabeled = None
        if self.unlabeled is not None:
            unlabeled = [x.to(self.device) for x, _ in next(self.unlabeled)]
        values: Mapping[str, Any] = self.algorithm.update(minibatches, unlabeled)
        return values

    def _checkpoint(self, step: int, interval: Mapping[str, Sequence[Any]]) -> None:
        """Evaluate, print a row, and append a record to results.jsonl."""
        results: dict[str, Any] = {"step": step, "epoch": step / self.steps_per_epoch}
        for name, values in interval.items():
            results[name] = float(np.mean([float(value) for value in values]))
        results.update(self._evaluate())
        on_gpu = self.device == "cuda"
        results["mem_gb"] = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0

        columns = sorted(results)
        if columns != self._printed_columns:
            misc.print_row(columns, colwidth=12)
            self._printed_columns = columns
        misc.print_row([results[column] for column in columns], colwidth=12)

        record = {**results, "hparams": self.hparams, "args": vars(self.args)}
        # What a plugin found out about the data; upstream's records have no such key.
        if edition := getattr(self.dataset, "data_edition", ""):
            record["data_edition"] = edition
        if isinstance(self.dataset, datasets.OwnData):
            # So that tables have their columns where the folder is not.
            record["environments"] = list(self.dataset.ENVIRONMENTS)
        append_record(os.path.join(self.args.output_dir, "results.jsonl"), record)

    def _evaluate(self) -> dict[str, float]:
        """Return the accuracy on every split of every environment."""
        names, data = zip(*self.splits_to_evaluate.items(), strict=True)
        passes = EvaluationBatches(data, EVALUATION_BATCH_SIZE, self.n_workers)
        return {
            f"{name}_acc": misc.accuracy(self.algorithm, batches, None, self.device)
            for name, batches in zip(names, passes, strict=True)
        }

    def _save(self, filename: str) -> None:
        """Save the model, unless told not to; the file appears only when it is complete."""
        if self.args.skip_model_save:
            return
        path = os.path.join(self.args.output_dir, filename)
        contents = {
            "args": vars(self.args),
            "model_input_shape": self.dataset.input_shape,
            "model_num_classes": self.dataset.num_classes,
            "model_num_domains": self.num_domains,
            "model_hparams": self.hparams,
            "model_dict": self.algorithm.state_dict(),
        }
        torch.save(contents, f"{path}.part")
        os.replace(f"{path}.part", path)


def _named_splits(
    environments: Sequence[Environment], unlabeled: Sequence[Split]
) -> dict[str, misc.SplitDataset]:
    """Return what is evaluated, by the name in the records.

    Upstream counts the uda-splits from 0, whichever environments they belong to.
    """
    named = {f"env{i}_in": e.in_split.data for i, e in enumerate(environments)}
    named |= {f"env{i}_out": e.out_split.data for i, e in enumerate(environments)}
    named |= {f"env{i}_uda": split.data for i, split in enumerate(unlabeled)}
    return named


def append_record(path: str, record: Mapping[str, Any]) -> None:
    """Append one line of JSON, on a line of its own even after a line that was cut off."""
    line = json.dumps(record, sort_keys=True) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode("utf-8"))
