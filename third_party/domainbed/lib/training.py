"""The training loop of a job.

Follows upstream file domainbed/scripts/train.py at b93c22a, which cannot resume.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any

import torch

from domainbed import algorithms
from domainbed.lib import (
    algorithm_state,
    checkpoints,
    evaluation,
    few_shots,
    misc,
    preparation,
    resume,
    step_meters,
    stopping,
)
from domainbed.lib.fast_data_loader import JobBatches
from domainbed.lib.preparation import PreparedJob, share_cores
from domainbed.lib.process_group import SINGLE_PROCESS, ProcessGroup, attach_process_group
from domainbed.lib.progress import ProgressPublisher
from domainbed_carft import escaping, machine
from domainbed_carft.errors import CarftError, brief
from domainbed_carft.images import rng, transforms
from domainbed_carft.images.dataset_facts import takes_dataset_facts
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.jobs import splits
from domainbed_carft.jobs.facts import CHANGED_HPARAMS, DECLARATIONS
from domainbed_carft.jobs.job_folder import WEIGHTS_FORMAT, JobFolder, Lock
from domainbed_carft.machine import devices


@dataclass
class Trainer:
    """Trains a job: its algorithm on its dataset, with records in its folder.

    Creating an object draws the loaders' seed and then builds the algorithm.

    Raises:
        CarftError: the state does not belong to this job, or several processes cannot train its
            algorithm.
    """

    job: PreparedJob
    state: InitVar[dict[str, Any] | None]  # saved by an earlier process of the same job
    stop: stopping.StopSignals
    lock: Lock | None  # publishes the progress; None except in the first process
    process_group: ProcessGroup = SINGLE_PROCESS

    _is_storable = True  # False after the algorithm's state could not be captured

    def __post_init__(self, state: dict[str, Any] | None) -> None:
        args = self.args = self.job.args
        self.hparams = self.job.hparams
        self.dataset = self.job.dataset
        self.environments = self.job.environments
        self.plan = self.job.plan
        training_envs = self.job.training_envs
        self.num_domains = len(training_envs)
        self.device = devices.default_device()
        on_gpu = devices.is_gpu(self.device)
        n_processes = self.process_group.local_size
        self.n_workers = share_cores(args.workers, self.dataset, on_gpu, n_processes)
        if not on_gpu:
            machine.keep_freed_memory()

        self.n_steps = args.steps or self.dataset.N_STEPS
        self.steps_done: int = state["steps_done"] if state else 0
        # False if the checkpoint after the last step was due and is not recorded yet.
        self.recorded: bool = state["recorded"] if state else True

        batch_size = self.hparams["batch_size"]
        labels = self.dataset.ENVIRONMENTS
        preparation.warn_of_small_environments(labels, self.environments, training_envs, batch_size)
        named_splits = splits.name_splits(self.environments)
        self.splits = {split.name: split.items for split in named_splits}
        skipped = training_envs if args.skip_training_in_splits else ()
        self.evaluated = preparation.evaluated_names(named_splits, self.dataset, skipped)
        self.batches = self._build_batches()

        self.algorithm = self._build_algorithm(state)
        self.facts = dict(self.algorithm.recorded_facts())
        self._initial_structure = algorithm_state.structure(self.algorithm)
        uses_loss = self.algorithm.uses_validation_loss
        if uses_loss:
            self.batches.validated = {
                f"env{i}_out": transforms.remove_augmentation(self.environments[i].out_split)
                for i in training_envs
            }
        self.row_printer = evaluation.RowPrinter()
        self.evaluator = self._build_evaluator()
        self.progress = ProgressPublisher(self.lock, self.n_steps, self.num_domains * batch_size)

        selected_by = [f"env{i}_out_acc" for i in training_envs or range(len(self.environments))]
        self.files = checkpoints.Files(args, selected_by, self._model_contents, uses_loss)
        self.interval = step_meters.Interval(self.files.watch)
        self.state_path = JobFolder(args.output_dir).state_path
        self.process_group.require_same(self._shared_facts())
        if state:
            self._restore(state)

    def _build_batches(self) -> JobBatches:
        in_splits = few_shots.training_splits(
            self.dataset, self.environments, self.job.training_envs, self.hparams
        )
        return JobBatches(
            in_splits=in_splits,
            evaluated={
                name: split if name in self.evaluated else [] for name, split in self.splits.items()
            },
            hparams=self.hparams,
            steps=self.n_steps,
            checkpoint_freq=self.args.checkpoint_freq or self.dataset.CHECKPOINT_FREQ,
            seed=self.args.seed,
            device=self.device,
            process_group=self.process_group,
            by_plan=self.plan is not None,
            memory_limit=self.job.memory_limit,
            stop=self.stop,
        )

    def _build_evaluator(self) -> evaluation.Evaluator:
        return evaluation.Evaluator(
            algorithm=self.algorithm,
            splits=self.evaluated,
            batches=self.batches,
            device=self.device,
            process_group=self.process_group,
            is_constant=self.algorithm.is_constant,
        )

    def _build_algorithm(self, state: Mapping[str, Any] | None) -> Any:
        stored_facts = state["facts"] if state else {}
        hparams = {
            name: stored_facts.get(name, value) if value == "auto" else value
            for name, value in self.hparams.items()
        }

        dataset = self.dataset
        algorithm_class = algorithms.get_algorithm_class(self.args.algorithm)
        options = {}
        if takes_dataset_facts(algorithm_class):
            options["dataset_facts"] = dataset.dataset_facts
        algorithm = algorithm_class(
            dataset.input_shape, dataset.num_classes, self.num_domains, hparams, **options
        )
        if self.process_group.size > 1:
            attach_process_group(algorithm, self.process_group, hparams["batch_size"])
        algorithm.to(self.device)
        return algorithm

    def train(self) -> None:
        """Take the remaining steps, record each checkpoint, save the model, and write `done`.

        Raises:
            Stopped: a signal was received; the state is saved.
            ResumeError: a file cannot be written; earlier files are intact.
        """
        self.batches.begin(
            step=self.steps_done,
            pending=not self.recorded,
            once=self.evaluator.is_constant,
            workers=self.n_workers,
        )
        with contextlib.closing(self.batches):
            try:
                self._take_remaining_steps()
            except stopping.Stopped:
                if not self._save_state():
                    raise resume.ResumeError(
                        "stopped by a signal; this algorithm cannot be stored (see out.txt), so "
                        "the job starts over when you rerun the command"
                    ) from None
                self.progress.publish(self.steps_done, at_once=True)
                # Wait for all processes: torchrun kills the others when one has ended.
                self.process_group.max_over_processes(0)
                raise

        if self.process_group.is_leader:
            self.files.finish()

    def _take_remaining_steps(self) -> None:
        if not self.recorded:
            self._checkpoint(self.steps_done - 1)

        take_step = step_meters.find_step(self.algorithm)
        while self.steps_done < self.n_steps:
            self.stop.check()
            step = self.steps_done
            started = time.monotonic()
            values = take_step(self.batches.step_batches())
            self.interval.add(step, time.monotonic() - started, values)

            self.steps_done += 1
            self.recorded = not self.batches.is_due(step)
            self.progress.publish(self.steps_done, at_once=not self.recorded)
            if not self.recorded:
                self._checkpoint(step)

    def _checkpoint(self, step: int) -> None:
        """Evaluate, print a row, and save the state with the new record, then the record."""
        peak_memory = devices.peak_memory(self.device)
        means = self.interval.means()
        accuracies, evaluation_seconds = self.evaluator.evaluate()
        batch_size = self.hparams["batch_size"]
        results: dict[str, Any] = {
            "step": step,
            "epoch": step / preparation.steps_per_epoch(self.environments, batch_size),
            **means,
            **accuracies,
            "mem_gb": peak_memory / 2**30,
        }
        self.row_printer.print(results)

        self.files.add(self._record({**results, "evaluation_time": evaluation_seconds}))
        self.interval.begin()
        self.recorded = True
        self._save_state()
        if self.process_group.is_leader:
            self.files.publish(self.steps_done)

    def _record(self, results: dict[str, Any]) -> dict[str, Any]:
        return {
            **results,
            "hparams": self.hparams,
            "args": vars(self.args),
            **self.facts,
            **preparation.recorded_facts(self.dataset),
            **preparation.cost_facts(self.algorithm, self.device, self.process_group.size),
            **preparation.recorded_image_facts(self.plan),
        }

    def _model_contents(self) -> dict[str, Any]:
        """Return upstream's contents of a weights file, with facts about the job and its images."""
        return {
            **self.facts,
            **preparation.recorded_image_facts(self.plan),
            "args": vars(self.args),
            "format": WEIGHTS_FORMAT,
            "model_input_shape": self.dataset.input_shape,
            "model_num_classes": self.dataset.num_classes,
            "model_num_domains": self.num_domains,
            "model_hparams": self.hparams,
            "model_dict": self.algorithm.state_dict(),
            "training_only_names": self.algorithm.training_only_names(),
        }

    def _required_facts(self, plan: ImagePlan | None) -> dict[str, dict[str, Any]]:
        """Return the values that must be equal in a resumed job, by their kind in messages."""
        description = plan.describe() if plan else ""
        arguments = {**resume.identity(vars(self.args)), "images": description}
        return {
            "arguments": arguments,
            "hyperparameters": {name: misc.plain(value) for name, value in self.hparams.items()},
            "facts": {
                name: fact
                for name, fact in self.facts.items()
                if name not in (DECLARATIONS, CHANGED_HPARAMS)
            },
            "data": {name: len(split) for name, split in self.splits.items()},
        }

    def _shared_facts(self) -> dict[str, Any]:
        """Return the values that must be equal in all processes of the job, by name."""
        facts: dict[str, Any] = {"steps_done": self.steps_done}
        for values in self._required_facts(self.plan).values():
            facts |= values
        return facts

    def _save_state(self) -> bool:
        """Save the state; return False if the algorithm cannot be stored.

        Raises:
            TransientError: the folder has been moved or removed.
        """
        if not self.process_group.is_leader:
            return True
        if self.lock is not None:
            self.lock.require_held()
        try:
            algorithm = algorithm_state.capture(self.algorithm, self._initial_structure)
        except algorithm_state.StateError as error:
            if self._is_storable:
                print(f"Warning: this job cannot be resumed after an interruption: {error}")
            self._is_storable = False
            return False

        state = {
            "format": resume.FORMAT,
            **self._required_facts(self.plan),
            "torch": str(torch.__version__),
            "steps_done": self.steps_done,
            "recorded": self.recorded,
            "interval": self.interval.read(),
            "files": self.files.state(),
            "generators": rng.as_plain_types(rng.get_states()),
            "cuda_generators": devices.generator_states(self.device),
            "algorithm": algorithm,
        }
        resume.save_atomically(state, self.state_path)
        return True

    def _restore(self, state: dict[str, Any]) -> None:
        stored_plan = self.plan
        if self.plan:  # the jitter may differ, and the next records name this machine's
            stored_plan = self.plan.jittered_as(state["arguments"]["images"])
        for kind, facts in self._required_facts(stored_plan).items():
            resume.require_same(self.state_path, kind, state[kind], facts)
        try:
            algorithm_state.restore(self.algorithm, state["algorithm"])
        except (ValueError, KeyError, RuntimeError, AttributeError) as error:
            raise CarftError(
                f"{self.state_path} does not fit {self.args.algorithm}; its code has probably "
                f"changed ({brief(error)}). To start over, delete the folder"
            ) from error

        self.interval.begin(state["interval"])
        self.files.restore(state["files"])
        rng.set_states(state["generators"])
        devices.set_generator_states(state["cuda_generators"], self.device)
        if self.process_group.is_leader:
            self.files.publish(self.steps_done)
        print(f"Resumed after step {self.steps_done - 1} of {self.n_steps}.")
        if state["torch"] != str(torch.__version__):
            escaping.print_lines(f"Warning: the earlier steps ran with torch {state['torch']}.")
