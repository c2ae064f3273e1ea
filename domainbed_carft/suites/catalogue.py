"""The suites by name: ImageNet, EmojiShift, EmojiUnseen, and the test split of each task."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from domainbed_carft import suggestions
from domainbed_carft.data import benchmarks, emoji, emoji_styles, tasks
from domainbed_carft.errors import CarftError
from domainbed_carft.suites import imagenet
from domainbed_carft.suites.suite import Folders, Suite, TestSet, TestSetCopy

# Separate groups, because the difference between their means shows how much of a method's gain
# depends on styles in the pre-training data of `tiny`.
FURTHER_STYLES = (
    *emoji_styles.names(emoji_styles.NEVER_SEEN),
    *emoji_styles.names(emoji_styles.FAMILY_SEEN),
)


def get(name: str) -> Suite:
    """Return the suite called ``name``; raise CarftError, with similar names, if it is unknown."""
    if name not in SUITES:
        raise CarftError(suggestions.unknown("suite", name, SUITES))
    return SUITES[name]()


@functools.cache
def emoji_shift() -> Suite:
    """Return the embedded counterpart of ImageNet's suite.

    The first set has the training style, with things that are not in the training set. The three
    other seen styles have different class lists: the model's classes, some of them, and unions.
    Styles that the CLIP model has not seen form separate groups.
    """
    classes = benchmarks.get(emoji.SHIFT).classes
    all_classes = {name: [name] for name in classes}
    without_people = {name: [name] for name in classes if name not in ("face", "hand", "person")}
    unions = {
        "food or drink": ["food"],
        "living thing": ["animal", "plant"],
        "people": ["face", "hand", "person"],
        "something made": ["building", "clothing", "tool", "vehicle"],
    }
    sets = (
        _style_set(emoji.TRAINED_STYLE, all_classes, classes),
        _style_set("fluent3d", all_classes, classes),
        _style_set("line", without_people, classes),
        _style_set("twemoji", unions, classes),
    )
    further_sets = [_unseen_things_set(style, classes) for style in FURTHER_STYLES]
    return Suite(emoji.SHIFT, classes, (*sets, *further_sets), contexts="emoji")


@functools.cache
def emoji_unseen() -> Suite:
    """Return the suite of the held-out things in all styles, in groups by label."""
    classes = benchmarks.get(emoji.UNSEEN).classes
    styles = (*FURTHER_STYLES, *emoji_styles.names(emoji_styles.SEEN))
    sets = tuple(_unseen_things_set(style, classes) for style in styles)
    return Suite(emoji.UNSEEN, classes, sets, contexts="emoji")


def _unseen_things_set(name: str, classes: Sequence[str]) -> TestSet:
    """Return the test set of the held-out things in one style, in the group of its label."""
    style = emoji_styles.get(name)
    labels = {class_name: label for label, class_name in enumerate(classes)}

    def find(data_dir: Path) -> TestSetCopy:
        # The images are in the package, so the data folder does not matter.
        root = emoji.style_folders(style.label)
        return Folders((name,), labels, style.images)(root)

    groups = tuple((label,) for label in range(len(classes)))
    return TestSet(name, tuple(classes), groups, find, group=style.label, is_resized_by_pillow=True)


def _style_set(style: str, members: Mapping[str, Sequence[str]], classes: Sequence[str]) -> TestSet:
    """Return the test set of a style; ``members`` are the model's classes, by its class."""
    labels = {
        name: label for label, class_names in enumerate(members.values()) for name in class_names
    }

    def find(data_dir: Path) -> TestSetCopy:
        # The images are in the package, so the data folder does not matter.
        all_counts = benchmarks.get("EmojiStyles").editions[0].by_class[style]
        trained_counts = benchmarks.get(emoji.SHIFT).editions[0].by_class.get(style, {})
        image_count = sum(all_counts[name] - trained_counts.get(name, 0) for name in labels)

        root = emoji.shift_folders() / "test" if trained_counts else emoji.style_folders()
        return Folders((style,), labels, image_count, has_further_folders=True)(root)

    groups = tuple(tuple(map(classes.index, class_names)) for class_names in members.values())
    return TestSet(
        name=style,
        classes=tuple(members),
        groups=groups,
        find=find,
        is_shifted=style != emoji.TRAINED_STYLE,
        is_resized_by_pillow=True,
    )


def task_suite(name: str) -> Suite:
    """Return the test split of a task as a suite of one set with the model's classes."""
    task = tasks.TASKS[name]
    names_file = benchmarks.ASSETS / "class_names" / f"{task.words}.txt"
    classes = tuple(names_file.read_text(encoding="utf-8").splitlines())

    def find(data_dir: Path) -> TestSetCopy:
        try:
            split = tasks.read_split(task, data_dir, train=False)
        except CarftError as error:
            if isinstance(error.__cause__, PermissionError):
                raise
            return TestSetCopy(None, (), [str(error)])

        problems = tasks.class_problems(task, "test", split)
        expected = task.images[1]
        if len(split) != expected:
            problems.append(f"{len(split):,} images, expected {expected:,}")
        samples = [
            (str(image) if isinstance(image, Path) else image, label)
            for image, label in split.samples
        ]
        return TestSetCopy(data_dir / task.folder, samples, problems)

    title = "test (own split)" if task.drawn else "test"
    test_set = TestSet(
        name=title,
        classes=classes,
        groups=tuple((label,) for label in range(len(classes))),
        find=find,
        is_shifted=False,
        reports_mean_per_class=task.per_class,
    )
    return Suite(
        name=name,
        classes=classes,
        sets=(test_set,),
        contexts=task.words,
        published={clip: {title: percent} for clip, percent in task.zero_shot.items()},
        source=tasks.ZERO_SHOT_SOURCE,
    )


SUITES: dict[str, Callable[[], Suite]] = {
    "imagenet": imagenet.suite,
    "EmojiShift": emoji_shift,
    "EmojiUnseen": emoji_unseen,
    **{name: functools.partial(task_suite, name) for name in tasks.TASKS},
}
