"""Test sets of the held-out things in drawing styles that `tiny` has or has not seen.

The suite EmojiUnseen tests any run whose classes are the ten of EmojiStyles. Its groups of styles
tell how much of a method's gain rests on styles that were in the pre-training data.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from domainbed_carft.data import benchmarks, emoji, emoji_styles
from domainbed_carft.suites.test_sets import Folders, Suite, TestSet, TestSetCopy

FURTHER = (
    *emoji_styles.names(emoji_styles.NEVER_SEEN),
    *emoji_styles.names(emoji_styles.FAMILY_SEEN),
)


@functools.cache
def suite() -> Suite:
    """All styles with the same ten classes, in three groups: never seen, family seen, seen."""
    classes = benchmarks.get(emoji.UNSEEN).classes
    styles = (*FURTHER, *emoji_styles.names(emoji_styles.SEEN))
    sets = tuple(test_set(style, classes) for style in styles)
    return Suite(emoji.UNSEEN, classes, sets, contexts="emoji")


def test_set(name: str, classes: Sequence[str]) -> TestSet:
    """All pictures of one style, in the group that its label names."""
    style = emoji_styles.get(name)
    labels = {class_name: label for label, class_name in enumerate(classes)}

    def find(data_dir: Path) -> TestSetCopy:
        """The pictures of the package, wherever ``data_dir`` is."""
        root = emoji.style_folders(style.label)
        return Folders((name,), labels, style.pictures)(root)

    groups = tuple((label,) for label in range(len(classes)))
    return TestSet(name, tuple(classes), groups, find, group=style.label, is_resized_by_pillow=True)
