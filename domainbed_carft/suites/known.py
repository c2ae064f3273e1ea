"""The suites by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

from domainbed_carft import text
from domainbed_carft.data.tasks import TASKS
from domainbed_carft.errors import CarftError
from domainbed_carft.suites import emoji_shift, imagenet, tasks
from domainbed_carft.suites.sets import Suite

SUITES: dict[str, Callable[[], Suite]] = {
    "imagenet": imagenet.suite,
    "EmojiShift": emoji_shift.suite,
    **{name: functools.partial(tasks.suite, name) for name in TASKS},
}


def get(name: str) -> Suite:
    """The suite called ``name``; CarftError with the nearest names if there is none."""
    if name not in SUITES:
        raise CarftError(text.unknown("suite", name, SUITES))
    return SUITES[name]()
