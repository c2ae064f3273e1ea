"""EmojiShift: the embedded counterpart of ImageNet and its shifted test sets.

Trained on one style; tested on that style, of things that the training does not show, and on three
others, whose test sets have class lists of their own: the same, some of them, and unions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from domainbed_carft.data import benchmarks, emoji
from domainbed_carft.suites.sets import Folders, Found, Suite, TestSet

UNIONS = {
    "food or drink": ["food"],
    "living thing": ["animal", "plant"],
    "people": ["face", "hand", "person"],
    "something made": ["building", "clothing", "tool", "vehicle"],
}


@functools.cache
def suite() -> Suite:
    """The style trained on, and the three others."""
    classes = benchmarks.get(emoji.SHIFT).classes
    same = {name: [name] for name in classes}
    some = {name: [name] for name in classes if name not in ("face", "hand", "person")}
    lists = {emoji.TRAINED_STYLE: same, "fluent3d": same, "line": some, "twemoji": UNIONS}
    sets = tuple(_set(style, groups, classes) for style, groups in lists.items())
    return Suite(emoji.SHIFT, classes, sets, contexts="emoji", embedded=True)


def _set(style: str, groups: Mapping[str, Sequence[str]], classes: Sequence[str]) -> TestSet:
    labels = {name: label for label, own in enumerate(groups.values()) for name in own}
    return TestSet(
        name=style,
        classes=tuple(groups),
        groups=tuple(tuple(map(classes.index, own)) for own in groups.values()),
        find=functools.partial(_find, style, labels),
        shifted=style != emoji.TRAINED_STYLE,
    )


def _find(style: str, labels: dict[str, int], data_dir: Path) -> Found:
    """Of the pictures of the package, wherever ``data_dir`` is."""
    drawn = benchmarks.get("EmojiStyles").editions[0].by_class[style]
    trained = benchmarks.get(emoji.SHIFT).editions[0].by_class.get(style, {})
    pictures = sum(drawn[name] - trained.get(name, 0) for name in labels)
    root = emoji.shift() / "test" if trained else emoji.unpacked()
    return Folders((style,), labels, pictures, more=True)(root)
