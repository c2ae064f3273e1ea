"""What is wrong with a declared search or a division of environments, beyond names and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from domainbed_carft.errors import Problem
from domainbed_carft.files.parsing import YamlPath, YamlSource
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.sweep.shape import LEAVE_ONE_OUT, Shape

_FIXED_OR_SEARCHED = "a search chooses one value, and a set value leaves nothing to choose"
_GRID_OR_SEARCH = "a grid makes a table for each value, a search chooses one value"


def problems_of_search(shape: Shape, source: YamlSource) -> Iterator[Problem]:
    """Problems of the key ``search``, at their places."""
    for problem, path in _problems_of_values(shape):
        yield problem.at(source.place(path))
    if shape.search is not None:
        for problem, key in _problems_of_draws_and_stages(shape):
            yield problem.at(source.place(("search", *key)))


def problems_of_divisions(
    shape: Shape, source: YamlSource, datasets: Mapping[str, Dataset]
) -> Iterator[Problem]:
    """Problems of environments that are left out together, at their places."""
    for name, facts in datasets.items():
        n_environments = len(facts.labels)
        if n_environments == 1 or not shape.leaves_out_together(name):
            continue

        path: YamlPath = ("test_environments",)
        if isinstance(shape.test_environments, dict):
            path = ("test_environments", name)
        if LEAVE_ONE_OUT in shape.selection:
            message = f"{LEAVE_ONE_OUT} selects for a single target, not for several together"
            remedy = "select by training-domain, oracle or both"
            yield Problem(message=message, remedy=remedy, place=source.place(path))
        for test_envs in shape.targets(name, facts.labels):
            if len(test_envs) == n_environments:
                message = f"all {n_environments} environments of {name} are left out"
                remedy = "keep at least one to train on"
                yield Problem(message=message, remedy=remedy, place=source.place(path))


def _problems_of_values(shape: Shape) -> Iterator[tuple[Problem, YamlPath]]:
    """Hyperparameters that are both searched and set, each once, and where they are searched."""
    reported = set()
    for cell in shape.cells():
        fixed = shape.hparams_of(cell.dataset, cell.algorithm, cell.variant)
        for name in shape.searched_values(cell.dataset, cell.algorithm):
            if name not in fixed or name in reported:
                continue

            reported.add(name)
            path = _path_of_values(shape, cell.dataset, cell.algorithm, name)
            if name in shape.grid:
                message = f"{name} is in grid and in search: {_GRID_OR_SEARCH}"
                yield Problem(message=message, remedy="remove it from one of them"), path
            else:
                message = (
                    f"{name} of {cell.algorithm} on {cell.dataset} is searched and also set to "
                    f"{fixed[name]!r}: {_FIXED_OR_SEARCHED}"
                )
                remedy = f"remove one of them, or search for no values there: {name}: []"
                yield Problem(message=message, remedy=remedy), path


def _path_of_values(shape: Shape, dataset: str, algorithm: str, name: str) -> YamlPath:
    """Where the searched values of a hyperparameter are that count for a cell."""
    path: YamlPath = ("search", "values", name)
    for index, override in enumerate(shape.overrides):
        if (
            override.search
            and override.covers(dataset, algorithm)
            and name in override.search.values
        ):
            path = ("overrides", index, "search", "values", name)
    return path


def _problems_of_draws_and_stages(shape: Shape) -> Iterator[tuple[Problem, YamlPath]]:
    """Problems of the keys below ``search``, and the keys."""
    search = shape.search
    assert search is not None
    has_values = any(len(shape.members(cell.dataset, cell.algorithm)) > 1 for cell in shape.cells())

    if not has_values and not search.draws:
        message = "the search has nothing to choose from"
        remedy = "list at least two values under values, or give a number of draws"
        yield Problem(message=message, remedy=remedy), ()
    if search.draws and "hparams_seeds" in shape.model_fields_set:
        message = "draws and hparams_seeds both say how many draws there are"
        yield Problem(message=message, remedy="remove one of them"), ("draws",)

    if search.choose_on is None:
        for key in ("repeat_on", "choose_by"):
            if key in search.model_fields_set:
                message = f"{key} needs choose_on, the trials on which the search chooses"
                yield Problem(message=message, remedy="add choose_on"), (key,)
        return

    if "repeat_on" in search.model_fields_set and "trials" in shape.model_fields_set:
        message = "trials and search.repeat_on both name the trials of the tables"
        yield Problem(message=message, remedy="remove one of them"), ("repeat_on",)
    if overlap := sorted({*search.choose_on.seeds} & {*shape.trial_seeds}):
        trials = ", ".join(map(str, overlap))
        message = f"the search chooses on trials that it also repeats: {trials}"
        remedy = f"choose on others, such as {{from: {max(shape.trial_seeds) + 1}, n: 1}}"
        yield Problem(message=message, remedy=remedy), ("choose_on", "trials")
    if len(shape.choices) > 1 or min(shape.choices) > 0:
        message = "draws differ from trial to trial, so that none can be repeated on others"
        yield Problem(message=message, remedy="list values instead"), ("choose_on",)
    if shape.choosing_method is None:
        message = (
            f"the search cannot choose by {', '.join(shape.selection)}, which looks at the target"
        )
        yield Problem(message=message, remedy="add training-domain to selection"), ("choose_on",)
