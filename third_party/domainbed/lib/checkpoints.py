"""What a run leaves in its folder: records, weights, and the file `done`.

The state of a run (`resume`) has the text of all records in it and is saved first. So whenever a
process dies, the next one brings the files back in line with the state it goes on from.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from domainbed.lib import resume

KEEP = ("both", "last", "best")


class Files:
    """The files of one run.

    Args:
        args: the command line of `train`: output_dir, and which weights to keep.
        selected_by: the record's accuracies by whose mean the best weights are chosen:
            training-domain validation.
        contents: makes what a file of weights holds.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        selected_by: Sequence[str],
        contents: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._args = args
        self._selected_by = selected_by
        self._contents = contents
        self._records_path = os.path.join(args.output_dir, "results.jsonl")
        # A folder may hold the records of an earlier run: upstream appends to them.
        self._records = _on_a_new_line(_text(self._records_path))
        self._step = -1
        self._best_step = -1
        self._best_accuracy = -1.0

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record; `publish` writes it."""
        self._records += json.dumps(record, sort_keys=True) + "\n"
        self._step = int(record["step"])
        accuracy = float(np.mean([record[name] for name in self._selected_by]))
        if accuracy > self._best_accuracy:  # the earliest of equals, as selection has it
            self._best_step, self._best_accuracy = self._step, accuracy

    def publish(self, steps_done: int) -> None:
        """Write the records; if the last is of this step, the weights as they are now.

        Doing it again changes nothing.
        """
        _extend(self._records_path, self._records)
        if self._args.skip_model_save or self._step != steps_done - 1:
            return
        if self._args.save_model_every_checkpoint:
            self._save(f"model_step{self._step}.pkl")
        if self._best_step == self._step and self._args.keep_weights in ("both", "best"):
            self._save("model_best.pkl", best_step=self._best_step)

    def finish(self) -> None:
        """Write the last weights, and the file that says that the run is done."""
        if not self._args.skip_model_save and self._args.keep_weights in ("both", "last"):
            self._save("model.pkl")
        path = os.path.join(self._args.output_dir, "done")
        with resume.told(path), open(path, "w", encoding="utf-8") as file:
            file.write("done")

    def state(self) -> dict[str, Any]:
        """What the state of the run has to hold of this."""
        return {
            "records": self._records,
            "step": self._step,
            "best_step": self._best_step,
            "best_accuracy": self._best_accuracy,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned; `publish` then brings the files in line with it."""
        self._records = state["records"]
        self._step = state["step"]
        self._best_step, self._best_accuracy = state["best_step"], state["best_accuracy"]

    def _save(self, filename: str, **more: Any) -> None:
        path = os.path.join(self._args.output_dir, filename)
        resume.save_whole({**self._contents(), **more}, path, resume.COMFORT)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def _on_a_new_line(text: str) -> str:
    """A line that was cut off must not spoil the next."""
    return text if not text or text.endswith("\n") else text + "\n"


def _extend(path: str, wanted: str) -> None:
    """Make the file hold `wanted`: append what is missing, or write it anew if it differs."""
    present = _text(path)
    with resume.told(path, resume.COMFORT):
        if wanted.startswith(present):
            with open(path, "a", encoding="utf-8") as file:
                file.write(wanted[len(present) :])
        else:
            with open(f"{path}.part", "w", encoding="utf-8") as file:
                file.write(wanted)
            os.replace(f"{path}.part", path)
