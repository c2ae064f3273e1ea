"""`carft wise-ft`: the weights between the original CLIP and a run, evaluated, plotted, saved."""

from __future__ import annotations

import argparse
import csv
import functools
import io
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from domainbed_carft import text as printable
from domainbed_carft.errors import CarftError
from domainbed_carft.method import backbone, objective, prompts
from domainbed_carft.runs import evaluate as evaluating
from domainbed_carft.runs import output, saved
from domainbed_carft.runs import splits as data
from domainbed_carft.runs.evaluate import Tally
from domainbed_carft.runs.saved import Run, original_clip
from domainbed_carft.sweep.printing import number, table

Tallies = dict[float, list[Tally]]


def run(arguments: argparse.Namespace) -> None:
    """Check, evaluate all alphas in one pass, write the results, then the weights."""
    alphas = checked_alphas(arguments.alphas)
    to_save = chosen(arguments.save, alphas)
    device = data.choose_device(arguments.device)
    opened = saved.open_run(arguments.path, arguments.which, arguments.class_names)
    folder = Folder(arguments.output, backbone.sha256(opened.path))
    folder.require_free(to_save)
    splits = data.splits(opened, arguments.data_dir)
    mixed = Interpolation(opened, device, arguments.original)
    if opened.alpha is not None:
        print(
            f"{opened.path} is itself at alpha {opened.alpha:g} of a run: alphas here are between "
            "the original CLIP and this point",
            file=sys.stderr,
        )
    tallies = evaluate(mixed, alphas, splits, arguments, device)
    rows = summarise(alphas, splits, tallies)
    made = folder.write_results(_document(opened, rows), _as_csv(splits, tallies), rows)
    for alpha in to_save:
        mixed.set(alpha)
        folder.save_weights(opened, alpha, mixed.state())
    made += [f"weights of {number(len(to_save), 'alpha')}"] if to_save else []
    output.write(_as_text(opened, rows, arguments.output, made), None)


def checked_alphas(alphas: Iterable[float]) -> list[float]:
    """Sorted; raises CarftError for those outside of [0, 1] and for one given twice."""
    alphas = list(alphas)
    wrong = [alpha for alpha in alphas if math.isnan(alpha) or not 0 <= alpha <= 1]
    if wrong:
        raise CarftError(
            f"--alphas has {', '.join(f'{alpha:g}' for alpha in wrong)}, expected numbers from 0 "
            "(the original CLIP) to 1 (the run)"
        )
    twice = sorted({alpha for alpha in alphas if alphas.count(alpha) > 1})
    if twice:
        raise CarftError(
            f"--alphas has {', '.join(f'{alpha:g}' for alpha in twice)} more than once; give each "
            "once"
        )
    return sorted(alpha + 0.0 for alpha in alphas)  # -0.0 is 0


def chosen(words: Sequence[str], alphas: Sequence[float]) -> list[float]:
    """The alphas that ``--save`` names. Raises CarftError for what is none of ``alphas``."""
    if list(words) in (["all"], ["none"]):
        return list(alphas) if words[0] == "all" else []
    try:
        wanted = sorted({float(word) for word in words})
    except ValueError as error:
        raise CarftError(
            f"--save {' '.join(words)}: expected all, none, or some of --alphas"
        ) from error
    unknown = [alpha for alpha in wanted if alpha not in alphas]
    if unknown:
        raise CarftError(
            f"--save {unknown[0]:g} is none of --alphas {' '.join(f'{a:g}' for a in alphas)}; "
            "only what is evaluated is saved"
        )
    return wanted


def evaluate(
    mixed: Interpolation,
    alphas: Sequence[float],
    splits: Sequence[data.Split],
    arguments: argparse.Namespace,
    device: torch.device,
) -> Tallies:
    """Each picture is read once, and predicted with the weights of each alpha in turn.

    For a batch the weights are set in place: that takes a few passes over them, little beside
    predicting the batch, and no memory for each alpha.
    """
    algorithm = mixed.algorithm
    classes = algorithm.head.out_features
    tallies = {alpha: [Tally(classes) for _ in splits] for alpha in alphas}
    size = arguments.batch_size
    with torch.no_grad(), data.memory_told(size):
        for number, x, y in data.batches(splits, size, arguments.workers):
            x = x.to(device)
            for alpha in alphas:
                mixed.set(alpha)
                evaluating.count(algorithm.predict(x), y, tallies[alpha][number])
    return tallies


def summarise(
    alphas: Sequence[float], splits: Sequence[data.Split], tallies: Tallies
) -> list[dict[str, Any]]:
    """For each alpha the accuracies, as shares of 1, by split and in the two means of the plot.

    ``in_domain``: over the out-splits of the training environments; ``out_of_domain``: over the
    in-splits of the test environments. None where there is none.
    """
    rows = []
    for alpha in alphas:
        found = {split.name: tally.accuracy for split, tally in zip(splits, tallies[alpha])}
        inner = [found[s.name] for s in splits if not s.is_target and s.name.endswith("_out")]
        outer = [found[s.name] for s in splits if s.is_target and s.name.endswith("_in")]
        means = {"in_domain": _mean(inner), "out_of_domain": _mean(outer)}
        rows.append({"alpha": alpha, **means, "splits": found})
    return rows


def _mean(accuracies: Sequence[float | None]) -> float | None:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(known) / len(known) if known else None


def _document(opened: saved.Run, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "run": str(opened.path),
        "algorithm": opened.args["algorithm"],
        "dataset": opened.args["dataset"],
        "test_envs": list(opened.args["test_envs"]),
        "step": opened.step,
        "run_alpha": opened.alpha,
        "notes": evaluating.notes(opened),
        "alphas": list(rows),
    }


def _as_csv(splits: Sequence[data.Split], tallies: Tallies) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["alpha", "split", "environment", "is_target", "pictures", "accuracy", "ece"])
    for alpha, found in tallies.items():
        for split, tally in zip(splits, found):
            facts = [split.name, split.environment, int(split.is_target), tally.count]
            writer.writerow([alpha, *facts, tally.accuracy, tally.ece])
    return text.getvalue()


def _as_text(
    opened: saved.Run, rows: Sequence[dict[str, Any]], folder: Path, made: Sequence[str]
) -> str:
    shown = [["alpha", "in-domain (%)", "out-of-domain (%)"]]
    for row in rows:
        means = [row["in_domain"], row["out_of_domain"]]
        shown.append(
            [f"{row['alpha']:g}", *("-" if m is None else f"{100 * m:.1f}" for m in means)]
        )
    return (
        f"{opened.args['algorithm']} on {opened.args['dataset']}: alpha 0 is the original CLIP, "
        f"1 the run\n{table(shown)}\n"
        "in-domain: mean over the out-splits of the training environments; out-of-domain: over the "
        f"in-splits of the test environments\n{printable.shown(str(folder))}: "
        f"{', '.join(made)}\n"
    )


class Interpolation:
    """A run's algorithm, to be set to any point between the original and itself.

    Three copies of the encoder are held on the device, however many alphas there are: the original,
    the fine-tuned, and the one that predicts. ``original`` is the file of the CLIP that the run
    started from, needed unless that is a published one. Raises CarftError for CLIPZeroShot, and
    where that CLIP is missing or another one.
    """

    def __init__(self, run: Run, device: torch.device, original: str | None = None) -> None:
        if not run.algorithm.trains_head:
            raise CarftError(
                f"{run.path} is a run of {run.args['algorithm']}, which trains nothing: there is "
                "nothing between its weights and the original's"
            )
        self.algorithm = run.algorithm.to(device)
        start = original_weights(run, original)
        state = self.algorithm.state_dict()  # of the very tensors that predict
        # What training has not moved stays as it is, to the bit.
        self._moved = {
            name: (state[name], state[name].clone(), weights.to(device))
            for name, weights in start.items()
            if weights.is_floating_point() and not torch.equal(state[name].cpu(), weights)
        }

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        """Have the algorithm predict with alpha's weights; those of 0 and 1 are exact copies."""
        for current, tuned, original in self._moved.values():
            if alpha in (0.0, 1.0):
                current.copy_(tuned if alpha else original)
            else:
                # No fused operation: the same bits on every device.
                current.copy_(original * (1 - alpha)).add_(tuned * alpha)

    def state(self) -> dict[str, Tensor]:
        """A copy of the state dict as it is set now, on the CPU."""
        state = self.algorithm.state_dict()
        return {name: value.detach().cpu().clone() for name, value in state.items()}


def original_weights(run: Run, file: str | None = None) -> dict[str, Tensor]:
    """The encoder of the CLIP that the run started from, and W_cls of its words as the head.

    By their names in the state dict, on the CPU: what `CLIPZeroShot` predicts with. Raises
    CarftError where the CLIP, ``file`` if given, is missing or another one.
    """
    clip_model = original_clip(run, file)
    words = prompts.prompts(run.contexts, run.classes)
    weights = objective.zero_shot_weights(backbone.text_features(clip_model, words))
    encoder = clip_model.model.visual.state_dict()
    original = {f"encoder.{key}": value for key, value in encoder.items()}
    original["head.weight"] = weights.classes
    if not _fits(run, original, weights.contexts):
        raise CarftError(
            f"{clip_model.path} is another CLIP than the one that {run.path} started from: it has "
            "other shapes, or gives other context weights. Name the right one with --original FILE"
        )
    return original


def _fits(run: Run, original: Mapping[str, Tensor], contexts: Tensor) -> bool:
    """Whether the context weights, which no training changes, are those of this CLIP."""
    state = {name: value.cpu() for name, value in run.algorithm.state_dict().items()}
    trained = {name for name in state if name.startswith(("encoder.", "head."))}
    if trained != set(original) or any(state[n].shape != v.shape for n, v in original.items()):
        return False
    # Text features of a GPU differ from a processor's in their last digits.
    recorded = state["context_weights"]
    return recorded.shape == contexts.shape and torch.allclose(recorded, contexts, atol=1e-3)


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
        title = f"{document['algorithm']} on {document['dataset']}"
        figure = draw(points, title)
        for kind in ("png", "svg"):
            write = functools.partial(_save_figure, figure, kind)
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
        found = saved.read(path).get("wise_ft_run")
    except CarftError:
        return None
    return str(found)


def _run_of_results(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))["run_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


LINE, START, END = "#999999", "#0072B2", "#D55E00"  # of Okabe and Ito's palette


def draw(points: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """A point an alpha, of rows as `wise_ft.summarise` makes them, in per cent."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    xs = [100 * point["in_domain"] for point in points]
    ys = [100 * point["out_of_domain"] for point in points]
    axes.plot(xs, ys, color=LINE, marker="o", markersize=5, zorder=1)
    ends = {0.0: ("s", START, "original CLIP (zero-shot)"), 1.0: ("D", END, "the run")}
    for point, x, y in zip(points, xs, ys):
        axes.annotate(
            f"{point['alpha']:g}", (x, y), textcoords="offset points", xytext=(6, 6), fontsize=8,
            path_effects=[withStroke(linewidth=3, foreground="white")],  # readable over the line
        )  # fmt: skip
        if point["alpha"] in ends:
            mark, colour, label = ends[point["alpha"]]
            axes.scatter([x], [y], marker=mark, color=colour, s=60, label=label, zorder=2)
    axes.margins(0.1)
    axes.set_xlabel("in-domain accuracy (%): out-splits of the training environments")
    axes.set_ylabel("out-of-domain accuracy (%):\nin-split of the test environment")
    axes.set_title(f"{title}: weights (1 - α) original + α fine-tuned", fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    return figure


def _save_figure(figure: Figure, kind: str, path: Path) -> None:
    """Write the figure as ``kind``, png or svg; the same points give the same bytes of SVG."""
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(path, format=kind, dpi=150, metadata=metadata)
