"""The alphas of WiSE-FT: which are allowed, and how the files of their weights are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from domainbed_carft.errors import CarftError

DEFAULT_ALPHAS = tuple(n / 10 for n in range(11))


def sorted_alphas(alphas: Iterable[float]) -> list[float]:
    """The alphas in ascending order; CarftError unless they are different numbers from 0 to 1."""
    ascending = sorted(alpha + 0.0 for alpha in alphas)  # -0.0 is 0
    is_in_range = all(0 <= alpha <= 1 for alpha in ascending)
    if not is_in_range or len(set(ascending)) < len(ascending):
        raise CarftError(
            f"--alphas {listed_alphas(ascending)}: expected different numbers from 0 (the original "
            "CLIP) to 1 (the run)"
        )
    return ascending


def choose_saved_alphas(words: Sequence[str], alphas: Sequence[float]) -> list[float]:
    """The alphas whose weights ``--save`` asks for: all, none, or some of ``alphas``.

    Raises CarftError for a word that is no such alpha.
    """
    if list(words) == ["all"]:
        return list(alphas)
    if list(words) == ["none"]:
        return []
    try:
        return sorted({alphas[alphas.index(float(word))] for word in words})
    except ValueError:
        raise CarftError(
            f"--save {' '.join(words)}: expected all, none, or some of --alphas "
            f"{listed_alphas(alphas)}"
        ) from None


def listed_alphas(alphas: Sequence[float]) -> str:
    """The alphas as words on a command line."""
    return " ".join(f"{alpha:g}" for alpha in alphas)


def weights_name(alpha: float) -> str:
    """The file name of an alpha's weights: two decimals, or more if needed."""
    rounded = f"{alpha:.2f}"
    return f"model_alpha_{rounded if float(rounded) == alpha else repr(alpha)}.pkl"
