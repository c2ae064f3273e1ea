"""Weights between and among runs, measured and written: WiSE-FT, LiNeS, soups, Model Stock.

The formulas are in `merge_weights`. The greedy soup takes runs from the best on and keeps one if
the mean with it is strictly better, by the mean accuracy on the out-splits of the training
environments alone. Nothing depends on the order in which the runs of a soup are given: all are
judged on the same pictures, through the test transform, and added in the order of their files'
digests.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.paths import AnyPath, as_list, as_path, as_text
from domainbed_carft.runs import BATCH_SIZE, merge_weights, saved, wise_ft_curve
from domainbed_carft.runs import splits as splitting
from domainbed_carft.runs.predictions import (
    LoadingOptions,
    Predictor,
    SplitAccuracies,
    choose_device,
    predict_rows,
    run_predictor,
    split_accuracies,
)
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import AnyRun, as_run, load_run
from domainbed_carft.runs.saved_checks import LINEAR, UNIFORM, UNKNOWN_SOUP
from domainbed_carft.runs.soup_members import (
    Member,
    mean_weights,
    members_of,
    require_alike,
    shared_content,
)
from domainbed_carft.runs.splits import Split
from domainbed_carft.runs.suites import (
    SuiteEvaluation,
    SuiteScores,
    SuiteTest,
    run_facts,
    suite_test,
)
from domainbed_carft.runs.wise_ft_curve import CurvePoint

DEFAULT_ALPHAS = tuple(n / 10 for n in range(11))

WISE_FT_TABLE = "wise_ft.json"
SOUP_TABLE = "soup.json"
SOUP_FILES = {"uniform": "model_soup_uniform.pkl", "greedy": "model_soup_greedy.pkl"}
STOCK_TABLE = "model_stock.json"
STOCK_FILE = "model_stock.pkl"

# Kind of a soup -> how its runs and their shares were chosen.
CHOSEN_BY = {
    "uniform": "all of the runs that were given",
    "greedy": "from the best run on, each that strictly improves the mean accuracy on the "
    "out-splits of the training environments, through the test transform",
    "model-stock": "all of the runs that were given; each tensor at its ratio between the original "
    "CLIP and their mean, by the angle between the runs",
}


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
    another run, the alpha of its weights. ``layers``: "uniform" or "linear". ``title``: of the
    curve. ``suite_evaluations``: on a suite the evaluation of each alpha, for the job's records.
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


@dataclass(frozen=True)
class Soup:
    """Weights made of several runs' weights, and their accuracies as shares of 1.

    ``kind``: "uniform", "greedy" or "model-stock". ``members``: best in validation first. With a
    ``suite`` the ``accuracies`` are of the out-splits of the training environments alone.
    """

    kind: str
    members: Sequence[Member]
    accuracies: SplitAccuracies
    suite: SuiteScores | None

    def as_dict(self) -> dict[str, Any]:
        """The soup, for JSON."""
        return {
            "soup": self.kind,
            "chosen_by": CHOSEN_BY[self.kind],
            "runs": [str(member.run.path) for member in self.members],
            **asdict(self.accuracies),
            **(self.suite.as_dict() if self.suite else {}),
        }

    def description(self) -> dict[str, Any]:
        """What the weights file says of itself; a member's ``weight`` is its share of the mean."""
        weight = 1 / len(self.members)
        return {
            "kind": self.kind,
            "chosen_by": CHOSEN_BY[self.kind],
            "in_domain": self.accuracies.in_domain,
            "out_of_domain": self.accuracies.out_of_domain,
            "members": [member.description(weight) for member in self.members],
        }


@dataclass(frozen=True)
class Soups:
    """The uniform and the greedy soup of the same runs.

    ``arguments``: those that the runs share, by name. ``transform``: as of `splits.transform_name`.
    """

    arguments: Mapping[str, Any]
    transform: str
    uniform: Soup
    greedy: Soup

    @property
    def has_unread_sets(self) -> bool:
        """Whether a test set of the suite is there but could not be read."""
        return any(soup.suite and soup.suite.unread for soup in (self.uniform, self.greedy))

    def as_dict(self) -> dict[str, Any]:
        """What soup.json has."""
        return {
            **_shared_arguments(self.arguments),
            "transform": self.transform,
            "runs": [
                {**member.as_dict(), "validation": member.validation}
                for member in self.uniform.members
            ],
            "soups": [self.uniform.as_dict(), self.greedy.as_dict()],
        }


@dataclass(frozen=True)
class ModelStock(Soup):
    """Model Stock of some runs.

    ``arguments``, ``transform``: as of `Soups`. ``ratios``: tensor that training has moved -> its
    share of the runs' mean, from 0 (the original CLIP) to 1.
    """

    arguments: Mapping[str, Any]
    transform: str
    ratios: Mapping[str, float]

    @property
    def has_unread_sets(self) -> bool:
        """Whether a test set of the suite is there but could not be read."""
        return bool(self.suite and self.suite.unread)

    def as_dict(self) -> dict[str, Any]:
        """What model_stock.json has."""
        return {
            **_shared_arguments(self.arguments),
            "transform": self.transform,
            **super().as_dict(),
            "runs": [member.as_dict() for member in self.members],
            "ratios": dict(self.ratios),
        }


def _shared_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: arguments.get(name) for name in ("dataset", "test_envs", "trial_seed")}


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
    layers: str = UNIFORM,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> WiseFT:
    """The accuracies at weights between the original CLIP (alpha 0) and a run (alpha 1).

    One pass over the pictures serves all alphas; the run itself is left as it was. ``original``:
    the CLIP that the run started from, needed unless that is a published one. ``output``: a folder
    for the results, the curve, and the weights of the alphas in ``save``; by default nothing is
    written. ``layers``: "uniform", or "linear" for shares that grow from alpha in the first block
    to 1 in the last, as in LiNeS. The others as in `evaluate`.

    Raises CarftError unless the alphas are different numbers from 0 to 1 and ``save`` has some of
    them, if a file is in ``output`` already, for runs that no line connects to a CLIP, and as
    `evaluate`.

    >>> result = wise_ft(job, [0, 0.5, 1], workers=0)
    >>> [scores.alpha for scores in result.alphas]
    [0.0, 0.5, 1.0]
    >>> sorted(result.alphas[1].as_dict())
    ['alpha', 'in_domain', 'out_of_domain', 'splits']
    """
    alphas = sorted_alphas(alphas)
    saved_alphas = [alpha for alpha in alphas if alpha in save]
    if len(saved_alphas) < len({*save}):
        raise CarftError(
            f"weights to save: alphas {listed_alphas(save)}; expected some of "
            f"{listed_alphas(alphas)}"
        )
    run = as_run(run, device)
    options = LoadingOptions(run.device, batch_size, workers, as_text(data_dir))
    weights_names = {alpha: weights_name(alpha) for alpha in saved_alphas}
    folder = _new_folder(output, [WISE_FT_TABLE, *wise_ft_curve.FILES, *weights_names.values()])

    test = suite_test(suite, run, options) if suite else None
    splits = [] if suite else splitting.splits(run, options.data_dir)
    set_alpha = alpha_setter(run, as_text(original), layers)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    def predict_by_alphas(pictures: Tensor) -> Iterator[Tensor]:
        """The logits of each alpha in turn, without a copy of the weights for each."""
        for alpha in alphas:
            set_alpha(alpha)
            yield run.algorithm.predict(pictures)

    try:
        measured = _measure(predict_by_alphas, splits, test, options, variants=len(alphas))
        result = _wise_ft_of(run, alphas, measured, test, layers)
        if folder:
            _write_table(folder / WISE_FT_TABLE, result.as_dict())
            _draw_curve(folder, result)
            for alpha, name in weights_names.items():
                set_alpha(alpha)
                _write_weights(folder / name, _content_at(run, alpha, layers))
    finally:
        set_alpha(1.0)
    return result


def soup(
    runs: AnyRun | Iterable[AnyRun],
    *,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    output: AnyPath | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> Soups:
    """The means of several runs' weights: of all (uniform), and of those that help (greedy).

    ``output``: a folder for the results and the weights; by default nothing is written. With a
    ``suite``, of the splits only the out-splits of the training environments are read. The others
    as in `evaluate`.

    Raises CarftError unless there are two runs or more that share the initial CLIP, the prompts,
    and the division of the data; if a file is in ``output`` already; and as `evaluate`.

    >>> soups = soup([job, second_job], workers=0)
    >>> [len(soups.uniform.members), soups.greedy.kind]
    [2, 'greedy']
    >>> soups.greedy.accuracies.in_domain >= soups.uniform.members[0].validation
    True
    """
    loaded, chosen_device = _loaded(runs, device)
    require_alike(loaded)
    folder = _new_folder(output, [SOUP_TABLE, *SOUP_FILES.values()])
    options = LoadingOptions(chosen_device, batch_size, workers, as_text(data_dir))
    measurement = _SoupMeasurement.of(members_of(loaded), options, suite)

    members = [
        replace(member, validation=measurement.validation_accuracy([member]))
        for member in measurement.members
    ]
    best_first = sorted(members, key=lambda member: -member.validation)
    chosen = choose_greedily(best_first, measurement.validation_accuracy)
    uniform, greedy = (
        Soup(kind, members, *measurement.evaluate(mean_weights(members)))
        for kind, members in (("uniform", best_first), ("greedy", chosen))
    )
    run = measurement.run
    soups = Soups(run.args, splitting.transform_name(run), uniform, greedy)

    if folder:
        _write_table(folder / SOUP_TABLE, soups.as_dict())
        for one_soup in (uniform, greedy):
            weights = mean_weights(one_soup.members)
            content = measurement.content_of(one_soup, weights)
            _write_weights(folder / SOUP_FILES[one_soup.kind], content)
    return soups


def model_stock(
    runs: AnyRun | Iterable[AnyRun],
    *,
    suite: str | None = None,
    data_dir: AnyPath | None = None,
    device: str | None = None,
    original: AnyPath | None = None,
    output: AnyPath | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
) -> ModelStock:
    """Two or more runs and their original CLIP, combined by Model Stock (arXiv 2403.19522).

    ``original``: the CLIP that the runs started from, needed unless that is a published one.
    ``output``: a folder for the results and the weights; by default nothing is written. The others
    as in `soup`.

    Raises CarftError as `soup`, and if the original is missing or not the runs'.

    >>> stock = model_stock([job, second_job], workers=0)
    >>> all(0 <= ratio <= 1 for ratio in stock.ratios.values())
    True
    """
    loaded, chosen_device = _loaded(runs, device)
    require_alike(loaded)
    folder = _new_folder(output, [STOCK_TABLE, STOCK_FILE])
    options = LoadingOptions(chosen_device, batch_size, workers, as_text(data_dir))
    members = members_of(loaded)
    measurement = _SoupMeasurement.of(members, options, suite)

    start = saved.original_weights(measurement.run, as_text(original))
    between, ratios = merge_weights.model_stock([member.state for member in members], start)
    weights = {**mean_weights(members), **between}
    accuracies, suite_scores = measurement.evaluate(weights)
    stock = ModelStock(
        kind="model-stock",
        members=members,
        accuracies=accuracies,
        suite=suite_scores,
        arguments=measurement.run.args,
        transform=splitting.transform_name(measurement.run),
        ratios=ratios,
    )
    if folder:
        _write_table(folder / STOCK_TABLE, stock.as_dict())
        _write_weights(folder / STOCK_FILE, measurement.content_of(stock, weights))
    return stock


def choose_greedily(
    best_first: Sequence[Member], validation_accuracy: Callable[[Sequence[Member]], float]
) -> list[Member]:
    """The best run, and each after it with which the accuracy of the mean strictly rises."""
    chosen = [best_first[0]]
    best_accuracy = chosen[0].validation

    for member in best_first[1:]:
        accuracy = validation_accuracy([*chosen, member])
        if accuracy > best_accuracy:
            chosen.append(member)
            best_accuracy = accuracy
    return chosen


def sorted_alphas(alphas: Iterable[float]) -> list[float]:
    """The alphas in ascending order; CarftError unless they are different numbers from 0 to 1."""
    ascending = sorted(alpha + 0.0 for alpha in alphas)  # -0.0 is 0
    is_in_range = all(0 <= alpha <= 1 for alpha in ascending)
    if not is_in_range or len(set(ascending)) < len(ascending):
        raise CarftError(
            f"--alphas {listed_alphas(ascending)}: expected different numbers from 0 (the original "
            "CLIP) to 1 (the run)"
        )
    return ascending


def listed_alphas(alphas: Sequence[float]) -> str:
    """The alphas as words on a command line."""
    return " ".join(f"{alpha:g}" for alpha in alphas)


def weights_name(alpha: float) -> str:
    """The file name of an alpha's weights: two decimals, or more if needed."""
    rounded = f"{alpha:.2f}"
    return f"model_alpha_{rounded if float(rounded) == alpha else repr(alpha)}.pkl"


def alpha_setter(run: Run, original: str | None, layers: str) -> Callable[[float], None]:
    """What makes the run's algorithm predict by the weights of an alpha.

    ``original``: the CLIP that the run started from, as in `saved.original_clip`. Raises CarftError
    for algorithms that train nothing or the text encoder, for a random head, for linear layers of
    weights that are already between a CLIP and a run or of an encoder without blocks, and as
    `saved.original_clip`.
    """
    _require_interpolable(run, layers)
    algorithm = run.algorithm
    depths = merge_weights.linear_depths(algorithm.encoder) if layers == LINEAR else {}

    # What training has not moved stays as it is, to the bit.
    state = algorithm.state_dict()
    moved = {
        name: weights.to(run.device)
        for name, weights in saved.original_weights(run, original).items()
        if weights.is_floating_point() and not torch.equal(state[name].cpu(), weights)
    }
    tuned = {name: state[name].clone() for name in moved}

    def set_alpha(alpha: float) -> None:
        weights = merge_weights.interpolate(moved, tuned, alpha, depths)
        algorithm.load_state_dict(weights, strict=False)

    return set_alpha


def _require_interpolable(run: Run, layers: str) -> None:
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

    if run.layers == LINEAR:
        raise CarftError(
            f"{run.path} was saved by carft wise-ft --layers linear; expected the run that it was "
            "made from"
        )
    if layers == LINEAR and reached_alpha(run) != 1.0:
        raise CarftError(
            f"--layers linear: {run.path} is already between the original CLIP and a run (alpha "
            f"{reached_alpha(run):g}); expected the run itself, or --layers uniform"
        )


def reached_alpha(run: Run) -> float:
    """How far the run's own weights are from the original CLIP to what was fine-tuned.

    A soup is what was fine-tuned, whatever its runs were: its weights are at 1.
    """
    if run.alpha is not None:
        return run.alpha
    return 1.0 if run.soup is not None else float(run.hparams["wise_alpha"])


def _wise_ft_of(
    run: Run,
    alphas: Sequence[float],
    measured: Sequence[tuple[SplitAccuracies, SuiteScores | None]],
    test: SuiteTest | None,
    layers: str,
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
        model = {**run_facts(run), "wise_ft_alpha": alpha * reached_alpha(run)}
        evaluations.append(SuiteEvaluation(model, suite))

    suffix = ", linear layers" if layers == LINEAR else ""
    return WiseFT(
        run=str(run.path),
        algorithm=run.args["algorithm"],
        dataset=run.args["dataset"],
        test_envs=list(run.args["test_envs"]),
        step=run.step,
        run_alpha=run.alpha,
        layers=layers,
        transform=splitting.transform_name(run),
        alphas=scores,
        title=f"{run.title} on {benchmarks.dataset_title(run.args['dataset'])}{suffix}",
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
        wise_ft_curve.save(folder, points, result.title, is_on_suite)


def _content_at(run: Run, alpha: float, layers: str) -> dict[str, Any]:
    """The weights file of an alpha, by the weights that the run has now: a file like model.pkl."""
    state = run.algorithm.state_dict()
    content: dict[str, Any] = {
        **run.content,
        "model_dict": {name: tensor.detach().cpu().clone() for name, tensor in state.items()},
    }
    if run.soup is not None:
        content["soup"] = run.soup
    content["wise_ft_alpha"] = alpha * reached_alpha(run)
    content["wise_ft_step"] = run.step
    if layers == LINEAR:
        content["wise_ft_layers"] = layers
    return content


def _loaded(runs: AnyRun | Iterable[AnyRun], device: str | None) -> tuple[list[Run], torch.device]:
    """The runs, those that are paths loaded on the CPU, and where to measure.

    That is ``device``, else where the first run is that was loaded before, else the GPU if there is
    one.
    """
    given = as_list(runs)
    loaded = [run if isinstance(run, Run) else load_run(run, device="cpu") for run in given]
    is_loaded = bool(given) and isinstance(given[0], Run)
    return loaded, loaded[0].device if is_loaded and device is None else choose_device(device)


@dataclass(frozen=True)
class _SoupMeasurement:
    """Measures weights that were made of several runs by one ``run``, whose weights are exchanged.

    ``content``: what the files of such weights have in common. ``validation_splits``: those of
    ``splits`` that choose. ``test``: the suite, if there is one.
    """

    members: Sequence[Member]
    run: Run
    content: Mapping[str, Any]
    options: LoadingOptions
    splits: Sequence[Split]
    validation_splits: Sequence[Split]
    test: SuiteTest | None

    @classmethod
    def of(
        cls, members: Sequence[Member], options: LoadingOptions, suite: str | None
    ) -> _SoupMeasurement:
        """Find the pictures; raises CarftError if there are none to choose by."""
        content = shared_content(members, options.data_dir)
        described = {**content, "soup": UNKNOWN_SOUP, "model_dict": mean_weights(members)}
        run = saved.run_of(described, members[0].run.path)

        test = suite_test(suite, run, options) if suite else None
        splits = splitting.splits(run, options.data_dir)
        validation_splits = [
            split for split in splits if not split.is_target and split.name.endswith("_out")
        ]
        if not any(map(len, validation_splits)):
            raise CarftError(f"{run.path} has no out-split of a training environment to choose by")
        return cls(members, run, content, options, splits, validation_splits, test)

    def validation_accuracy(self, members: Sequence[Member]) -> float:
        """The mean accuracy of the members' mean on the validation splits, as a share of 1."""
        self.run.algorithm.load_state_dict(mean_weights(members))
        predict = run_predictor(self.run, self.options.device)
        ((accuracies, _),) = _measure(predict, self.validation_splits, None, self.options)
        assert accuracies.in_domain is not None  # they have pictures
        return accuracies.in_domain

    def evaluate(self, weights: Mapping[str, Tensor]) -> tuple[SplitAccuracies, SuiteScores | None]:
        """The accuracies of a state dict on all splits, or on a suite and the validation splits."""
        self.run.algorithm.load_state_dict(weights)
        predict = run_predictor(self.run, self.options.device)
        # The in-splits take far longer than the suite.
        splits = self.validation_splits if self.test else self.splits
        (measured,) = _measure(predict, splits, self.test, self.options)
        return measured

    def content_of(self, one_soup: Soup, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        """The weights file of a soup: a file like model.pkl."""
        return {**self.content, "soup": one_soup.description(), "model_dict": weights}


def _measure(
    predict: Predictor,
    splits: Sequence[Split],
    test: SuiteTest | None,
    options: LoadingOptions,
    variants: int = 1,
) -> list[tuple[SplitAccuracies, SuiteScores | None]]:
    """The accuracies on splits and suite of each of the ``variants`` that ``predict`` gives."""
    rows_of_variants = predict_rows(splits, predict, options, variants)
    accuracies = [split_accuracies(splits, rows) for rows in rows_of_variants]
    on_suite: list[SuiteScores | None] = [None] * variants
    if test:
        on_suite = [*test.scores(predict, variants)]
    return list(zip(accuracies, on_suite))


def _new_folder(output: AnyPath | None, names: Iterable[str]) -> Path | None:
    """The folder for results; CarftError if one of the files is in it already."""
    if output is None:
        return None
    folder = as_path(output)
    existing = [name for name in names if os.path.lexists(folder / name)]
    if existing:
        raise CarftError(
            f"{folder} already has {', '.join(existing)}; choose another --output, or remove them"
        )
    return folder


def _write_table(path: Path, document: Mapping[str, Any]) -> None:
    files.save_text(path, json.dumps(document, indent=1) + "\n")


def _write_weights(path: Path, content: Mapping[str, Any]) -> None:
    files.save(path, functools.partial(torch.save, dict(content)))
