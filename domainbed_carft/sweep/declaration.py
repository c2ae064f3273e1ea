"""A declared sweep: which data sets, algorithms, settings and trials, and so which jobs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.method import hparams as ours
from domainbed_carft.sweep import checks, schedules, schema, yaml_source
from domainbed_carft.sweep.problems import Problem, Source, require
from domainbed_carft.text import unknown

TASK = "domain_generalization"
SUFFIX = ".yaml"


@dataclass(frozen=True)
class Override:
    """Settings for some data sets and algorithms; None stands for all."""

    datasets: tuple[str, ...] | None = None
    algorithms: tuple[str, ...] | None = None
    hparams: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None

    def covers(self, dataset: str, algorithm: str) -> bool:
        """Whether it is about this data set and this algorithm."""
        return (self.datasets is None or dataset in self.datasets) and (
            self.algorithms is None or algorithm in self.algorithms
        )


@dataclass(frozen=True)
class Variant:
    """The sweep with these hparams over all others, in a folder of its own; "" is the sweep."""

    name: str = ""
    hparams: Mapping[str, Any] = field(default_factory=dict)
    algorithms: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Declaration:
    """A sweep. ``sweep.schema.json`` says what each field is.

    ``environments`` are the labels of each data set; ``test_environments`` the indices to leave
    out. ``hparams_text`` is what DomainBed's own flag ``--hparams`` was given, word for word,
    since job identities depend on its spelling; None where a file declares the sweep.
    """

    name: str
    datasets: tuple[str, ...]
    algorithms: tuple[str, ...]
    environments: Mapping[str, tuple[str, ...]]
    test_environments: Mapping[str, tuple[int, ...]]
    description: str = ""
    trials: int = 3
    first_hparams_seed: int = 0
    n_hparams_seeds: int = 1
    steps: Mapping[str, int] = field(default_factory=dict)
    hparams: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[Override, ...] = ()
    variants: tuple[Variant, ...] = (Variant(),)
    selection: tuple[str, ...] = ("training-domain", "oracle")
    protocol: str | None = None
    holdout_fraction: float = 0.2
    compare_with: tuple[str, ...] = ()
    task: str = TASK
    hparams_text: str | None = None

    @property
    def pairs(self) -> bool:
        """Whether the jobs with two test environments are needed."""
        return "leave-one-domain-out" in self.selection

    def algorithms_of(self, variant: Variant) -> tuple[str, ...]:
        """The algorithms that run in ``variant``."""
        chosen = variant.algorithms
        return tuple(name for name in self.algorithms if chosen is None or name in chosen)

    def hparams_of(self, dataset: str, algorithm: str, variant: Variant) -> dict[str, Any]:
        """What is set of the hyperparameters, the later of these over the earlier."""
        preset = {"protocol": self.protocol} if self.protocol else {}
        layers = [o.hparams for o in self.overrides if o.covers(dataset, algorithm)]
        return {
            key: value
            for layer in (preset, self.hparams, *layers, variant.hparams)
            for key, value in layer.items()
        }

    def steps_of(self, dataset: str, algorithm: str) -> int | None:
        """Declared steps; None leaves them to the data set."""
        layers = [o.steps for o in self.overrides if o.covers(dataset, algorithm) and o.steps]
        return layers[-1] if layers else self.steps.get(dataset)


def load(file: str | Path) -> Declaration:
    """The sweep that a file declares, or one of ours by its bare name, such as ``demo``.

    Raises CarftError with everything that is wrong, as ``file:line: path: what``.
    """
    path = find(file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CarftError(f"the sweep {path} cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, name: str, checked: bool = False) -> Declaration:
    """The sweep that ``text`` declares; ``name`` is what messages call it.

    ``checked`` says that its names were found right before, so that nobody is asked for them.
    """
    data, lines, problems = yaml_source.read(text, name)
    return build(data, Source(name, lines), problems, checked)


def build(
    data: Any, source: Source, problems: list[Problem] | None = None, checked: bool = False
) -> Declaration:
    """A declaration of plain data. Raises CarftError with all its problems."""
    found = [*(problems or []), *schema.problems(data)]
    if checked:
        require(source, found)
        return _declaration(data)
    # Names can be judged wherever the shape is right, so that one run tells all there is to mend.
    sound = checks.without(data, found)
    found += checks.problems(sound)
    require(source, found)
    declaration = _declaration(data)
    require(source, schedules.problems(declaration))
    return declaration


def _declaration(data: Mapping[str, Any]) -> Declaration:
    datasets = tuple(checks.spelled(name) for name in data["datasets"])
    algorithms = tuple(data["algorithms"])
    seeds = data.get("hparams_seeds", 1)
    first, count = (seeds.get("from", 0), seeds["n"]) if isinstance(seeds, dict) else (0, seeds)
    environments = {name: checks.environments(name) for name in datasets}
    optional = ("description", "protocol")
    fields: dict[str, Any] = {name: data[name] for name in optional if name in data}
    for name in ("selection", "compare_with"):
        if name in data:
            fields[name] = tuple(data[name])
    return Declaration(
        data["name"],
        datasets,
        algorithms,
        environments,
        {name: checks.test_environments(data, name) for name in datasets},
        trials=int(data.get("trials", 3)),
        first_hparams_seed=int(first),
        n_hparams_seeds=int(count),
        steps=_steps(data.get("steps"), datasets),
        hparams=data.get("hparams", {}),
        overrides=tuple(_override(given) for given in data.get("overrides", ())),
        variants=_variants(data),
        holdout_fraction=float(data.get("holdout_fraction", 0.2)),
        **fields,
    )


def _steps(given: Any, datasets: tuple[str, ...]) -> dict[str, int]:
    if isinstance(given, dict):
        return {checks.spelled(name): int(steps) for name, steps in given.items()}
    return {} if given is None else dict.fromkeys(datasets, int(given))


def _override(given: Mapping[str, Any]) -> Override:
    datasets = given.get("datasets")
    return Override(
        tuple(map(checks.spelled, datasets)) if datasets else None,
        tuple(given["algorithms"]) if "algorithms" in given else None,
        given.get("hparams", {}),
        int(given["steps"]) if "steps" in given else None,
    )


def _variants(data: Mapping[str, Any]) -> tuple[Variant, ...]:
    if "grid" in data:
        names = list(data["grid"])
        settings = [dict(zip(names, v)) for v in itertools.product(*data["grid"].values())]
        return tuple(Variant(checks.variant_name(setting), setting) for setting in settings)
    if "variants" in data:
        return tuple(
            Variant(
                name,
                given.get("hparams", {}),
                tuple(given["algorithms"]) if "algorithms" in given else None,
            )
            for name, given in data["variants"].items()
        )
    return (Variant(),)


def find(file: str | Path) -> Path:
    """The file of that path; for a bare name the sweep of ours called so."""
    path = Path(file)
    if path.is_file():
        return path
    shipped = ours_by_name()
    if str(file) in shipped:
        return shipped[str(file)]
    if len(path.parts) == 1 and path.suffix != SUFFIX:
        raise CarftError(unknown("sweep", str(file), sorted(shipped)) + ", or the path of a file")
    raise CarftError(
        f"there is no file {path}, expected a declared sweep (docs/sweeps.md), or one of ours by "
        f"its name: {', '.join(sorted(shipped))}"
    )


def ours_by_name() -> dict[str, Path]:
    """The sweeps that come with the project: in ``sweeps/`` of its source, or in the package."""
    package = Path(ours.__file__).resolve().parents[1]
    folders = (package.parent / "sweeps", package / "sweeps")
    # A folder called sweeps beside an installed package need not be ours.
    chosen = next((f for f in folders if (f / f"demo{SUFFIX}").is_file()), folders[0])
    return {path.stem: path for path in sorted(chosen.glob(f"*{SUFFIX}"))}
