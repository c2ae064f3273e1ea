"""The test split of each task as a suite of one set, named as the task: G_j = {j}."""

from __future__ import annotations

import functools
from pathlib import Path

from domainbed_carft.data.benchmarks import ASSETS
from domainbed_carft.data.tasks import TASKS, ZERO_SHOT_SOURCE, read
from domainbed_carft.errors import CarftError
from domainbed_carft.suites.sets import Found, Suite, TestSet


@functools.cache
def suite(name: str) -> Suite:
    """The suite of the task ``name``."""
    task = TASKS[name]
    text = (ASSETS / "class_names" / f"{task.words}.txt").read_text(encoding="utf-8")
    classes = tuple(text.splitlines())
    own = TestSet(
        name="test (own split)" if task.drawn else "test",
        classes=classes,
        groups=tuple((label,) for label in range(len(classes))),
        find=functools.partial(_find, name),
        shifted=False,
        per_class=task.per_class,
    )
    return Suite(
        name=name,
        classes=classes,
        sets=(own,),
        contexts=task.words,
        published={clip: {own.name: figure} for clip, figure in task.zero_shot.items()},
        source=ZERO_SHOT_SOURCE,
    )


def _find(name: str, data_dir: Path) -> Found:
    task = TASKS[name]
    try:
        found = read(task, data_dir, train=False)
    except CarftError as error:
        return Found(None, (), [str(error)])
    number, expected = len(found), task.pictures[1]
    problems = [f"{number:,} pictures, expected {expected:,}"] if number != expected else []
    samples = [(str(one) if isinstance(one, Path) else one, y) for one, y in found.samples]
    return Found(data_dir / task.folder, samples, problems)
