"""What `carft wise-ft` leaves in its folder: results, a plot, and a file of weights an alpha."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft.errors import CarftError
from domainbed_carft.runs import checkpoints, output
from domainbed_carft.runs.saved import Run

DOCUMENT = "wise_ft.json"
TABLES = ("wise_ft.csv", DOCUMENT)
RESULTS = (*TABLES, "wise_ft.png", "wise_ft.svg")


def weights_name(alpha: float) -> str:
    """The file of an alpha's weights: two decimals, more where it has more."""
    text = f"{alpha:.2f}"
    return f"model_alpha_{text if float(text) == alpha else repr(alpha)}.pkl"


class Folder:
    """The folder, for the run in the file of this SHA-256.

    Each file is written under another name, then renamed. Those that this command has made of the
    same run are replaced; others are never.
    """

    def __init__(self, path: Path, run_digest: str) -> None:
        self._path = path
        self._run = run_digest

    def require_free(self, alphas: Iterable[float]) -> None:
        """Raise CarftError if a file is in the way, before anything takes time."""
        if self._path.exists() and not self._path.is_dir():
            raise CarftError(f"--output {self._path} is a file; expected a folder, or a new name")
        for alpha in alphas:
            self._require_own(self._path / weights_name(alpha), _run_of_weights)
        for name in RESULTS:
            self._require_own(self._path / name, lambda path: _run_of_results(path.parent))
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CarftError(
                f"--output {self._path} cannot be made: {error.strerror}; expected a folder"
            ) from error

    def _require_own(self, path: Path, run_of: Any) -> None:
        if path.exists() and run_of(path) != self._run:
            raise CarftError(
                f"{path} is there already and was not made of this run by carft wise-ft; give "
                "another --output, or move it away"
            )

    def write_results(
        self, document: Mapping[str, Any], rows: str, points: Sequence[Mapping[str, Any]]
    ) -> list[str]:
        """Write the results as JSON and CSV, and, where there is a test environment, the plot.

        The names of the files.
        """
        text = json.dumps({**document, "run_sha256": self._run}, indent=1) + "\n"
        output.write(text, self._path / DOCUMENT)  # the first: it says of which run all are
        output.write(rows, self._path / "wise_ft.csv")
        if any(point["out_of_domain"] is None or point["in_domain"] is None for point in points):
            return [*TABLES]
        from domainbed_carft.runs import wise_ft_plot

        title = f"{document['algorithm']} on {document['dataset']}"
        figure = wise_ft_plot.draw(points, title)
        for kind in ("png", "svg"):
            write = functools.partial(wise_ft_plot.save, figure, kind)
            output.save(self._path / f"wise_ft.{kind}", write)
        return [*RESULTS]

    def save_weights(self, run: Run, alpha: float, state: Mapping[str, Tensor]) -> None:
        """Write a file that `checkpoints.load` reads as it does the run's own."""
        content = {
            **run.content,
            "model_dict": dict(state),
            # Of a run that is itself between: how far it is from the original to the fine-tuned.
            "wise_ft_alpha": alpha * (1.0 if run.alpha is None else run.alpha),
            "wise_ft_step": run.step,
            "wise_ft_run": self._run,
        }
        output.save(self._path / weights_name(alpha), lambda place: torch.save(content, place))


def _run_of_weights(path: Path) -> str | None:
    try:
        found = checkpoints.read(path).get("wise_ft_run")
    except CarftError:
        return None
    return str(found)


def _run_of_results(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))["run_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
