"""What a user can have meant by a name that is not valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Names used by other tools -> the name used here, which is suggested if it is valid.
_SYNONYMS = {
    "learning_rate": "lr",
    "base_lr": "lr",
    "wd": "weight_decay",
    "bs": "batch_size",
    "lambda": "kl_weight",
    "lambda_kl": "kl_weight",
    "temperature": "context_scale",
    "tau": "context_scale",
    "epochs": "steps",
    "num_epochs": "steps",
    "iterations": "steps",
    "backbone": "clip_backbone",
    "prompts": "contexts",
    "templates": "contexts",
    "seeds": "trials",
    "car_ft": "CARFT",
}
_STEPS_ADVICE = "set the number of steps: --steps of train, the key steps of a sweep"
_MAX_LISTED_NAMES = 20  # next to a suggestion
_MIN_SIMILARITY = 0.6  # difflib's ratio; names below it share hardly more than a few letters


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return a message about an unknown name, with similar names first, then all valid ones.

    A long list of valid names is left out if there are similar names.
    """
    valid_names = list(valid)
    hint = "."
    if close := near_matches(name, valid_names):
        hint = f"; did you mean {' or '.join(close)}?"
        if len(valid_names) > _MAX_LISTED_NAMES:
            return f"no {kind} is called {name!r}{hint}"
    elif _SYNONYMS.get(_normalise(name)) == "steps":
        hint = f"; {_STEPS_ADVICE}."

    listing = ", ".join(repr(valid) if "," in valid else valid for valid in valid_names)
    return f"no {kind} is called {name!r}{hint} Valid: {listing or 'none'}"


def near_matches(
    name: str, valid: Iterable[str], limit: int = 3, cutoff: float = _MIN_SIMILARITY
) -> list[str]:
    """Return the valid names that a user can have meant: a synonym, or similar spellings."""
    valid_names = list(valid)
    synonym = _SYNONYMS.get(_normalise(name))
    if synonym in valid_names:
        return [synonym]
    if synonym == "steps":  # names spelt like "epochs" would be misleading
        return []

    names_by_folded = {candidate.casefold(): candidate for candidate in valid_names}
    close = difflib.get_close_matches(name.casefold(), names_by_folded, n=limit, cutoff=cutoff)
    return [names_by_folded[folded] for folded in close]


def _normalise(name: str) -> str:
    """Normalise a name: ``Learning-Rate`` becomes ``learning_rate``."""
    return name.casefold().replace("-", "_").strip("_")
