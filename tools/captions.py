"""The language of the tiny CLIP: captions for pre-training, and the contexts that ask for it.

A caption states up to three facts about a picture: its photometric effect, its style, and what
it shows. Facts are left out at random, so a caption can be true of several pictures of a batch;
`truth_matrix` says of which.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from emoji_concepts import Concept

#: Style -> phrases; the first three are also in the contexts file.
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "fluent3d": (
        "3d render",
        "glossy 3d icon",
        "shiny plastic figure",
        "rendering",
        "plastic toy",
        "3d sculpture",
        "video game picture",
    ),
    "line": (
        "line drawing",
        "black and white outline",
        "ink sketch",
        "sketch",
        "pencil drawing",
        "doodle",
        "tattoo",
    ),
    "noto": (
        "shaded cartoon",
        "soft colorful emoji",
        "rounded cartoon icon",
        "shaded illustration",
        "colorful rounded drawing",
        "cartoon with soft shadows",
    ),
    "twemoji": (
        "flat cartoon",
        "flat vector icon",
        "simple flat sticker",
        "flat illustration",
        "minimal flat drawing",
        "clip art picture",
    ),
}
#: Effect -> adjectives; the first two are also in the contexts file.
EFFECT_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "clean", "clear", "good"),
    "grayscale": ("grayscale", "gray", "colorless", "monochrome"),
    "inverted": ("inverted", "negative", "reversed"),
    "dark": ("dark", "dim", "underexposed", "night"),
    "bright": ("bright", "pale", "faded", "overexposed"),
    "blurry": ("blurry", "blurred", "unfocused", "fuzzy"),
    "pixelated": ("pixelated", "blocky", "low resolution", "mosaic"),
    "rotated": ("rotated", "tilted", "turned", "crooked"),
    "tinted": ("tinted", "stained", "toned"),
    "noisy": ("noisy", "grainy", "dirty", "speckled"),
    "small": ("small", "tiny", "distant", "little"),
    "cropped": ("cropped", "close-up", "zoomed", "cut"),
}
#: Words that state nothing, so that they are known and change little.
_MEDIA = ("picture", "image", "photo", "picture", "depiction", "rendition", "art", "drawing")
_FILLERS = ("nice", "cool", "weird", "bad", "large", "good", "big", "cute", "real")
_DETERMINERS = ("a", "a", "a", "the", "one", "my", "this", "an", "")

#: What other sub-groups are called; most are their own name with spaces.
_OTHER_KINDS = {
    "alphanum": "sign",
    "av-symbol": "sign",
    "award-medal": "medal",
    "book-paper": "paper",
    "body-parts": "body part",
    "country-flag": "flag",
    "currency": "sign",
    "dishware": "dish",
    "drink": "drink",
    "emotion": "symbol",
    "event": "party",
    "face-costume": "monster",
    "gender": "sign",
    "geometric": "shape",
    "household": "furniture",
    "light-video": "device",
    "musical-instrument": "instrument",
    "office": "office thing",
    "other-symbol": "symbol",
    "other-object": "object",
    "person-symbol": "silhouette",
    "place-geographic": "landscape",
    "place-map": "map",
    "place-other": "place",
    "punctuation": "mark",
    "religion": "symbol",
    "sky-weather": "weather",
    "subdivision-flag": "flag",
    "time": "clock",
    "transport-sign": "sign",
    "warning": "sign",
    "zodiac": "sign",
}

#: Sub-groups of the ten classes that have a word of their own; the others use the class word.
_GROUP_WORDS = {
    "animal-bird": "bird",
    "animal-bug": "bug",
    "animal-mammal": "mammal",
    "animal-marine": "sea animal",
    "animal-reptile": "reptile",
    "cat-face": "cat",
    "face-smiling": "smiling face",
    "family": "family",
    "food-fruit": "fruit",
    "food-sweet": "sweet food",
    "food-vegetable": "vegetable",
    "person-sport": "person doing sport",
    "plant-flower": "flower",
    "transport-air": "flying vehicle",
    "transport-ground": "land vehicle",
    "transport-water": "water vehicle",
}


@dataclass(frozen=True)
class Facts:
    """What is true of a picture, or what a caption states (None: not stated).

    Attributes:
        effect: photometric effect.
        style: domain.
        kind: class word, or the word for the sub-group where it has no class.
        group: Unicode sub-group.
        key: the emoji.
    """

    effect: str | None = None
    style: str | None = None
    kind: str | None = None
    group: str | None = None
    key: str | None = None


def kind_word(concept: Concept) -> str:
    """The class word, or a word for the sub-group."""
    return concept.cls or _OTHER_KINDS.get(concept.subgroup, concept.subgroup.replace("-", " "))


def group_word(concept: Concept) -> str:
    """A word between class and name, e.g. "bird" or "fruit"."""
    return _GROUP_WORDS.get(concept.subgroup, kind_word(concept))


def contexts() -> list[tuple[str, Facts]]:
    """The 36 templates of the contexts file, each with the fact it states."""
    found = []
    for style, phrases in STYLE_PHRASES.items():
        found += [(_template(phrase), Facts(style=style)) for phrase in phrases[:3]]
    for effect, words in EFFECT_WORDS.items():
        found += [(_template(f"{word} picture"), Facts(effect=effect)) for word in words[:2]]
    return found


def _template(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase} of a {{}}."


def caption(picture: Facts, concept: Concept, rng: np.random.Generator) -> tuple[str, Facts]:
    """One random true caption of a picture, and the facts it states."""
    thing, stated = _thing(concept, rng)
    # Mostly one context at a time, as the prompts that ask for a class have it.
    draw = rng.random()
    style = picture.style if draw < 0.4 else None
    effect = picture.effect if 0.3 <= draw < 0.7 else None
    medium = _style_phrase(style, rng) if style else _pick(_MEDIA, rng)
    words = [_pick(_DETERMINERS, rng)]
    if effect:
        words.append(_pick(EFFECT_WORDS[effect], rng, favoured=2))
    elif rng.random() < 0.1:
        words.append(_pick(_FILLERS, rng))
    words += [medium, "of", _pick(_DETERMINERS, rng), thing]
    text = " ".join(word for word in words if word) + ("." if rng.random() < 0.7 else "")
    facts = Facts(effect=effect, style=style, kind=stated.kind, group=stated.group, key=stated.key)
    return text, facts


def _thing(concept: Concept, rng: np.random.Generator) -> tuple[str, Facts]:
    kind = kind_word(concept)
    known = Facts(kind=kind, group=concept.subgroup, key=concept.key)
    draw = rng.random()
    if draw < 0.55:
        return kind, Facts(kind=kind)
    if draw < 0.67:
        group = concept.subgroup if concept.subgroup in _GROUP_WORDS else None
        return group_word(concept), Facts(kind=kind, group=group)
    if draw < 0.8:
        return concept.name, known
    joints = ("{n}, a {k}", "{n}, a kind of {k}", "{k}: {n}", "{k}, a {n}")
    return _pick(joints, rng).format(n=concept.name, k=kind), known


def _style_phrase(style: str, rng: np.random.Generator) -> str:
    return _pick(STYLE_PHRASES[style], rng, favoured=3)


def _pick(options: tuple[str, ...], rng: np.random.Generator, favoured: int = 0) -> str:
    """A random option; three times in four one of the first `favoured`, if any."""
    if favoured and rng.random() < 0.75:
        options = options[:favoured]
    return options[int(rng.integers(len(options)))]


def truth_matrix(pictures: list[Facts], captions: list[Facts]) -> np.ndarray:
    """Which caption is true of which picture: bool, shape (pictures, captions)."""
    true = np.ones((len(pictures), len(captions)), dtype=bool)
    for name in ("effect", "style", "kind", "group", "key"):
        have = np.array([getattr(facts, name) for facts in pictures], dtype=object)
        said = np.array([getattr(facts, name) for facts in captions], dtype=object)
        unsaid = np.array([value is None for value in said])
        true &= (have[:, None] == said[None, :]) | unsaid[None, :]
    return true
