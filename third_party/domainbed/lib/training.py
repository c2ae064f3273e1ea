"""The training loop: one run of one algorithm on one data set.

Follows upstream file domainbed/scripts/train.py at b93c22a; resuming a run is ours.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch

from domainbed import algorithms, datasets
from domainbed.lib import algorithm_state, checkpoints, measured, misc, resume, stopping
from domainbed.lib.fast_data_loader import Batch
from domainbed.lib.job_batches import JobBatches
from domainbed.lib.members import ALONE, Members, divide
from domainbed.lib.picture_batches import Pictures
from domainbed.lib.preparation import Environment, share_cores
from domainbed_carft import machine
from domainbed_carft.jobs.folder import JobFolder, Lock
from domainbed_carft.pictures import drawing


@dataclass
class Run:
    """A data set, its splits, an algorithm, and the folder that the records go to.

    Building one draws the loaders' seeds and then builds the algorithm; `train` does the rest.
    Raises CarftError if the state does not fit this run, or several processes cannot train it.
    """

    args: argparse.Namespace
    hparams: dict[str, Any]  # the same object that the data set was built with
    dataset: Any
    environments: Sequence[Environment]
    state: InitVar[dict[str, Any] | None]  # what an earlier process of the same run has saved
    stop: stopping.StopSignals
    lock: Lock | None  # where to publish the progress, in the first process
    pictures: Pictures
    members: Members = ALONE

    def __post_init__(self, state: dict[str, Any] | None) -> None:
        args, hparams, dataset, members = self.args, self.hparams, self.dataset, self.members
        environments = self.environments
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.n_workers = share_cores(args.workers, dataset, self.device == "cuda", members.here)
        if self.device == "cpu":
            machine.keep_freed_memory()
        self.n_steps = args.steps or dataset.N_STEPS
        self.steps_done: int = state["steps_done"] if state else 0
        # Whether the checkpoint that was due after the last step is recorded.
        self.recorded: bool = state["recorded"] if state else True

        training = [i for i in range(len(environments)) if i not in args.test_envs]
        for index in training:
            if (size := len(environments[index].in_split)) < hparams["batch_size"]:
                print(
                    f"Warning: environment {dataset.ENVIRONMENTS[index]!r} has {size} training "
                    f"items, fewer than the batch size {hparams['batch_size']}; batches repeat "
                    "items."
                )
        # What is evaluated, by its name in the records; upstream counts the uda-splits from 0,
        # whichever environments they belong to.
        unlabeled = (e.uda_split for e in environments if len(e.uda_split))
        self.splits = {f"env{i}_in": e.in_split for i, e in enumerate(environments)}
        self.splits |= {f"env{i}_out": e.out_split for i, e in enumerate(environments)}
        self.splits |= {f"env{i}_uda": split for i, split in enumerate(unlabeled)}
        skipped = {f"env{i}_in" for i in training if args.skip_training_in_splits}
        kinds = getattr(dataset, "EVALUATED_SPLITS", ("in", "out", "uda"))  # out-splits may be all
        self.evaluated = [
            name for name in self.splits if name not in skipped and name.rpartition("_")[2] in kinds
        ]
        self.batches = JobBatches(
            [environments[i].in_split for i in training],
            {name: it if name in self.evaluated else [] for name, it in self.splits.items()},
            hparams,
            self.n_steps,
            args.checkpoint_freq or dataset.CHECKPOINT_FREQ,
            args.seed,
            self.device,
            members,
        )
        # Upstream's count of an epoch: the smallest in-split of all, test environments included.
        smallest = min(len(environment.in_split) for environment in environments)
        self.steps_per_epoch = smallest / hparams["batch_size"]

        self.num_domains = len(training)
        algorithm_class = algorithms.get_algorithm_class(args.algorithm)
        for name in getattr(algorithm_class, "SETTLED", ()):
            if state and hparams.get(name) == "auto":  # what it came to where the job began
                hparams[name] = state["hyperparameters"].get(name, "auto")
        self.algorithm = algorithm_class(
            dataset.input_shape, dataset.num_classes, self.num_domains, hparams
        )
        if members.size > 1:
            divide(self.algorithm, members, hparams["batch_size"])
        self.algorithm.to(self.device)
        self._places = algorithm_state.places(self.algorithm)
        self._is_constant = getattr(self.algorithm, "is_constant", False)
        self._accuracies: dict[str, float] = {}
        self._printed_columns: list[str] = []
        selected_by = [f"env{i}_out_acc" for i in training or range(len(environments))]
        self.files = checkpoints.Files(args, selected_by, self._model_contents)
        self.interval = measured.Interval(self.files.watch)
        self.state_path = JobFolder(args.output_dir).state_path
        same = (i for one in self._same_as_before().values() for i in one.items())
        members.require_same({"steps_done": self.steps_done, **dict(same)})
        if state:
            self._restore(state)

    def train(self) -> None:
        """Take the steps that are left, record each checkpoint, save the model, write `done`.

        Raises Stopped if a signal came, with the state saved, and ResumeError if something could
        not be written; what was saved before is still there.
        """
        self.batches.begin(
            self.steps_done, not self.recorded, self._is_constant, self.n_workers, self.pictures
        )
        with contextlib.closing(self.batches):
            try:
                self._go_on()
            except stopping.Stopped:
                if not self._save_state():
                    told = (
                        "this algorithm cannot be stored (see out.txt), so the next run starts over"
                    )
                    raise resume.ResumeError(f"stopped by a signal; {told}") from None
                self.members.highest(0)  # all wait for it: torchrun ends them once one has left
                raise
        if self.members.leads:
            self.files.finish()

    def _go_on(self) -> None:
        if not self.recorded:
            self._checkpoint(self.steps_done - 1)
        while self.steps_done < self.n_steps:
            self.stop.check()
            step = self.steps_done
            started = time.monotonic()
            values = measured.step(self.algorithm, self.batches.of_step())
            self.interval.add(step, time.monotonic() - started, values)
            self.steps_done += 1
            self.recorded = not self.batches.is_due(step)
            self._tell(at_once=not self.recorded)
            if not self.recorded:
                self._checkpoint(step)

    def _tell(self, at_once: bool) -> None:
        """Publish the progress, but not at every step."""
        if self.lock and (at_once or time.time() > self._told + 5):
            self._told = time.time()
            pictures = self.num_domains * self.hparams["batch_size"]
            self.lock.publish(step=self.steps_done, steps=self.n_steps, pictures_per_step=pictures)

    _told = 0.0
    _storable = True

    def _checkpoint(self, step: int) -> None:
        """Evaluate, print a row, save the state with the new record in it, then the record."""
        results: dict[str, Any] = {"step": step, "epoch": step / self.steps_per_epoch}
        results |= self.interval.means()
        results |= self._evaluate()
        on_gpu = self.device == "cuda"
        results["mem_gb"] = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0

        columns = sorted(results)
        if columns != self._printed_columns:
            misc.print_row(columns, colwidth=12)
            self._printed_columns = columns
        misc.print_row([results[column] for column in columns], colwidth=12)

        record = {**results, "hparams": self.hparams, "args": vars(self.args)}
        # What a plugin knows of the data and its transforms; upstream's records have no such keys.
        for key in ("data_edition", "protocol"):
            if known := getattr(self.dataset, key, ""):
                record[key] = known
        if self.pictures.told:  # as in the files of weights
            record["pictures"] = self.pictures.told
        if isinstance(self.dataset, datasets.OwnData):
            # So that tables have their columns where the folder is not.
            record["environments"] = list(self.dataset.ENVIRONMENTS)
        self.files.add(record)
        self.interval.begin()
        self.recorded = True
        self._save_state()
        self._publish()

    def _publish(self) -> None:
        if self.members.leads:
            self.files.publish(self.steps_done)

    def _evaluate(self) -> dict[str, float]:
        """Return the accuracy on each split that is evaluated; stopped half-way, leave no trace."""
        if self._is_constant and self._accuracies:
            return self._accuracies
        before = drawing.get_states()
        how = self.device, self.members.add_up
        try:
            self._accuracies = {
                f"{name}_acc": misc.accuracy(self.algorithm, self._of(name), None, *how)
                for name in self.evaluated
            }
            return self._accuracies
        except stopping.Stopped:
            drawing.set_states(before)
            raise

    def _of(self, name: str) -> Iterator[Batch]:
        for batch in self.batches.of_split(name):
            self.stop.check()
            if batch is not None:
                yield batch

    def _model_contents(self) -> dict[str, Any]:
        told = {"pictures": self.pictures.told} if self.pictures.told else {}
        return told | {
            "args": vars(self.args),
            "model_input_shape": self.dataset.input_shape,
            "model_num_classes": self.dataset.num_classes,
            "model_num_domains": self.num_domains,
            "model_hparams": self.hparams,
            "model_dict": self.algorithm.state_dict(),
        }

    # The state, from which another process resumes

    def _same_as_before(self) -> dict[str, dict[str, Any]]:
        """The values that have to be equal, by their names in messages."""
        sizes = {name: len(split) for name, split in self.splits.items()}
        arguments = {**resume.identity(vars(self.args)), "pictures": self.pictures.told}
        hparams = {name: misc.plain(value) for name, value in self.hparams.items()}
        return {"arguments": arguments, "hyperparameters": hparams, "data": sizes}

    def _save_state(self) -> bool:
        """Save the state and return True; False if the algorithm cannot be stored."""
        if not self.members.leads:
            return True
        try:
            algorithm = algorithm_state.capture(self.algorithm, self._places)
        except algorithm_state.StateError as error:
            if self._storable:
                print(f"Warning: this run cannot be resumed after an interruption: {error}")
            self._storable = False
            return False
        state = {
            **self._same_as_before(),
            "torch": str(torch.__version__),
            "steps_done": self.steps_done,
            "recorded": self.recorded,
            "interval": self.interval.read(),
            "files": self.files.state(),
            "generators": drawing.stored(drawing.get_states()),
            "cuda_generators": [torch.cuda.get_rng_state()] if self.device == "cuda" else [],
            "algorithm": algorithm,
        }
        resume.save_whole(state, self.state_path)
        return True

    def _restore(self, state: dict[str, Any]) -> None:
        for what, now in self._same_as_before().items():
            resume.require_same(self.state_path, what, state[what], now)
        try:
            algorithm_state.restore(self.algorithm, state["algorithm"])
        except (ValueError, KeyError, RuntimeError) as error:
            raise resume.ResumeError(
                f"{self.state_path} does not fit {self.args.algorithm}, whose code may have "
                f"changed: {error}. To start over: --restart"
            ) from error
        self.interval.begin(state["interval"])
        self.files.restore(state["files"])
        drawing.set_states(state["generators"])
        if self.device == "cuda" and state["cuda_generators"]:
            torch.cuda.set_rng_state(state["cuda_generators"][0])
        self._publish()
        print(f"Resumed after step {self.steps_done - 1} of {self.n_steps}.")
        if state["torch"] != str(torch.__version__):
            print(f"Warning: the earlier steps ran with torch {state['torch']}.")
