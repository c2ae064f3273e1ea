"""The files in a job's folder: records, weights, and the file `done`.

The state of a job (`resume`) contains the text of all records and is saved first. So if a process
dies at any time, the next process rewrites the files to match the state from which it resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from domainbed.lib import resume, scalar_logs
from domainbed_carft import files
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.job_folder import JobFolder
from domainbed_carft.jobs.records import is_broken_loss

KEEP = ("both", "last", "best", "none")

# The attributes of `Files` that a resumed job needs.
_STATE = ("_records", "_begins_at", "_step", "_best_step", "_best_accuracy", "diverged_at")


class Files:
    """The files of one job.

    Args:
        args: the job's arguments.
        selected_by: names of the accuracies whose mean selects the best weights (training-domain
            validation).
        contents: function that returns the contents of a weights file.
        newest_is_best: if True, the newest weights are the best, because the algorithm itself
            chooses which weights predict.

    Attributes:
        diverged_at: the step of the first loss that was not finite, or None.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        selected_by: Sequence[str],
        contents: Callable[[], Mapping[str, Any]],
        newest_is_best: bool = False,
    ) -> None:
        self._selected_by = selected_by
        self._newest_is_best = newest_is_best
        self._contents = contents
        self._every = args.save_model_every_checkpoint
        self._folder = JobFolder(args.output_dir)
        self._keep = "none" if args.skip_model_save else args.keep_weights
        self._logs: scalar_logs.Logs | None = None

        self._records = self._read_earlier_records(args)
        self._begins_at = len(self._records)  # offset of this job's records
        self._step = self._best_step = -1
        self._best_accuracy = -1.0
        self.diverged_at: int | None = None

    def _read_earlier_records(self, args: argparse.Namespace) -> str:
        """Return the records of earlier runs in the folder; upstream appends to these.

        Records of an interrupted job with the same arguments and without a state are dropped.
        """
        try:
            records = files.read_regular(self._folder.records_path).decode(errors="replace")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise CarftError(
                f"{self._folder.records_path} cannot be read: {error.strerror}; move it away, or "
                "choose another --output_dir"
            ) from error

        lines = records.splitlines(keepends=True)
        if self._folder.done:
            print(
                "Warning: the job in this folder is done. It is trained once more and, as in "
                "DomainBed, its records are appended, so results.jsonl has each step again."
            )
        else:
            identity = resume.identity(vars(args))
            lines = [line for line in lines if _parse_identity(line) != identity]

        text = "".join(lines)
        is_cut_off = bool(text) and not text.endswith("\n")
        return text + "\n" if is_cut_off else text

    def watch(self, step: int, name: str, value: float) -> None:
        """Warn about the first loss that is not finite; from then on records are marked."""
        if self.diverged_at is not None or not is_broken_loss(name, value):
            return

        self.diverged_at = step
        # The update of the previous step broke its weights, so no table has its record.
        if self._best_step == step - 1:
            self._best_step = -1
            (self._folder.path / "model_best.pkl").unlink(missing_ok=True)
        print(
            f"Warning: the training diverged: {name} is {value} at step {step}. Records from this "
            "step on are marked diverged_at, and carft collect ignores their accuracies."
        )

    def add(self, record: Mapping[str, Any]) -> None:
        """Add a record, which `publish` writes."""
        if self.diverged_at is not None:
            record = {**record, "diverged_at": self.diverged_at}
        self._records += json.dumps(record, sort_keys=True) + "\n"
        self._step = int(record["step"])

        accuracy = float(np.mean([record[name] for name in self._selected_by]))
        # As in carft collect: the first of equal accuracies, and no records after divergence.
        is_best = accuracy > self._best_accuracy or self._newest_is_best
        if is_best and self.diverged_at is None:
            self._best_step = self._step
            self._best_accuracy = accuracy

    def publish(self, steps_done: int) -> None:
        """Write the records, and the weights if they belong to the last record."""
        path = self._folder.records_path
        with resume.explain_failed_writes(path), files.replace_atomically(path) as temporary:
            temporary.write_text(self._records, encoding="utf-8")
        if self._logs is not None:
            self._logs.catch_up(self._records[self._begins_at :])

        if self._keep == "none" or self._step != steps_done - 1:
            return
        if self._every:
            self._save(f"model_step{self._step}.pkl")
        if self._best_step == self._step and self._keep in ("both", "best"):
            self._save("model_best.pkl", best_step=self._best_step)

    def log_to(self, logs: scalar_logs.Logs) -> None:
        """Log the existing records of this job, and from now on every published one."""
        logs.catch_up(self._records[self._begins_at :])
        self._logs = logs

    def finish(self) -> None:
        """Write the last weights and the file `done`, and delete the state."""
        if self._keep in ("both", "last"):
            self._save("model.pkl")
        path = self._folder.path / "done"
        with resume.explain_failed_writes(path):
            with files.replace_atomically(path) as temporary:
                temporary.write_text("done")
            self._folder.state_path.unlink(missing_ok=True)

    def state(self) -> dict[str, Any]:
        """Return the state that `restore` needs in another process."""
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state`; the next `publish` rewrites the files to match it."""
        for name in _STATE:
            setattr(self, name, state[name])

    def _save(self, filename: str, **extra: Any) -> None:
        resume.save_atomically({**self._contents(), **extra}, self._folder.path / filename)


def _parse_identity(line: str) -> dict[str, Any] | None:
    """Return the arguments that a record's results depend on; None if the line is not a record."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        return resume.identity(json.loads(line)["args"])
    return None
