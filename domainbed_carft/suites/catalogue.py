"""The suites by name: ImageNet's, EmojiShift, and the test split of each task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from domainbed_carft import text
from domainbed_carft.data import benchmarks, emoji, tasks
from domainbed_carft.errors import CarftError
from domainbed_carft.suites import imagenet, unseen_styles
from domainbed_carft.suites.test_sets import Folders, Found, Suite, TestSet


def get(name: str) -> Suite:
    """The suite called ``name``; CarftError with the nearest names if there is none."""
    if name not in SUITES:
        raise CarftError(text.unknown("suite", name, SUITES))
    return SUITES[name]()


@functools.cache
def emoji_shift() -> Suite:
    """The embedded counterpart of ImageNet's: the style trained on, the three others, and more.

    The former's things are not in the training set; the others have class lists of their own: the
    same, some of them, and unions. Styles that the CLIP has not seen are groups of their own.
    """
    classes = benchmarks.get(emoji.SHIFT).classes
    same = {name: [name] for name in classes}
    some = {name: [name] for name in classes if name not in ("face", "hand", "person")}
    unions = {
        "food or drink": ["food"],
        "living thing": ["animal", "plant"],
        "people": ["face", "hand", "person"],
        "something made": ["building", "clothing", "tool", "vehicle"],
    }
    lists = {emoji.TRAINED_STYLE: same, "fluent3d": same, "line": some, "twemoji": unions}
    sets = tuple(_style(style, groups, classes) for style, groups in lists.items())
    further = [unseen_styles.test_set(style, classes) for style in unseen_styles.FURTHER]
    return Suite(emoji.SHIFT, classes, (*sets, *further), contexts="emoji")


def _style(style: str, groups: Mapping[str, Sequence[str]], classes: Sequence[str]) -> TestSet:
    labels = {name: label for label, own in enumerate(groups.values()) for name in own}

    def find(data_dir: Path) -> Found:
        """Of the pictures of the package, wherever ``data_dir`` is."""
        drawn = benchmarks.get("EmojiStyles").editions[0].by_class[style]
        trained = benchmarks.get(emoji.SHIFT).editions[0].by_class.get(style, {})
        pictures = sum(drawn[name] - trained.get(name, 0) for name in labels)
        root = emoji.shift() / "test" if trained else emoji.unpacked()
        return Folders((style,), labels, pictures, more=True)(root)

    numbers = tuple(tuple(map(classes.index, own)) for own in groups.values())
    return TestSet(style, tuple(groups), numbers, find, shifted=style != emoji.TRAINED_STYLE)


def of_task(name: str) -> Suite:
    """The test split of a task as a suite of one set, whose classes are the model's."""
    task = tasks.TASKS[name]
    file = benchmarks.ASSETS / "class_names" / f"{task.words}.txt"
    classes = tuple(file.read_text(encoding="utf-8").splitlines())

    def find(data_dir: Path) -> Found:
        try:
            found = tasks.read(task, data_dir, train=False)
        except CarftError as error:
            is_unreadable = isinstance(error.__cause__, PermissionError)
            return Found(None, (), [str(error)], is_unreadable)
        problems = tasks.class_problems(task, "test", found)
        if len(found) != task.pictures[1]:
            problems.append(f"{len(found):,} pictures, expected {task.pictures[1]:,}")
        samples = [(str(one) if isinstance(one, Path) else one, y) for one, y in found.samples]
        return Found(data_dir / task.folder, samples, problems)

    title = "test (own split)" if task.drawn else "test"
    groups = tuple((label,) for label in range(len(classes)))
    own = TestSet(title, classes, groups, find, shifted=False, per_class=task.per_class)
    published = {clip: {title: figure} for clip, figure in task.zero_shot.items()}
    source = tasks.ZERO_SHOT_SOURCE
    return Suite(name, classes, (own,), task.words, published=published, source=source)


SUITES: dict[str, Callable[[], Suite]] = {
    "imagenet": imagenet.suite,
    "EmojiShift": emoji_shift,
    "EmojiUnseen": unseen_styles.suite,
    **{name: functools.partial(of_task, name) for name in tasks.TASKS},
}
