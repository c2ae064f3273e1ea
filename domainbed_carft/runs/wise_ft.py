"""WiSE-FT: a run measured, plotted and saved at weights between the original CLIP and its own."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs import wise_ft_curve
from domainbed_carft.runs.alphas import listed_alphas, sorted_alphas, weights_name
from domainbed_carft.runs.interpolation import Interpolation, reached_alpha
from domainbed_carft.runs.layer_shares import LINEAR, UNIFORM
from domainbed_carft.runs.measuring import (
    LoadingOptions,
    Predictor,
    SplitAccuracies,
    count_predictions,
    split_accuracies,
)
from domainbed_carft.runs.saved import TrainedRun
from domainbed_carft.runs.splits import Split
from domainbed_carft.runs.suite_evaluation import SuiteTest, run_facts, suite_test
from domainbed_carft.runs.suite_scores import SuiteEvaluation, SuiteScores
from domainbed_carft.runs.wise_ft_curve import SPLIT_LABELS, SUITE_LABELS, CurvePoint

TABLE = "wise_ft.json"


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
    another run, the alpha of its weights. ``layers``: one of `layer_shares.LAYERS`. ``title``: of
    the curve. ``suite_evaluations``: on a suite the evaluation of each alpha, for the job's
    records.
    """

    run: str
    algorithm: str
    dataset: str
    test_envs: list[int]
    step: int | None
    run_alpha: float | None
    layers: str
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
            "layers": self.layers,
            "transform": self.transform,
            "alphas": [scores.as_dict() for scores in self.alphas],
        }


def wise_ft(
    run: TrainedRun,
    alphas: Iterable[float],
    options: LoadingOptions,
    *,
    suite: str | None = None,
    original: str | None = None,
    folder: Path | None = None,
    saved_alphas: Sequence[float] = (),
    layers: str = UNIFORM,
) -> WiseFT:
    """Evaluate a run at all ``alphas``, in one pass over the data; the run is left as it was.

    ``suite``: on its test sets, instead of the splits. ``original``: the CLIP that the run started
    from, as in `saved.original_clip`. ``folder``: where to write the results (TABLE), the curve
    (`wise_ft_curve.FILES`), and the weights of ``saved_alphas``; None writes nothing. ``layers``:
    "linear" lets alpha count for the first block only, and the shares of the blocks after it grow
    to 1 at the last, as LiNeS does.

    Raises CarftError for alphas that are not different numbers from 0 to 1, for ``saved_alphas``
    that are not among them, if one of the files is there already, and as `Interpolation`,
    `splits.splits` and `suite_test`.
    """
    alphas = sorted_alphas(alphas)
    if not set(saved_alphas) <= set(alphas):
        raise CarftError(
            f"weights to save: alphas {listed_alphas(saved_alphas)}; expected some of "
            f"{listed_alphas(alphas)}"
        )
    saved_alphas = [alpha for alpha in alphas if alpha in saved_alphas]
    if folder:
        weights_names = [weights_name(alpha) for alpha in saved_alphas]
        require_new(folder, [TABLE, *wise_ft_curve.FILES, *weights_names])

    test = suite_test(suite, run, options) if suite else None
    splits = [] if suite else splitting.splits(run, options.data_dir)
    interpolation = Interpolation(run, options.device, original, layers)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    try:
        if test:
            scores = _scores_on_suite(test, interpolation, alphas)
        else:
            scores = _scores_on_splits(splits, run, interpolation, alphas, options)
        result = _result_of(run, scores, layers)

        if folder:
            _save_results(result, folder)
            for alpha in saved_alphas:
                interpolation.set(alpha)
                content = _weights_content(run, alpha, layers, interpolation.state())
                files.save(folder / weights_name(alpha), functools.partial(torch.save, content))
    finally:
        interpolation.set(1.0)
    return result


def _alpha_predictor(interpolation: Interpolation, alphas: Sequence[float]) -> Predictor:
    """Predicts by the weights of each alpha in turn, without a copy of the weights for each."""

    def predict(pictures: Tensor) -> Iterator[Tensor]:
        for alpha in alphas:
            interpolation.set(alpha)
            yield interpolation.algorithm.predict(pictures)

    return predict


def _scores_on_suite(
    test: SuiteTest, interpolation: Interpolation, alphas: Sequence[float]
) -> list[AlphaScores]:
    predict = _alpha_predictor(interpolation, alphas)
    scores = []
    for alpha, suite_scores in zip(alphas, test.scores(predict, variants=len(alphas))):
        in_distribution = suite_scores.sets.get(test.suite.in_distribution)
        scores.append(
            AlphaScores(
                alpha,
                in_domain=in_distribution.accuracy if in_distribution else None,
                out_of_domain=suite_scores.means["mean"],
                suite=suite_scores,
            )
        )
    return scores


def _scores_on_splits(
    splits: Sequence[Split],
    run: TrainedRun,
    interpolation: Interpolation,
    alphas: Sequence[float],
    options: LoadingOptions,
) -> list[AlphaScores]:
    counts = count_predictions(
        splits,
        _alpha_predictor(interpolation, alphas),
        options,
        variants=len(alphas),
        num_classes=len(run.classes),
    )
    scores = []
    for alpha, alpha_counts in zip(alphas, counts):
        means = split_accuracies(splits, alpha_counts)
        scores.append(AlphaScores(alpha, means.in_domain, means.out_of_domain, splits=means))
    return scores


def _result_of(run: TrainedRun, scores: list[AlphaScores], layers: str) -> WiseFT:
    dataset = run.args["dataset"]
    facts = run_facts(run)
    evaluations = []
    for alpha_scores in scores:
        if alpha_scores.suite:
            alpha = alpha_scores.alpha * reached_alpha(run)
            model = {**facts, "wise_ft_alpha": alpha}
            evaluations.append(SuiteEvaluation(model, alpha_scores.suite))

    return WiseFT(
        run=str(run.path),
        algorithm=run.args["algorithm"],
        dataset=dataset,
        test_envs=list(run.args["test_envs"]),
        step=run.step,
        run_alpha=run.alpha,
        layers=layers,
        transform=splitting.transform_name(run),
        alphas=scores,
        title=_title(run, layers),
        suite_evaluations=evaluations,
    )


def _title(run: TrainedRun, layers: str) -> str:
    suffix = ", linear layers" if layers == LINEAR else ""
    return f"{run.title} on {benchmarks.dataset_title(run.args['dataset'])}{suffix}"


def _save_results(result: WiseFT, folder: Path) -> None:
    """Write the table, and the curve if all of its points are known."""
    files.save_text(folder / TABLE, json.dumps(result.as_dict(), indent=1) + "\n")

    points = [
        CurvePoint(scores.alpha, scores.in_domain, scores.out_of_domain)
        for scores in result.alphas
        if scores.in_domain is not None and scores.out_of_domain is not None
    ]
    if len(points) == len(result.alphas):
        labels = SUITE_LABELS if result.suite_evaluations else SPLIT_LABELS
        wise_ft_curve.save(folder, points, result.title, labels)


def _weights_content(
    run: TrainedRun, alpha: float, layers: str, state: dict[str, Tensor]
) -> dict[str, Any]:
    """The weights file of an alpha: a file like model.pkl."""
    content = {**run.content, "model_dict": state}
    if run.soup is not None:
        content["soup"] = run.soup
    content["wise_ft_alpha"] = alpha * reached_alpha(run)
    content["wise_ft_step"] = run.step
    if layers == LINEAR:
        content["wise_ft_layers"] = layers
    return content


def require_new(folder: Path, names: Iterable[str]) -> None:
    """Raise CarftError if one of the files is in the folder."""
    existing = [name for name in names if os.path.lexists(folder / name)]
    if existing:
        raise CarftError(
            f"{folder} already has {', '.join(existing)}; choose another --output, or remove them"
        )
