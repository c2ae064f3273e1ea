"""The command line of a training from its arguments, quoted for a shell."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any


def line(arguments: Mapping[str, Any]) -> str:
    """``python -m domainbed.scripts.train``, the arguments in the order of their names.

    A flag without a value is True; what is None or False is left out. Numbers and words of a list
    follow each other, and a mapping is JSON, as ``--hparams`` takes it.
    """
    return " ".join(["python -m domainbed.scripts.train", *_flags(arguments)])


def _flags(arguments: Mapping[str, Any]) -> Iterator[str]:
    for name, value in sorted(arguments.items()):
        if value is True:
            yield f"--{name}"
        elif value is not None and value is not False:
            yield " ".join([f"--{name}", *_words(value)])


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        value = json.dumps(value, sort_keys=True)
    for word in value if isinstance(value, (list, tuple)) else [value]:
        yield shlex.quote(str(word))
