"""The tiny CLIP's pre-training set in memory, and the batches drawn from it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import clip
import numpy as np
import torch
from build_emoji_styles import ASSETS, read_split
from captions import Facts, caption, kind_word, truth_matrix
from emoji_concepts import Concept
from photometric import EFFECTS, normalise, view

#: Share of the batch drawn from the ten classes, the rest being symbols, flags and so on.
CLASS_SHARE = 0.85
#: Line art is the hardest to learn from, so it is drawn more often than the other styles.
LINE_WEIGHT = 1.5
#: Probability that a picture is left plain.
PLAIN_SHARE = 0.5


@dataclass
class Pictures:
    """The pre-training set in memory.

    Attributes:
        pixels: uint8, (n, 3, 64, 64).
        facts: what is true of each picture, its effect not yet chosen.
        weights: probability of each picture, float64, (n,).
    """

    pixels: torch.Tensor
    facts: list[Facts]
    concepts: list[Concept]
    weights: np.ndarray


def load_pictures(path: Path, skip_bases: float = 0.0) -> tuple[Pictures, Pictures | None]:
    """Reads pretrain.npz; with `skip_bases`, sets that share of the base names aside.

    The second part serves to choose the recipe without a look at the held-out concepts.
    """
    concepts, sides = read_split(ASSETS / "emoji_split.csv")
    by_key = {c.key: c for c in concepts}
    stored = np.load(path)
    rows = [by_key[key] for key in stored["keys"]]
    if any(sides[c.key] != "pretrain" for c in rows):
        raise ValueError(f"{path} holds pictures that the split does not give to pre-training")
    aside = np.array([bool(c.cls) and _fraction(c.base) < skip_bases for c in rows])
    parts = [_select(stored, rows, np.flatnonzero(~aside))]
    if aside.any():
        parts.append(_select(stored, rows, np.flatnonzero(aside)))
    return parts[0], parts[1] if len(parts) > 1 else None


def _fraction(text: str) -> float:
    return int(hashlib.sha256(f"develop {text}".encode()).hexdigest()[:8], 16) / 2**32


def _select(stored: np.lib.npyio.NpzFile, rows: list[Concept], index: np.ndarray) -> Pictures:
    concepts = [rows[i] for i in index]
    pixels = torch.from_numpy(stored["pictures"][index]).permute(0, 3, 1, 2).contiguous()
    facts = [
        Facts(style=str(stored["styles"][i]), kind=kind_word(c), group=c.subgroup, key=c.key)
        for i, c in zip(index, concepts, strict=True)
    ]
    return Pictures(pixels, facts, concepts, _weights(concepts, facts))


def _weights(concepts: list[Concept], facts: list[Facts]) -> np.ndarray:
    """Classes by the square root of their size, and the base names of a class alike."""
    kinds = [c.cls for c in concepts]
    bases = [f"{c.cls}/{c.base}" for c in concepts]
    in_kind = {kind: kinds.count(kind) for kind in set(kinds)}
    in_base: dict[str, int] = {}
    for base in bases:
        in_base[base] = in_base.get(base, 0) + 1
    # Variants of one thing (man, woman, person) count as one and a half, not as three.
    raw = np.array([in_base[b] ** -0.6 for b in bases])
    raw *= np.array([LINE_WEIGHT if f.style == "line" else 1.0 for f in facts])
    weights = np.zeros(len(concepts))
    names = np.array(kinds)
    classes = [k for k in in_kind if k]
    scale = sum(math.sqrt(in_kind[k]) for k in classes)
    for kind in in_kind:
        share = CLASS_SHARE * math.sqrt(in_kind[kind]) / scale if kind else 1 - CLASS_SHARE
        mask = names == kind
        weights[mask] = share * raw[mask] / raw[mask].sum()
    return weights / weights.sum()


@dataclass
class Batch:
    images: torch.Tensor
    tokens: torch.Tensor
    truth: torch.Tensor


def draw_batch(data: Pictures, size: int, seed: int, step: int) -> Batch:
    """The batch of one step, the same whenever it is asked for."""
    rng = np.random.default_rng([seed, step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    rows = rng.choice(len(data.facts), size=size, replace=False, p=data.weights)
    effects = np.where(rng.random(size) < PLAIN_SHARE, 0, rng.integers(1, len(EFFECTS), size=size))
    facts = [data.facts[row] for row in rows]
    # Line art is gray anyway: "grayscale" would not be seen, and its absence a false statement.
    gray = EFFECTS.index("grayscale")
    effects = np.array(
        [0 if e == gray and f.style == "line" else e for e, f in zip(effects, facts, strict=True)]
    )
    facts = [
        Facts(EFFECTS[e], f.style, f.kind, f.group, f.key)
        for e, f in zip(effects, facts, strict=True)
    ]
    said = [caption(f, data.concepts[row], rng) for f, row in zip(facts, rows, strict=True)]
    tokens = clip.tokenize([text for text, _ in said], truncate=True)
    # Causal attention: what follows the end token changes nothing, so it is cut off.
    tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1].long()
    pixels = data.pixels[torch.from_numpy(rows)].float() / 255
    images = view(pixels, torch.from_numpy(effects), generator, augment=True)
    truth = torch.from_numpy(truth_matrix(facts, [stated for _, stated in said]))
    return Batch(normalise(images), tokens, truth)
