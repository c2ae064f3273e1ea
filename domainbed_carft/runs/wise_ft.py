"""`carft wise-ft`: the weights between the original CLIP and a run, evaluated, plotted, saved.

Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903: (1 - alpha) times the
zero-shot weights plus alpha times the fine-tuned ones, encoder and head.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.clips import backbone
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.method import objective, prompts
from domainbed_carft.runs import evaluate as evaluating
from domainbed_carft.runs import saved, suite_evaluation
from domainbed_carft.runs import splits as data
from domainbed_carft.runs.default_weights import choose_weights, describe_choice
from domainbed_carft.suites import catalogue as known
from domainbed_carft.text import counted, shown, table

if TYPE_CHECKING:
    import matplotlib.figure

TABLE = "wise_ft.json"
PLOTS = ("wise_ft.png", "wise_ft.svg")
ENDS = {0.0: " (original CLIP)", 1.0: " (the run)"}  # what the alphas at the ends stand for
AXES = (  # of splits, of a suite
    (
        "in-domain accuracy (%): out-splits of the training environments",
        "out-of-domain accuracy (%):\nin-split of the test environment",
    ),
    ("accuracy (%) in distribution", "mean accuracy (%) of the shifts"),
)


def run(arguments: argparse.Namespace) -> int:
    """Check, evaluate all alphas in one pass, write the results, then the weights.

    Returns the exit status: 3 if a test set of ``--suite`` could not be read, else 0.
    """
    alphas, to_save = checked(arguments.alphas, arguments.save)
    arguments.device = data.choose_device(arguments.device)
    opened = saved.open_run(choose_weights(arguments.path, arguments.which))
    folder, suite = arguments.output, arguments.suite
    require_new(folder, [TABLE, *PLOTS, *map(weights_name, to_save)])
    on_suite = suite_evaluation.of_run(suite, opened, arguments) if suite else None
    splits = [] if suite else data.splits(opened, arguments.data_dir)
    mixed = Interpolation(opened, arguments.device, arguments.original)
    folder.mkdir(parents=True, exist_ok=True)

    def predict(x: Tensor) -> Iterator[Tensor]:
        for alpha in alphas:  # in place: a few passes over the weights, and no memory each
            mixed.set(alpha)
            yield mixed.algorithm.predict(x)

    if on_suite:
        usual = known.get(suite).in_distribution
        found = [
            {"in_domain": one["sets"].get(usual, {}).get("accuracy"), "out_of_domain": one["mean"]}
            | one
            for one in on_suite(predict, len(alphas))
        ]
    else:
        how = predict, arguments, len(alphas), len(opened.classes)
        found = [summary(splits, tallies) for tallies in evaluating.tallied(splits, *how)]
    rows = [{"alpha": alpha, **one} for alpha, one in zip(alphas, found)]
    document = {
        "run": str(opened.path),
        "algorithm": opened.args["algorithm"],
        "dataset": opened.args["dataset"],
        "test_envs": list(opened.args["test_envs"]),
        "step": opened.step,
        "run_alpha": opened.alpha,
        "transform": data.transform_name(opened),
        "alphas": rows,
    }
    title = f"{opened.title} on {benchmarks.dataset_title(opened.args['dataset'])}"
    files.save_text(folder / TABLE, json.dumps(document, indent=1) + "\n")
    if all(None not in (row["in_domain"], row["out_of_domain"]) for row in rows):
        _plot(rows, title, folder, AXES[bool(suite)])
    reached = reached_alpha(opened)
    for alpha in to_save:
        mixed.set(alpha)
        content = {**opened.content, "model_dict": mixed.state()}
        if opened.soup is not None:
            content["soup"] = opened.soup
        content |= {"wise_ft_alpha": alpha * reached, "wise_ft_step": opened.step}
        files.save(folder / weights_name(alpha), functools.partial(torch.save, content))
    if choice := describe_choice(arguments.path, arguments.which, opened.path):
        print(choice)
    print(f"{shown(title)}: alpha 0 is the original CLIP, alpha 1 the run")
    if suite:
        print(suite_evaluation.as_rows("alpha", {f"{row['alpha']:g}": row for row in rows}))
        for row in rows:
            about = {**suite_evaluation.facts_of(opened), "wise_ft_alpha": row["alpha"] * reached}
            suite_evaluation.keep(opened.path, {**about, **row})
    else:
        means = ("in_domain", "out_of_domain")
        cells = [[f"{r['alpha']:g}", *(evaluating.percent(r[m]) for m in means)] for r in rows]
        print(table(["alpha", "in-domain (%)", "out-of-domain (%)"], cells))
        if opened.soup is not None:
            print(data.PICTURES_OF_A_SOUP)
    if to_save:
        print(f"Results and weights of {counted(len(to_save), 'alpha')}: {shown(str(folder))}")
    else:
        print(f"Results: {shown(str(folder))}; for weights add --save all, or some of --alphas")
    return suite_evaluation.exit_status(rows)


def reached_alpha(run: saved.TrainedRun) -> float:
    """How far the run's own weights are from the original CLIP to what was fine-tuned.

    A soup is what was fine-tuned, whatever its runs were: its weights are at 1.
    """
    if run.alpha is not None:
        return run.alpha
    return 1.0 if run.soup is not None else float(run.hparams["wise_alpha"])


def require_new(folder: Path, names: Iterable[str]) -> None:
    """Raise CarftError if one of the files is in the folder."""
    if there := [name for name in names if os.path.lexists(folder / name)]:
        raise CarftError(
            f"{folder} already has {', '.join(there)}; choose another --output, or remove them"
        )


def checked(alphas: Iterable[float], save: Sequence[str]) -> tuple[list[float], list[float]]:
    """``--alphas``, sorted, and those of them that ``--save`` names; CarftError for others."""
    found = sorted(alpha + 0.0 for alpha in alphas)  # -0.0 is 0
    listed = " ".join(f"{alpha:g}" for alpha in found)
    if not all(0 <= alpha <= 1 for alpha in found) or len(set(found)) < len(found):
        told = "expected different numbers from 0 (the original CLIP) to 1 (the run)"
        raise CarftError(f"--alphas {listed}: {told}")
    if save in (["all"], ["none"]):
        return found, found if save == ["all"] else []
    try:
        return found, sorted({found[found.index(float(word))] for word in save})
    except ValueError:
        told = f"expected all, none, or some of --alphas {listed}"
        raise CarftError(f"--save {' '.join(save)}: {told}") from None


def weights_name(alpha: float) -> str:
    """The file name of an alpha's weights: two decimals, or more if needed."""
    text = f"{alpha:.2f}"
    return f"model_alpha_{text if float(text) == alpha else repr(alpha)}.pkl"


class Interpolation:
    """A run's algorithm, which can be set to any point between the original and the run.

    ``original``: as of `saved.original_clip`. Raises CarftError for CLIPZeroShot, FLYP and a random
    head, and as that.
    """

    def __init__(
        self, run: saved.TrainedRun, device: torch.device, original: str | None = None
    ) -> None:
        name = run.args["algorithm"]
        unfit = {
            "CLIPZeroShot": "which trains nothing; expected one that does",
            "FLYP": "whose head is made by its text encoder; set wise_alpha before training",
        }
        if run.hparams["head_init"] == "random" and run.algorithm.trains_head:
            unfit[name] = (
                "which started from a random head; expected one with head_init 'zero-shot'"
            )
        if name in unfit:
            raise CarftError(f"{run.path} is a run of {name}, {unfit[name]}")
        clip = saved.original_clip(run, original)
        words = backbone.text_features(clip, prompts.prompts(run.contexts, run.classes))
        start = {f"encoder.{k}": v for k, v in clip.model.visual.state_dict().items()}
        factor = float(run.algorithm.logit_scale / run.algorithm.head_factor)
        start["head.weight"] = factor * objective.zero_shot_weights(words).classes
        start["head.bias"] = torch.zeros(len(run.classes))
        self.algorithm = run.algorithm.to(device)
        state = self.algorithm.state_dict()  # the very tensors that predict
        # What training has not moved stays as it is, to the bit.
        self._moved = {
            name: (state[name], state[name].clone(), weights.to(device))
            for name, weights in start.items()
            if weights.is_floating_point() and not torch.equal(state[name].cpu(), weights)
        }

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        """Make the algorithm predict with alpha's weights; those of 0 and 1 are exact copies."""
        for current, tuned, original in self._moved.values():
            if alpha in (0.0, 1.0):
                current.copy_(tuned if alpha else original)
            else:
                # No fused operation: the same bits on every device.
                current.copy_(original * (1 - alpha)).add_(tuned * alpha)

    def state(self) -> dict[str, Tensor]:
        """A copy of the state dict as it is set now, on the CPU."""
        return {k: v.detach().cpu().clone() for k, v in self.algorithm.state_dict().items()}


def summary(splits: Sequence[data.Split], tallies: Sequence[evaluating.Tally]) -> dict[str, Any]:
    """The accuracies, as shares of 1, by split and in the two means of the plot.

    ``in_domain``: over the out-splits of the training environments; ``out_of_domain``: over the
    in-splits of the test environments. None where there is none.
    """
    found = {split.name: tally.accuracy for split, tally in zip(splits, tallies)}
    inner = [found[s.name] for s in splits if not s.is_target and s.name.endswith("_out")]
    outer = [found[s.name] for s in splits if s.is_target and s.name.endswith("_in")]
    return {"in_domain": _mean(inner), "out_of_domain": _mean(outer), "splits": found}


def _mean(accuracies: Sequence[float | None]) -> float | None:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return sum(known) / len(known) if known else None


def _plot(
    points: Sequence[Mapping[str, Any]], title: str, folder: Path, labels: tuple[str, str]
) -> None:
    figure = curve_figure(points, title, labels)
    for name in PLOTS:
        kind = name.rpartition(".")[2]
        metadata = {"Date": None} if kind == "svg" else None  # the same points, the same bytes
        draw = functools.partial(figure.savefig, format=kind, dpi=150, metadata=metadata)
        files.save(folder / name, draw)


def curve_figure(
    points: Sequence[Mapping[str, Any]], title: str, labels: tuple[str, str]
) -> matplotlib.figure.Figure:
    """The curve through the points of all alphas, both ends named, with labels where there is room.

    ``points``: ``alpha``, and ``in_domain`` and ``out_of_domain`` as shares of 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=labels[0], ylabel=labels[1])
    places = [(100 * point["in_domain"], 100 * point["out_of_domain"]) for point in points]
    axes.plot(*zip(*places), color="#0072B2", marker="o", markersize=5)
    axes.margins(0.1)
    words = f"{title}: weights (1 - α) original + α fine-tuned"
    axes.set_title(words, fontsize=10, parse_math=False)

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the labels are placed in the axes as they are now
    alphas = [point["alpha"] for point in points]
    # The ends first, so that they get the room.
    order = sorted(range(len(points)), key=lambda i: (alphas[i] not in ENDS, i))
    drawn: list[Any] = []
    for i in order:
        label = f"{alphas[i]:g}{ENDS.get(alphas[i], '')}"
        if box := _label(axes, label, places[i], taken=drawn):
            drawn.append(box)
    return figure


def _label(axes: Any, label: str, place: tuple[float, float], taken: Sequence[Any]) -> Any:
    """Write a label beside a point, inside the axes and over none of the boxes that are ``taken``.

    Of such places one beside the curve comes before one on it. Returns the label's box; None,
    without a label, where there is no room.
    """
    curve = axes.lines[0].get_path().transformed(axes.transData)
    found: list[Any] = []
    for right, up in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
        text = axes.annotate(
            label,
            place,
            textcoords="offset points",
            xytext=(6 * right, 6 * up),
            ha="left" if right > 0 else "right",
            va="bottom" if up > 0 else "top",
            fontsize=8,
        )
        box, frame = text.get_window_extent(), axes.bbox
        is_inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
        is_inside = is_inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
        if is_inside and not box.count_overlaps(taken):
            found.append((curve.intersects_bbox(box, filled=False), text, box))
        else:
            text.remove()

    found.sort(key=lambda place: place[0])
    for _, text, _ in found[1:]:
        text.remove()
    return found[0][2] if found else None
