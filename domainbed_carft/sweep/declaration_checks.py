"""What is wrong with the names and values of a declaration, in the domainbed in use."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.errors import CarftError, HparamProblem, invalid
from domainbed_carft.files.parsing import YamlPath, YamlSource
from domainbed_carft.jobs.job import READ_BY_TRAIN
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.results import published
from domainbed_carft.sweep import host
from domainbed_carft.sweep.declaration import (
    LEAVE_ONE_OUT,
    SINGLE_SOURCE,
    Division,
    Override,
    Shape,
    Variant,
    environment_index,
)
from domainbed_carft.text import unknown

# Leave-one-domain-out trains without two environments.
_MIN_ENVIRONMENTS = 2
_MIN_ENVIRONMENTS_FOR_LEAVE_ONE_OUT = 3

# What a name below one of these keys of a declaration is.
_KINDS = {"datasets": "dataset", "algorithms": "algorithm"}

# The keys that lead to what is wrong, and the message.
_Problem = tuple[YamlPath, str]


def check(shape: Shape, source: YamlSource) -> tuple[dict[str, Dataset], list[str]]:
    """Look up all names of a sweep in the domainbed in use, and check its hyperparameters.

    Returns the facts of each known dataset, and all problems of names and values, behind their
    places. Raises CarftError if that domainbed cannot be imported, or a user's own methods cannot
    be used.
    """
    host.require_own_methods()
    published_rows = list(dict.fromkeys(figure["method"] for figure in published.figures()))

    datasets, dataset_problems = _look_up(host.dataset_facts, shape.datasets, "datasets")
    algorithms, algorithm_problems = _look_up(host.algorithm_class, shape.algorithms, "algorithms")
    _, row_problems = _look_up(
        lambda name: _require_listed("row of published figures", name, published_rows),
        shape.compare_with,
        "compare_with",
    )

    problems = [
        *dataset_problems,
        *algorithm_problems,
        *row_problems,
        *_problems_of_references(shape),
        *itertools.chain.from_iterable(
            _problems_of_environments(shape, name, facts.labels) for name, facts in datasets.items()
        ),
        *_problems_of_search(shape),
        *_problems_of_hparams(shape, list(datasets), algorithms),
    ]
    return datasets, [f"{source.place(path)}: {message}" for path, message in problems]


def _require_listed(kind: str, name: str, valid_names: Sequence[str]) -> str:
    if name not in valid_names:
        raise CarftError(unknown(kind, name, valid_names))
    return name


def _look_up(
    find: Callable[[str], Any], names: Sequence[str], key: str
) -> tuple[dict[str, Any], list[_Problem]]:
    """What ``find`` returns for each of the names listed below a key; its problems with others."""
    values = {}
    problems: list[_Problem] = []
    for index, name in enumerate(names):
        try:
            values[name] = find(name)
        except CarftError as error:
            problems += [((key, index), message) for message in error.problems]
    return values, problems


def _problems_of_references(shape: Shape) -> Iterator[_Problem]:
    """Names in the settings that are not among the sweep's own datasets and algorithms."""
    references: list[tuple[str, YamlPath, str]] = []
    for key in ("steps", "test_environments"):
        value = getattr(shape, key)
        if isinstance(value, dict):
            references += [("datasets", (key, name), name) for name in value]
    for path, block in _blocks(shape):
        for key in _KINDS:
            for index, name in enumerate(getattr(block, key)):
                references.append((key, (*path, key, index), name))

    for key, path, name in references:
        if name not in getattr(shape, key):
            yield path, unknown(f"{_KINDS[key]} of this sweep", name, getattr(shape, key))


def _blocks(shape: Shape) -> list[tuple[YamlPath, Variant]]:
    """The overrides and variants, each with its path."""
    overrides = [(("overrides", index), block) for index, block in enumerate(shape.overrides)]
    return [*overrides, *((("variants", name), block) for name, block in shape.variants.items())]


def _problems_of_environments(
    shape: Shape, dataset: str, labels: Sequence[str]
) -> Iterator[_Problem]:
    """Too few environments of a dataset, unknown ones, and too many that are left out together."""
    has_leave_one_out = LEAVE_ONE_OUT in shape.selection
    fewest = _MIN_ENVIRONMENTS
    if has_leave_one_out:
        fewest = _MIN_ENVIRONMENTS_FOR_LEAVE_ONE_OUT
    if 1 < len(labels) < fewest:
        message = f"{dataset} has 2 environments; leave-one-domain-out needs at least 3"
        yield ("datasets", shape.datasets.index(dataset)), message

    path: YamlPath = ("test_environments",)
    if isinstance(shape.test_environments, dict):
        path = ("test_environments", dataset)
    valid = [f"{label} ({index})" for index, label in enumerate(labels)]
    for keys, environment in _listed_environments(shape.division_of(dataset)):
        if environment_index(environment, labels) is None:
            message = unknown(f"environment of {dataset}", str(environment), valid)
            yield (*path, *keys), message

    if len(labels) == 1 or not shape.leaves_out_together(dataset):
        return
    if has_leave_one_out:
        message = f"{LEAVE_ONE_OUT} selects for a single target, not for several together"
        yield path, f"{message}; select by training-domain, oracle or both"
    for test_envs in shape.targets(dataset, labels):
        if len(test_envs) == len(labels):
            message = f"all {len(labels)} environments of {dataset} are left out"
            yield path, f"{message}; keep at least one to train on"


def _listed_environments(division: Division) -> Iterator[tuple[YamlPath, int | str]]:
    """The environments that a division names, with the keys that lead to each."""
    if division == SINGLE_SOURCE:
        return
    for index, item in enumerate(division):
        if isinstance(item, list):
            yield from (((index, inner), name) for inner, name in enumerate(item))
        else:
            yield (index,), item


@dataclass(frozen=True)
class _Setting:
    """A hyperparameter's value in a declaration, and the jobs that it is for.

    ``covers(dataset, algorithm)``: whether it is for these jobs.
    """

    path: YamlPath
    name: str
    value: Any
    covers: Callable[[str, str], bool]


def _settings(shape: Shape) -> list[_Setting]:
    """All hyperparameters that are set, at the place where they are."""
    blocks: list[tuple[YamlPath, Variant]] = [((), Override(hparams=shape.hparams))]
    settings = [
        _Setting((*path, "hparams", name), name, value, block.covers)
        for path, block in blocks + _blocks(shape)
        for name, value in block.hparams.items()
    ]
    for name, values in shape.grid.items():
        for index, value in enumerate(values):
            settings.append(_Setting(("grid", name, index), name, value, Override().covers))
    if shape.protocol not in (None, "domainbed"):
        settings.append(_Setting(("protocol",), "protocol", shape.protocol, Override().covers))
    return [*settings, *_searched_settings(shape)]


def _searched_settings(shape: Shape) -> Iterator[_Setting]:
    """All values of searches, each for the jobs that have it among theirs."""
    values_by_path: list[tuple[YamlPath, Mapping[str, Sequence[Any]]]] = []
    if shape.search:
        values_by_path.append((("search", "values"), shape.search.values))
    for index, override in enumerate(shape.overrides):
        if override.search:
            path: YamlPath = ("overrides", index, "search", "values")
            values_by_path.append((path, override.search.values))

    for path, values in values_by_path:
        for name, candidates in values.items():
            for index, value in enumerate(candidates):
                has_value = functools.partial(_searches, shape, name, value)
                yield _Setting((*path, name, index), name, value, has_value)


def _searches(shape: Shape, name: str, value: Any, dataset: str, algorithm: str) -> bool:
    """Whether a value is searched for an algorithm on a dataset."""
    return value in shape.searched_values(dataset, algorithm).get(name, ())


def _problems_of_hparams(
    shape: Shape, datasets: Sequence[str], algorithms: Mapping[str, Any]
) -> Iterator[_Problem]:
    """The problems of each setting by its key, then those that an algorithm has with its values."""
    registry = host.module("hparams_registry")
    optional_names = getattr(registry, "OPTIONAL_HPARAMS", ())  # of our harness
    valid_names = functools.cache(
        lambda algorithm, dataset: [
            *registry.default_hparams(algorithm, dataset),
            *optional_names,
        ]
    )

    settings = _settings(shape)
    for setting in settings:
        for message in _problems_of_setting(setting, datasets, algorithms, valid_names):
            yield setting.path, message

    # The weights may be on the nodes of a cluster only, so clip_backbone is not checked.
    for variant in shape.settings.values():
        for dataset in datasets:
            for name, algorithm in algorithms.items():
                if not variant.covers(dataset, name):
                    continue

                for member in shape.members(dataset, name):
                    values = {**shape.hparams_of(dataset, name, variant), **member}
                    values.pop("clip_backbone", None)
                    steps = shape.steps_of(dataset, name)
                    for problem in host.hparam_problems(algorithm, dataset, values, steps):
                        yield _at_its_setting(problem, settings)


def _at_its_setting(problem: str | HparamProblem, settings: Sequence[_Setting]) -> _Problem:
    """A problem where its value is set, the last of several; at ``hparams`` for a default."""
    if isinstance(problem, HparamProblem):
        of_name = [setting for setting in settings if setting.name == problem.name]
        of_value = [setting for setting in of_name if setting.value == problem.value]
        if of_name:
            return (of_value or of_name)[-1].path, problem.behind_its_key()
    return ("hparams",), str(problem)


def _problems_of_setting(
    setting: _Setting,
    datasets: Sequence[str],
    algorithms: Mapping[str, Any],
    valid_names: Callable[[str, str], list[str]],
) -> Iterator[str]:
    """Whether algorithms that a setting is for lack the key; values that train would misread."""
    names_by_algorithm: dict[str, list[str]] = {}  # of algorithms that have no such key
    algorithms_with_key: dict[str, None] = {}
    for dataset in datasets:
        for algorithm, algorithm_class in algorithms.items():
            if not setting.covers(dataset, algorithm):
                continue

            further_names = getattr(algorithm_class, "EXTRA_HPARAMS", ())
            if setting.name not in (*valid_names(algorithm, dataset), *further_names):
                names_by_algorithm.setdefault(algorithm, valid_names(algorithm, dataset))
                continue

            algorithms_with_key[algorithm] = None
            expected, is_valid = READ_BY_TRAIN.get(setting.name, ("", bool))
            if expected and not is_valid(setting.value):
                yield invalid("", setting.value, expected)

    if names_by_algorithm:
        kind = f"hyperparameter of {', '.join(names_by_algorithm)}"
        if algorithms_with_key and setting.path[0] == "hparams":
            listing = ", ".join(algorithms_with_key)
            yield (
                f"no {kind} is called {setting.name!r}; "
                f"move it to overrides, with algorithms: [{listing}]"
            )
            return

        names = dict.fromkeys(name for names in names_by_algorithm.values() for name in names)
        yield unknown(kind, setting.name, names)


_FIXED_OR_SEARCHED = "a search chooses one value, and a set value leaves nothing to choose"
_GRID_OR_SEARCH = "a grid makes a table for each value, a search chooses one value"


def _problems_of_search(shape: Shape) -> Iterator[_Problem]:
    """Problems of the key ``search``."""
    yield from _problems_of_values(shape)
    if shape.search is not None:
        for key, message in _problems_of_draws_and_stages(shape):
            yield ("search", *key), message


def _problems_of_values(shape: Shape) -> Iterator[_Problem]:
    """Hyperparameters that are both searched and set, each once, where they are searched."""
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
                yield path, f"{message}; remove it from one of them"
            else:
                message = (
                    f"{name} of {cell.algorithm} on {cell.dataset} is searched and also set to "
                    f"{fixed[name]!r}: {_FIXED_OR_SEARCHED}; remove one of them, or search for no "
                    f"values there: {name}: []"
                )
                yield path, message


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


def _problems_of_draws_and_stages(shape: Shape) -> Iterator[_Problem]:
    """Problems of the keys below ``search``, which their paths leave out."""
    search = shape.search
    assert search is not None
    has_values = any(len(shape.members(cell.dataset, cell.algorithm)) > 1 for cell in shape.cells())

    if not has_values and not search.draws:
        remedy = "list at least two values under values, or give a number of draws"
        yield (), f"the search has nothing to choose from; {remedy}"
    if search.draws and "hparams_seeds" in shape.model_fields_set:
        message = "draws and hparams_seeds both say how many draws there are"
        yield ("draws",), f"{message}; remove one of them"

    if search.choose_on is None:
        for key in ("repeat_on", "choose_by"):
            if key in search.model_fields_set:
                message = f"{key} needs choose_on, the trials on which the search chooses"
                yield (key,), f"{message}; add choose_on"
        return

    if "repeat_on" in search.model_fields_set and "trials" in shape.model_fields_set:
        message = "trials and search.repeat_on both name the trials of the tables"
        yield ("repeat_on",), f"{message}; remove one of them"
    if overlap := sorted({*search.choose_on.seeds} & {*shape.trial_seeds}):
        trials = ", ".join(map(str, overlap))
        message = f"the search chooses on trials that it also repeats: {trials}"
        remedy = f"choose on others, such as {{from: {max(shape.trial_seeds) + 1}, n: 1}}"
        yield ("choose_on", "trials"), f"{message}; {remedy}"
    if len(shape.choices) > 1 or min(shape.choices) > 0:
        message = "draws differ from trial to trial, so that none can be repeated on others"
        yield ("choose_on",), f"{message}; list values instead"
    if shape.choosing_method is None:
        message = (
            f"the search cannot choose by {', '.join(shape.selection)}, which looks at the target"
        )
        yield ("choose_on",), f"{message}; add training-domain to selection"
