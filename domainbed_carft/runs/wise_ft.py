"""WiSE-FT: evaluate and save weights between a run and its original CLIP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.arguments import NUMBERS, TEXT, require_kind
from domainbed_carft.errors import CarftError
from domainbed_carft.paths import AnyPath, as_list, as_text
from domainbed_carft.runs import BATCH_SIZE, merge_weights, saved
from domainbed_carft.runs.predictions import LoadingOptions, check_loading
from domainbed_carft.runs.run import Run
from domainbed_carft.runs.saved import AnyRun, as_run, check_output_folder, save_weights
from domainbed_carft.runs.scores import Scores, describe_run, measure_splits
from domainbed_carft.runs.splits import read_data
from domainbed_carft.runs.suite_files import measure_and_record
from domainbed_carft.runs.suites import make_suite_test

DEFAULT_ALPHAS = tuple(n / 10 for n in range(11))

WISE_FT_TABLE = "wise_ft.json"


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
    record: bool = False,
) -> dict[float, Scores]:
    """Evaluate weights between the original CLIP (alpha 0) and a run (alpha 1).

    WiSE-FT, Wortsman et al., arXiv 2109.01903. All alphas are evaluated in one pass over the
    images, and the run is not changed.

    Args:
        run: a `Run`, a job's folder, or a weights file.
        alphas: different numbers from 0 to 1.
        suite: name of a suite of test sets to evaluate on instead of the splits.
        data_dir: the folder that contains the dataset's folder or, for your own data, the data
            folder itself. Default: the recorded one.
        device: such as "cpu" or "cuda:1". Default: the device of a `Run`, otherwise the GPU if
            there is one.
        original: the CLIP checkpoint that the run started from; required unless it is a published
            one.
        output: a folder for wise_ft.json and saved weights. Default: nothing is written.
        save: the alphas whose weights are saved in ``output``.
        batch_size: images per batch.
        workers: number of processes that load images. Default: one per core if there are many
            images.
        record: save the evaluation on a suite in the folder of the run's job, for the tables of
            `collect`, as ``carft wise-ft`` does.

    Returns:
        The scores at each alpha, in ascending order.

    Raises:
        CarftError: if ``alphas`` or ``save`` is invalid, a file exists in ``output``, the run
            cannot be interpolated (it trains nothing, the text encoder, a random head or parts
            that CLIP does not have), or the data is missing or differs from the run's.

    Examples:
        >>> scores = wise_ft(job, [0, 0.5, 1], workers=0)
        >>> list(scores)
        [0.0, 0.5, 1.0]
        >>> sorted(scores[0.5].means)
        ['in_domain', 'out_of_domain']
    """
    alphas = as_list(alphas)
    require_kind(NUMBERS, alphas=alphas, save=save)
    require_kind(TEXT, is_optional=True, suite=suite)
    check_loading(batch_size, workers)
    alphas = sort_alphas(alphas)
    saved_alphas = [alpha for alpha in alphas if alpha in save]
    if len(saved_alphas) < len({*save}):
        raise CarftError(
            f"weights to save: alphas {format_alphas(save)}; expected some of "
            f"{format_alphas(alphas)}"
        )
    run = as_run(run, device)
    options = LoadingOptions(run.device, batch_size, workers, as_text(data_dir))
    weights_names = {alpha: name_weights(alpha) for alpha in saved_alphas}
    folder = check_output_folder(output, [WISE_FT_TABLE, *weights_names.values()])

    test = make_suite_test(suite, run, options) if suite else None
    splits = [] if suite else read_data(run, options.data_dir).splits
    set_alpha = make_alpha_setter(run, as_text(original))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    def predict_by_alphas(images: Tensor) -> Iterator[Tensor]:
        """Yield the logits of each alpha, without a copy of the weights for each alpha."""
        for alpha in alphas:
            set_alpha(alpha)
            yield run.algorithm.predict(images)

    description = describe_run(run)
    descriptions = [
        replace(description, wise_ft_alpha=alpha * get_effective_alpha(run)) for alpha in alphas
    ]
    try:
        if test:
            measured = (
                measure_and_record(test, run, predict_by_alphas, descriptions, as_text(original))
                if record
                else test.measure(predict_by_alphas, descriptions)
            )
        else:
            measured = measure_splits(splits, predict_by_alphas, options, descriptions)
        scores = dict(zip(alphas, measured))
        if folder:
            document = [{"alpha": alpha, **asdict(part)} for alpha, part in scores.items()]
            files.save_text(folder / WISE_FT_TABLE, json.dumps(document, indent=1) + "\n")
            for alpha, name in weights_names.items():
                set_alpha(alpha)
                save_weights(folder / name, _make_content(run, alpha))
    finally:
        set_alpha(1.0)
    return scores


def sort_alphas(alphas: Iterable[float]) -> list[float]:
    """Return the alphas in ascending order; raises CarftError if they are invalid."""
    ascending = sorted(alpha + 0.0 for alpha in alphas)  # turns -0.0 into 0.0
    invalid = [alpha for alpha in ascending if not 0 <= alpha <= 1]
    if invalid or len(set(ascending)) < len(ascending):
        raise CarftError(
            f"--alphas {format_alphas(ascending)}: expected different numbers from 0 (the original "
            "CLIP) to 1 (the run)"
        )
    return ascending


def format_alphas(alphas: Sequence[float]) -> str:
    """Return the alphas as on a command line."""
    return " ".join(f"{alpha:g}" for alpha in alphas)


def name_weights(alpha: float) -> str:
    """Return the file name of the weights at an alpha, with two decimals or more if needed."""
    rounded = f"{alpha:.2f}"
    return f"model_alpha_{rounded if float(rounded) == alpha else repr(alpha)}.pkl"


def make_alpha_setter(run: Run, original: str | None) -> Callable[[float], None]:
    """Return a function that sets the weights of the run's algorithm to an alpha.

    Args:
        run: the run, whose algorithm is changed in place.
        original: the CLIP checkpoint that the run started from, see `saved.load_original_clip`.

    Raises:
        CarftError: if the algorithm trains nothing or the text encoder, started from a random head,
            or predicts with more than encoder and head, or if the original cannot be loaded.
    """
    _require_interpolable(run)
    algorithm = run.algorithm

    # Weights that training has not changed are skipped, so they remain bit-identical.
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
        reason = "which trains nothing; expected a run that trains weights"
    if run.algorithm.trains_text:
        reason = "whose head depends on its text encoder; set wise_alpha before training"
    if run.hparams["head_init"] == "random" and run.algorithm.trains_head:
        reason = "which started from a random head; expected a run with head_init 'zero-shot'"
    if reason:
        raise CarftError(f"{run.path} is a run of {algorithm}, {reason}")


def get_effective_alpha(run: Run) -> float:
    """Return the alpha of the run's weights between the original CLIP and the fine-tuned weights.

    A soup has alpha 1, whatever the alphas of its members.
    """
    if run.alpha is not None:
        return run.alpha
    return 1.0 if run.soup is not None else float(run.hparams["wise_alpha"])


def _make_content(run: Run, alpha: float) -> dict[str, Any]:
    """Return the content of the weights file at an alpha, with the run's current weights."""
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
