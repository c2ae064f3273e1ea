"""Check the names and values of a declaration against the domainbed in use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from domainbed_carft.errors import CarftError, HparamProblem
from domainbed_carft.files.parsing import YamlPath, YamlSource
from domainbed_carft.jobs.hparams import get_draw_seed
from domainbed_carft.jobs.manifest import Dataset
from domainbed_carft.results import published
from domainbed_carft.suggestions import unknown
from domainbed_carft.sweep import host
from domainbed_carft.sweep.declaration import (
    CLIPOOD,
    LEAVE_ONE_OUT,
    SINGLE_SOURCE,
    Division,
    Shape,
    SweepCell,
    find_environment,
    folder_name,
)

# Leave-one-domain-out holds out two environments and trains on the others.
_MIN_ENVIRONMENTS = 2
_MIN_ENVIRONMENTS_FOR_LEAVE_ONE_OUT = 3

# DomainBed's usual number, for checks of the values that must be below it.
_STEPS_ON_UNKNOWN_DATASET = 5001

# Key of a declaration -> the kind of the names below it, for messages.
_KINDS = {"datasets": "dataset", "algorithms": "algorithm"}

# The keys that lead to a wrong value, and the message.
_Problem = tuple[YamlPath, str]


def check_names(shape: Shape, source: YamlSource) -> tuple[dict[str, Dataset], list[str]]:
    """Look up the datasets and the algorithms of a sweep, and check its hyperparameters.

    Returns:
        The facts of each known dataset, and the problems, each after its place in the file.

    Raises:
        CarftError: the domainbed cannot be imported, or the user's own methods cannot be loaded.
    """
    host.require_own_methods()
    datasets, dataset_problems = _look_up(host.get_dataset_facts, shape.datasets, "datasets")
    missing = host.find_missing_algorithms(shape.algorithms)
    algorithms, algorithm_problems = _look_up(
        host.find_algorithm_class, shape.algorithms, "algorithms", skipped=missing
    )
    problems = [
        *dataset_problems,
        *algorithm_problems,
        *_describe_missing(missing),
        *_check_hparams(shape, datasets, algorithms),
    ]
    return datasets, _place(problems, source)


def _place(problems: Iterable[_Problem], source: YamlSource) -> list[str]:
    return [f"{source.place(path)}: {message}" for path, message in problems]


def check(shape: Shape, source: YamlSource) -> tuple[dict[str, Dataset], list[str]]:
    """Check all names and values of a sweep.

    Returns:
        The facts of each known dataset, and all problems, each after its place in the file.

    Raises:
        CarftError: the domainbed cannot be imported, or the user's own methods cannot be loaded.
    """
    datasets, name_problems = check_names(shape, source)
    published_rows = list(dict.fromkeys(row.method for row in published.read_accuracies()))
    _, row_problems = _look_up(
        lambda name: _require_listed("row of published numbers", name, published_rows),
        shape.compare_with,
        "compare_with",
    )

    problems = [
        *row_problems,
        *_check_references(shape),
        *itertools.chain.from_iterable(
            _check_environments(shape, name, facts.labels) for name, facts in datasets.items()
        ),
        *_check_searched_values(shape),
        *_check_draws_and_stages(shape),
        *_check_selection(shape),
        *_check_folders(shape),
    ]
    return datasets, [*name_problems, *_place(problems, source)]


def find_unread(shape: Shape) -> dict[str, Sequence[str]]:
    """Return for each algorithm the searched hyperparameters that have no effect on it.

    The names and values of the sweep must be valid.
    """
    searched: dict[str, dict[str, Any]] = {name: {} for name in shape.algorithms}
    for cell in shape.cells():
        searched[cell.algorithm].update((name, values[0]) for name, values in cell.searched.items())

    unread = {}
    for name, hparams in searched.items():
        args = {"algorithm": name, "dataset": shape.datasets[0], "steps": None}
        resolved = host.resolve_hparams(host.find_algorithm_class(name), args, hparams)
        unread[name] = resolved.unread
    return unread


def _require_listed(kind: str, name: str, valid_names: Sequence[str]) -> str:
    if name not in valid_names:
        raise CarftError(unknown(kind, name, valid_names))
    return name


def _look_up(
    find: Callable[[str], Any], names: Sequence[str], key: str, skipped: Container[str] = ()
) -> tuple[dict[str, Any], list[_Problem]]:
    """Call ``find`` for each name below a key; return its values and its problems."""
    values = {}
    problems: list[_Problem] = []
    for index, name in enumerate(names):
        if name in skipped:
            continue
        try:
            values[name] = find(name)
        except CarftError as error:
            problems += [((key, index), message) for message in error.problems]
    return values, problems


def _describe_missing(algorithms: Sequence[str]) -> Iterator[_Problem]:
    """Yield one problem for all algorithms that only a checkout of DomainBed has."""
    if algorithms:
        verb = "is" if len(algorithms) == 1 else "are"
        yield (
            ("algorithms",),
            f"{', '.join(algorithms)} {verb} not included; launch the sweep in a checkout of "
            "DomainBed (git clone https://github.com/facebookresearch/DomainBed) whose "
            "requirements are installed next to this package",
        )


def _check_references(shape: Shape) -> Iterator[_Problem]:
    """Yield names in the settings that are not datasets or algorithms of the sweep."""
    references: list[tuple[str, YamlPath, str]] = []
    for key in ("steps", "test_environments"):
        value = getattr(shape, key)
        if isinstance(value, dict):
            references += [("datasets", (key, name), name) for name in value]
    variants = [(("variants", name), block) for name, block in shape.variants.items()]
    for path, block in [*shape.override_blocks, *variants]:
        for key in _KINDS:
            for index, name in enumerate(getattr(block, key)):
                references.append((key, (*path, key, index), name))

    for key, path, name in references:
        if name not in getattr(shape, key):
            yield path, unknown(f"{_KINDS[key]} of this sweep", name, getattr(shape, key))


def _check_selection(shape: Shape) -> Iterator[_Problem]:
    """Check that jobs have no choice of hyperparameters if a selection rule chooses none."""
    if CLIPOOD not in shape.selection:
        return
    n_choices = len(shape.choices)
    if not shape.has_stages:
        n_choices *= max((len(cell.members) for cell in shape.cells()), default=1)
    if n_choices > 1:
        yield (
            ("selection", shape.selection.index(CLIPOOD)),
            f"{CLIPOOD} selects from a single choice of hyperparameters, but each trial has up to "
            f"{n_choices}; remove {CLIPOOD}, or use a grid, which makes each value a row",
        )


def _check_environments(shape: Shape, dataset: str, labels: Sequence[str]) -> Iterator[_Problem]:
    """Check that a dataset has enough environments, and that those held out are known and few."""
    has_leave_one_out = LEAVE_ONE_OUT in shape.selection
    min_environments = _MIN_ENVIRONMENTS
    if has_leave_one_out:
        min_environments = _MIN_ENVIRONMENTS_FOR_LEAVE_ONE_OUT
    if 1 < len(labels) < min_environments:
        message = f"{dataset} has 2 environments; leave-one-domain-out needs at least 3"
        yield ("datasets", shape.datasets.index(dataset)), message

    path: YamlPath = ("test_environments",)
    if isinstance(shape.test_environments, dict):
        path = ("test_environments", dataset)
    valid = [f"{label} ({index})" for index, label in enumerate(labels)]
    for keys, environment in _iterate_environments(shape.get_division(dataset)):
        if find_environment(environment, labels) is None:
            message = unknown(f"environment of {dataset}", str(environment), valid)
            yield (*path, *keys), message

    if len(labels) == 1 or not shape.holds_out_together(dataset):
        return
    if has_leave_one_out:
        message = f"{LEAVE_ONE_OUT} selects for a single target, not for several together"
        yield path, f"{message}; select by training-domain, oracle or both"
    for test_envs in shape.targets(dataset, labels):
        if len(test_envs) == len(labels):
            message = f"all {len(labels)} environments of {dataset} are held out"
            yield path, f"{message}; keep at least one to train on"


def _check_folders(shape: Shape) -> Iterator[_Problem]:
    """Yield a problem if several variants or members would share a folder."""
    owners: dict[str, object] = {}
    for cell in shape.cells():
        for values in cell.members:
            folder = folder_name(cell.name, values)
            owner = (cell.name, cell.variant, values)
            if owners.setdefault(folder, owner) != owner:
                message = f"several combinations would share the folder {folder}"
                path = ("grid" if shape.grid else "search",)
                yield path, f"{message}; use named variants instead"
                return


def _iterate_environments(division: Division) -> Iterator[tuple[YamlPath, int | str]]:
    """Iterate over the environments of a division, each after the keys that lead to it."""
    if division == SINGLE_SOURCE:
        return
    for index, item in enumerate(division):
        if isinstance(item, list):
            yield from (((index, inner), name) for inner, name in enumerate(item))
        else:
            yield (index,), item


def _check_hparams(
    shape: Shape, datasets: Mapping[str, Dataset], algorithms: Mapping[str, Any]
) -> Iterator[_Problem]:
    """Resolve the hyperparameters of each job as train does; yield the problems at their places.

    On an unknown dataset, only the names and values in the file are checked.
    """
    algorithms_by_place: dict[tuple[YamlPath, str], dict[str, None]] = {}
    valid_names: dict[tuple[str, str], Sequence[str]] = {}  # by algorithm and name unknown to it
    placed_problems: list[_Problem] = []
    for cell in shape.cells():
        if cell.algorithm not in algorithms:
            continue

        for name, place in cell.places.items():
            algorithms_by_place.setdefault((place, name), {})[cell.algorithm] = None
        facts = datasets.get(cell.dataset)
        steps = cell.steps or (facts.steps if facts else _STEPS_ON_UNKNOWN_DATASET)
        for problem in _find_cell_problems(shape, cell, steps, algorithms[cell.algorithm]):
            if problem.valid_names:
                valid_names[cell.algorithm, problem.name] = problem.valid_names
            elif value_place := cell.get_place(problem.name, problem.value):
                placed_problems.append((value_place, problem.message_after_key()))
            elif facts:
                placed_problems.append((("hparams",), str(problem)))

    for (place, name), covered in algorithms_by_place.items():
        for message in _find_unknown_name(name, place, list(covered), valid_names):
            yield place, message
    yield from placed_problems


def _find_cell_problems(
    shape: Shape, cell: SweepCell, steps: int, algorithm_class: Any
) -> Iterator[HparamProblem]:
    """Yield the problems of each combination of searched values.

    Of the random draws, the first and the last are checked. Files that this machine lacks can be on
    the nodes of a cluster.
    """
    args = {
        "algorithm": cell.algorithm,
        "dataset": cell.dataset,
        "steps": steps,
        "trial_seed": shape.trial_seeds[0],
    }
    choices = {shape.choices[0], shape.choices[-1]}
    for member, choice in itertools.product(cell.members, sorted(choices)):
        seed = get_draw_seed({**args, "hparams_seed": choice})
        resolved = host.resolve_hparams(algorithm_class, args, {**cell.hparams, **member}, seed)
        yield from (problem for problem in resolved.problems if not problem.is_local)


def _find_unknown_name(
    name: str,
    place: YamlPath,
    algorithms: Sequence[str],
    valid_names: Mapping[tuple[str, str], Sequence[str]],
) -> Iterator[str]:
    """Yield a message if some of the algorithms at a place do not have the hyperparameter.

    ``valid_names`` has their names, by algorithm and unknown name.
    """
    names_by_algorithm = {
        algorithm: valid_names[algorithm, name]
        for algorithm in algorithms
        if (algorithm, name) in valid_names
    }
    if not names_by_algorithm:
        return

    kind = f"hyperparameter of {', '.join(names_by_algorithm)}"
    algorithms_with_key = [each for each in algorithms if each not in names_by_algorithm]
    if algorithms_with_key and place[0] == "hparams":
        listing = ", ".join(algorithms_with_key)
        yield (f"no {kind} is called {name!r}; move it to overrides, with algorithms: [{listing}]")
        return

    names = dict.fromkeys(itertools.chain.from_iterable(names_by_algorithm.values()))
    yield unknown(kind, name, list(names))


_GRID_OR_SEARCH = "a grid reports every value, and a search chooses one"


def _check_searched_values(shape: Shape) -> Iterator[_Problem]:
    """Yield each hyperparameter that is both searched and set, at its searched values."""
    reported = set()
    for cell in shape.cells():
        for name in cell.searched:
            if name not in cell.hparams or name in reported:
                continue

            reported.add(name)
            path = cell.places[name]
            if name in shape.grid:
                message = f"{name} is in grid and in search: {_GRID_OR_SEARCH}"
                yield path, f"{message}; remove it from one of them"
            else:
                message = (
                    f"{name} of {cell.algorithm} on {cell.dataset} is searched and also set to "
                    f"{cell.hparams[name]!r}, which leaves nothing to choose; remove one of them, "
                    f"or disable the search there in overrides: search: {{values: {{{name}: []}}}}"
                )
                yield path, message


def _check_draws_and_stages(shape: Shape) -> Iterator[_Problem]:
    """Yield the problems of the keys below ``search``."""
    search = shape.search
    if search is None:
        return

    member_counts = [len(cell.members) for cell in shape.cells()]
    if max(member_counts, default=0) < 2 and not search.draws:
        hint = "list at least two values under values, or set a number of draws"
        yield ("search",), f"the search has nothing to choose from; {hint}"
    if search.draws and "hparams_seeds" in shape.model_fields_set:
        message = "draws and hparams_seeds both set the number of draws"
        yield ("search", "draws"), f"{message}; remove one of them"

    if search.choose_on is None:
        for key in ("repeat_on", "choose_by"):
            if key in search.model_fields_set:
                message = f"{key} needs choose_on, the trials on which the search chooses"
                yield ("search", key), f"{message}; add choose_on"
        return

    if "repeat_on" in search.model_fields_set and "trials" in shape.model_fields_set:
        message = "trials and search.repeat_on both set the trials of the tables"
        yield ("search", "repeat_on"), f"{message}; remove one of them"
    if overlap := sorted({*search.choose_on.seeds} & {*shape.trial_seeds}):
        trials = ", ".join(map(str, overlap))
        message = f"the search chooses on trials on which it also repeats its choice: {trials}"
        hint = f"choose on other trials, such as {{from: {max(shape.trial_seeds) + 1}, n: 1}}"
        yield ("search", "choose_on", "trials"), f"{message}; {hint}"
    if len(shape.choices) > 1 or min(shape.choices) > 0:
        message = "draws differ from trial to trial, so a draw cannot be repeated on other trials"
        yield ("search", "choose_on"), f"{message}; list values instead"
    if shape.choosing_rule is None:
        message = (
            f"the search cannot choose by {', '.join(shape.selection)}, which looks at the target"
        )
        yield ("search", "choose_on"), f"{message}; add training-domain to selection"
