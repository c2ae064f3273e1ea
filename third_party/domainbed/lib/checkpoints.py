"""The files of a run in its folder: records, weights, and the file `done`.

The state of a run (`resume`) contains the text of all records and is saved first. So whenever a
process dies, the next one brings the files back in line with the state it resumes from.
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
from domainbed_carft.jobs.folder import JobFolder
from domainbed_carft.jobs.records import is_broken_loss

KEEP = ("both", "last", "best", "none")

# The attributes of `Files` that a resumed run needs.
_STATE = ("_records", "_begins_at", "_step", "_best_step", "_best_accuracy", "diverged_at")


class Files:
    """The files of one run of `train` with these arguments.

    `selected_by`: the accuracies by whose mean the best weights are chosen, training-domain
    validation; `contents` makes what a file of weights holds. `newest_is_best`: whether instead the
    newest weights are the best, of an algorithm that chooses by itself which weights predict.
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

        self._records = self._earlier_records(args)
        self._begins_at = len(self._records)  # this run, in the records
        self._step = self._best_step = -1
        self._best_accuracy = -1.0
        self.diverged_at: int | None = None  # the step of the first loss that was not finite

    def _earlier_records(self, args: argparse.Namespace) -> str:
        """The records of earlier runs in the folder, to which upstream appends.

        Those of this run itself are left out if it was interrupted and left no state.
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
                "Warning: the run in this folder is done. It is trained once more, and as in "
                "DomainBed its records are appended, so results.jsonl has each step again."
            )
        else:
            identity = resume.identity(vars(args))
            lines = [line for line in lines if _identity_in(line) != identity]

        text = "".join(lines)
        is_cut_off = bool(text) and not text.endswith("\n")
        return text + "\n" if is_cut_off else text

    def watch(self, step: int, name: str, value: float) -> None:
        """Warn of the run's first loss that is not finite; later records are marked."""
        if self.diverged_at is not None or not is_broken_loss(name, value):
            return

        self.diverged_at = step
        if self._best_step == step - 1:  # whose own update broke the weights: no table has them
            self._best_step = -1
            (self._folder.path / "model_best.pkl").unlink(missing_ok=True)
        print(
            f"Warning: the training diverged: {name} is {value} at step {step}. Records from "
            "here on are marked diverged_at; carft collect leaves out their accuracies."
        )

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record; `publish` writes it."""
        if self.diverged_at is not None:
            record = {**record, "diverged_at": self.diverged_at}
        self._records += json.dumps(record, sort_keys=True) + "\n"
        self._step = int(record["step"])

        accuracy = float(np.mean([record[name] for name in self._selected_by]))
        # As carft collect selects: the earliest of equals, and no record of a diverged training.
        is_best = accuracy > self._best_accuracy or self._newest_is_best
        if is_best and self.diverged_at is None:
            self._best_step = self._step
            self._best_accuracy = accuracy

    def publish(self, steps_done: int) -> None:
        """Write the records, and the weights if the last record is theirs."""
        path = self._folder.records_path
        with resume.naming_failed_writes(path), files.replace_atomically(path) as temporary:
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
        """Log the records of this run, those so far and all that are going to be published."""
        logs.catch_up(self._records[self._begins_at :])
        self._logs = logs

    def finish(self) -> None:
        """Write the last weights, and the file that says that the run is done; drop its state."""
        if self._keep in ("both", "last"):
            self._save("model.pkl")
        path = self._folder.path / "done"
        with resume.naming_failed_writes(path):
            with files.replace_atomically(path) as temporary:
                temporary.write_text("done")
            self._folder.state_path.unlink(missing_ok=True)

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on in another process."""
        return {name: getattr(self, name) for name in _STATE}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned; `publish` then brings the files in line with it."""
        for name in _STATE:
            setattr(self, name, state[name])

    def _save(self, filename: str, **more: Any) -> None:
        resume.save_whole({**self._contents(), **more}, self._folder.path / filename)


def _identity_in(line: str) -> dict[str, Any] | None:
    """The arguments that a record's result depends on; None for a line that is no record."""
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        return resume.identity(json.loads(line)["args"])
    return None
