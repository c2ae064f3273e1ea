"""WiSE-FT: weights between a run and its original CLIP, measured, drawn and written.

The formula is in `merge_weights`. The curve has accuracy out of distribution against accuracy in
distribution.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.arguments import NUMBERS, check
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.paths import AnyPath, as_list, as_text
from domainbed_carft.runs import BATCH_SIZE, merge_weights, saved
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.predictions import LoadingOptions, SplitAccuracies, check_loading
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import AnyRun, as_run, check_output_folder, save_weights
from domainbed_carft.runs.suites import (
    SuiteEvaluation,
    SuiteScores,
    SuiteTest,
    make_suite_test,
    measure_variants,
    run_facts,
)

if TYPE_CHECKING:
    import matplotlib.figure

DEFAULT_ALPHAS = tuple(n / 10 for n in range(11))

WISE_FT_TABLE = "wise_ft.json"
CURVE_FILES = ("wise_ft.png", "wise_ft.svg")
ENDS = {0.0: " (original CLIP)", 1.0: " (the run)"}  # what the alphas at the ends stand for

LINE_COLOR = "#0072B2"
LABEL_OFFSET = 6  # points between an end of the curve and its label
LABEL_MARGIN = 0.15  # of the width and the height of the curve, around it

# Of the axes: in domain, out of domain.
SPLIT_LABELS = (
    "in-domain accuracy (%): out-splits of the training environments",
    "out-of-domain accuracy (%):\nin-split of the test environment",
)
SUITE_LABELS = ("accuracy (%) in distribution", "mean accuracy (%) of the shifts")


@dataclass(frozen=True)
class AlphaScores:
    """The weights of one alpha, on the splits or on a suite; accuracies are shares of 1.

    ``in_domain``, ``out_of_domain``: of splits as in `SplitAccuracies`; of a suite the accuracy on
    the set in distribution, and the mean of the shifted sets.
    """

    alpha: float
    in_domain: float | None
    out_of_domain: float | None
    splits: SplitAccuracies | None = None
    suite: SuiteScores | None = None

    def as_dict(self) -> dict[str, Any]:
        """The scores, for JSON."""
        document: dict[str, Any] = {
            "alpha": self.alpha,
            "in_domain": self.in_domain,
            "out_of_domain": self.out_of_domain,
        }
        if self.splits:
            document["splits"] = self.splits.splits
        if self.suite:
            document.update(self.suite.as_dict())
        return document


@dataclass(frozen=True)
class WiseFT:
    """A run at several alphas, from 0 (the original CLIP) to 1 (the run).

    ``run``: the path of its weights. ``run_alpha``: of a run that is itself between a CLIP and
    another run, the alpha of its weights. ``title``: of the curve. ``suite_evaluations``: on a
    suite the evaluation of each alpha, for the job's records.
    """

    run: str
    algorithm: str
    dataset: str
    test_envs: list[int]
    step: int | None
    run_alpha: float | None
    transform: str
    alphas: list[AlphaScores]
    title: str
    suite_evaluations: list[SuiteEvaluation]

    @property
    def has_unread_sets(self) -> bool:
        """Whether a test set of the suite is there but could not be read."""
        return any(evaluation.has_unread_sets for evaluation in self.suite_evaluations)

    def as_dict(self) -> dict[str, Any]:
        """What wise_ft.json has."""
        return {
            "run": self.run,
            "algorithm": self.algorithm,
            "dataset": self.dataset,
            "test_envs": self.test_envs,
            "step": self.step,
            "run_alpha": self.run_alpha,
            "transform": self.transform,
            "alphas": [scores.as_dict() for scores in self.alphas],
        }


def wise_ft(
    run: AnyRun,
    alphas: Iterable[float] = DEFAULT_ALPHAS,
    *,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    original: AnyPath | None = None,
    output: AnyPath | None = None,
    save: Sequence[float] = (),
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> WiseFT:
    """The accuracies at weights between the original CLIP (alpha 0) and a run (alpha 1).

    One pass over the images serves all alphas; the run itself is left as it was. ``original``:
    the CLIP that the run started from, needed unless that is a published one. ``output``: a folder
    for the results, the curve, and the weights of the alphas in ``save``; by default nothing is
    written. The others as in `evaluate`.

    Raises CarftError unless the alphas are different numbers from 0 to 1 and ``save`` has some of
    them, if a file is in ``output`` already, for runs that no line connects to a CLIP, and as
    `evaluate`.

    >>> result = wise_ft(job, [0, 0.5, 1], workers=0)
    >>> [scores.alpha for scores in result.alphas]
    [0.0, 0.5, 1.0]
    >>> sorted(result.alphas[1].as_dict())
    ['alpha', 'in_domain', 'out_of_domain', 'splits']
    """
    alphas = as_list(alphas)
    check(NUMBERS, alphas=alphas, save=save)
    check_loading(suite, batch_size, workers)
    alphas = sort_alphas(alphas)
    saved_alphas = [alpha for alpha in alphas if alpha in save]
    if len(saved_alphas) < len({*save}):
        raise CarftError(
            f"weights to save: alphas {format_alphas(save)}; expected some of "
            f"{format_alphas(alphas)}"
        )
    run = as_run(run, device)
    options = LoadingOptions(run.device, batch_size, workers, as_text(data_dir))
    weights_names = {alpha: weights_name(alpha) for alpha in saved_alphas}
    folder = check_output_folder(output, [WISE_FT_TABLE, *CURVE_FILES, *weights_names.values()])

    test = make_suite_test(suite, run, options) if suite else None
    splits = [] if suite else splitting.read_splits(run, options.data_dir)
    set_alpha = make_alpha_setter(run, as_text(original))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    def predict_by_alphas(images: Tensor) -> Iterator[Tensor]:
        """The logits of each alpha in turn, without a copy of the weights for each."""
        for alpha in alphas:
            set_alpha(alpha)
            yield run.algorithm.predict(images)

    try:
        measured = measure_variants(predict_by_alphas, splits, test, options, variants=len(alphas))
        result = _make_result(run, alphas, measured, test)
        if folder:
            files.save_text(folder / WISE_FT_TABLE, json.dumps(result.as_dict(), indent=1) + "\n")
            _draw_curve(folder, result)
            for alpha, name in weights_names.items():
                set_alpha(alpha)
                save_weights(folder / name, _content_at(run, alpha))
    finally:
        set_alpha(1.0)
    return result


def sort_alphas(alphas: Iterable[float]) -> list[float]:
    """The alphas in ascending order; CarftError unless they are different numbers from 0 to 1."""
    ascending = sorted(alpha + 0.0 for alpha in alphas)  # -0.0 is 0
    is_in_range = all(0 <= alpha <= 1 for alpha in ascending)
    if not is_in_range or len(set(ascending)) < len(ascending):
        raise CarftError(
            f"--alphas {format_alphas(ascending)}: expected different numbers from 0 (the original "
            "CLIP) to 1 (the run)"
        )
    return ascending


def format_alphas(alphas: Sequence[float]) -> str:
    """The alphas as words on a command line."""
    return " ".join(f"{alpha:g}" for alpha in alphas)


def weights_name(alpha: float) -> str:
    """The file name of an alpha's weights: two decimals, or more if needed."""
    rounded = f"{alpha:.2f}"
    return f"model_alpha_{rounded if float(rounded) == alpha else repr(alpha)}.pkl"


def make_alpha_setter(run: Run, original: str | None) -> Callable[[float], None]:
    """What makes the run's algorithm predict by the weights of an alpha.

    ``original``: the CLIP that the run started from, as in `saved.load_original_clip`. Raises CarftError
    for algorithms that train nothing or the text encoder or that predict by more than the encoder
    and the head, for a random head, and as `saved.load_original_clip`.
    """
    _require_interpolable(run)
    algorithm = run.algorithm

    # What training has not moved stays as it is, to the bit.
    state = algorithm.state_dict()
    moved = {
        name: weights.to(run.device)
        for name, weights in saved.load_original_weights(run, original).items()
        if weights.is_floating_point() and not torch.equal(state[name].cpu(), weights)
    }
    tuned = {name: state[name].clone() for name in moved}

    def set_alpha(alpha: float) -> None:
        weights = merge_weights.interpolate(moved, tuned, alpha)
        algorithm.load_state_dict(weights, strict=False)

    return set_alpha


def _require_interpolable(run: Run) -> None:
    saved.require_clip_with_head(run)
    algorithm = run.args["algorithm"]
    reason = ""
    if run.algorithm.is_constant:
        reason = "which trains nothing; expected one that does"
    if run.algorithm.trains_text:
        reason = "whose head is made by its text encoder; set wise_alpha before training"
    if run.hparams["head_init"] == "random" and run.algorithm.trains_head:
        reason = "which started from a random head; expected one with head_init 'zero-shot'"
    if reason:
        raise CarftError(f"{run.path} is a run of {algorithm}, {reason}")


def get_effective_alpha(run: Run) -> float:
    """How far the run's own weights are from the original CLIP to what was fine-tuned.

    A soup is what was fine-tuned, whatever its runs were: its weights are at 1.
    """
    if run.alpha is not None:
        return run.alpha
    return 1.0 if run.soup is not None else float(run.hparams["wise_alpha"])


def _make_result(
    run: Run,
    alphas: Sequence[float],
    measured: Sequence[tuple[SplitAccuracies, SuiteScores | None]],
    test: SuiteTest | None,
) -> WiseFT:
    """The result for a run, by what was measured at each alpha."""
    scores = []
    evaluations = []
    for alpha, (accuracies, suite) in zip(alphas, measured):
        if test is None or suite is None:
            in_domain = accuracies.in_domain
            out_of_domain = accuracies.out_of_domain
            scores.append(AlphaScores(alpha, in_domain, out_of_domain, splits=accuracies))
            continue
        in_distribution = suite.sets.get(test.suite.in_distribution)
        in_domain = in_distribution.accuracy if in_distribution else None
        scores.append(AlphaScores(alpha, in_domain, suite.means["mean"], suite=suite))
        model = {**run_facts(run), "wise_ft_alpha": alpha * get_effective_alpha(run)}
        evaluations.append(SuiteEvaluation(model, suite))

    return WiseFT(
        run=str(run.path),
        algorithm=run.args["algorithm"],
        dataset=run.args["dataset"],
        test_envs=list(run.args["test_envs"]),
        step=run.step,
        run_alpha=run.alpha,
        transform=splitting.transform_name(run),
        alphas=scores,
        title=f"{run.title} on {benchmarks.dataset_title(run.args['dataset'])}",
        suite_evaluations=evaluations,
    )


def _draw_curve(folder: Path, result: WiseFT) -> None:
    """Write the curve, if all of its points are known."""
    points = [
        CurvePoint(scores.alpha, scores.in_domain, scores.out_of_domain)
        for scores in result.alphas
        if scores.in_domain is not None and scores.out_of_domain is not None
    ]
    if len(points) == len(result.alphas):
        is_on_suite = bool(result.suite_evaluations)
        save_curve(folder, points, result.title, is_on_suite)


def _content_at(run: Run, alpha: float) -> dict[str, Any]:
    """The weights file of an alpha, by the weights that the run has now: a file like model.pkl."""
    state = run.algorithm.state_dict()
    content: dict[str, Any] = {
        **run.content,
        "model_dict": {name: tensor.detach().cpu().clone() for name, tensor in state.items()},
    }
    if run.soup is not None:
        content["soup"] = run.soup
    content["wise_ft_alpha"] = alpha * get_effective_alpha(run)
    content["wise_ft_step"] = run.step
    return content


class CurvePoint(NamedTuple):
    """An alpha and its two accuracies, as shares of 1."""

    alpha: float
    in_domain: float
    out_of_domain: float


def save_curve(folder: Path, points: Sequence[CurvePoint], title: str, is_on_suite: bool) -> None:
    """Write the figure into the folder, as CURVE_FILES; the same points give the same bytes."""
    figure = curve_figure(points, title, is_on_suite)
    for name in CURVE_FILES:
        kind = name.rpartition(".")[2]
        metadata = {"Date": None} if kind == "svg" else None
        draw = functools.partial(figure.savefig, format=kind, dpi=150, metadata=metadata)
        files.save(folder / name, draw)


def curve_figure(
    points: Sequence[CurvePoint], title: str, is_on_suite: bool
) -> matplotlib.figure.Figure:
    """The curve through the points of all alphas; its ends are labelled, below and above."""
    from matplotlib.figure import Figure

    in_domain, out_of_domain = SUITE_LABELS if is_on_suite else SPLIT_LABELS
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=in_domain, ylabel=out_of_domain)
    places = [(100 * point.in_domain, 100 * point.out_of_domain) for point in points]
    axes.plot(*zip(*places), color=LINE_COLOR, marker="o", markersize=5)
    axes.margins(LABEL_MARGIN)
    heading = f"{title}: (1 - α) original + α fine-tuned"
    axes.set_title(heading, fontsize=10, parse_math=False)

    # The first below its point, the last above: they do not meet, wherever the points are.
    ends = {0: ("top", -LABEL_OFFSET), len(points) - 1: ("bottom", LABEL_OFFSET)}
    for number, (alignment, offset) in ends.items():
        alpha = points[number].alpha
        axes.annotate(
            f"{alpha:g}{ENDS.get(alpha, '')}",
            places[number],
            textcoords="offset points",
            xytext=(0, offset),
            ha="center",
            va=alignment,
            fontsize=8,
        )
    return figure
