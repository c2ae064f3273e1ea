"""Which emoji belong to which class, which are variants of one thing, and the split.

The benchmark's pictures must be unseen by the tiny CLIP, so the split is made over *base
names*: the CLDR short name stripped of everything that only makes a variant (gender, hair,
skin, direction, colour). All emoji of one base name lie on one side of the split.

Standard library only, so that tests can recompute base names without any picture library.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass

DOMAINS = ("fluent3d", "line", "noto", "twemoji")

#: Class -> Unicode sub-groups, as OpenMoji's metadata spells them.
CLASS_SUBGROUPS: dict[str, tuple[str, ...]] = {
    "animal": (
        "animal-amphibian",
        "animal-bird",
        "animal-bug",
        "animal-mammal",
        "animal-marine",
        "animal-reptile",
        "cat-face",
        "monkey-face",
    ),
    "building": ("place-building", "place-religious"),
    "clothing": ("clothing",),
    "face": (
        "face-affection",
        "face-concerned",
        "face-glasses",
        "face-hand",
        "face-hat",
        "face-negative",
        "face-neutral-skeptical",
        "face-sleepy",
        "face-smiling",
        "face-tongue",
        "face-unwell",
    ),
    "food": ("food-asian", "food-fruit", "food-prepared", "food-sweet", "food-vegetable"),
    "hand": (
        "hand-fingers-closed",
        "hand-fingers-open",
        "hand-fingers-partial",
        "hand-prop",
        "hand-single-finger",
        "hands",
    ),
    "person": (
        "family",
        "person",
        "person-activity",
        "person-fantasy",
        "person-gesture",
        "person-resting",
        "person-role",
        "person-sport",
    ),
    "plant": ("plant-flower", "plant-other"),
    "tool": ("science", "tool", "writing"),
    "vehicle": ("transport-air", "transport-ground", "transport-water"),
}

#: Members of those sub-groups that do not show the class; they only serve pre-training.
NOT_OF_CLASS = frozenset(
    (
        # materials, not buildings
        *("brick", "rock", "wood"),
        # traces and parts of animals
        *("feather", "wing", "paw prints", "spider web", "spiral shell", "microbe"),
        # things beside roads, rails and quays
        *("bus stop", "motorway", "railway track", "oil drum", "fuel pump", "wheel", "seat"),
        *("police car light", "horizontal traffic light", "vertical traffic light"),
        *("stop sign", "construction", "anchor", "ring buoy", "station"),
        # a sign of danger rather than a face
        "skull and crossbones",
    )
)

#: Share of each class's concepts that is held out, and the least number of concepts.
HELD_OUT_SHARE = 0.48
HELD_OUT_LEAST = 16

#: Words that only make a variant: people, directions, colours, and the rest.
_VARIANT_WORDS = """
    man men woman women person people boy girl child man's woman's
    left right up down leftwards rightwards left-facing right-facing front-facing facing
    oncoming tilted
    red orange yellow green blue purple brown black white grey pink light
    and japanese baby small tiny
"""
_DROPPED = frozenset(_VARIANT_WORDS.split())
#: What is left of a name when all of its words mark a variant.
_BARE = "person"

#: Variants that no general rule catches, after the words above are dropped.
_ALIASES = {
    "airplane arrival": "airplane",
    "airplane departure": "airplane",
    "angry face with horns": "face with horns",
    "articulated lorry": "truck",
    "breast-feeding": "feeding",
    "bullet train": "train",
    "deaf": "deaf person",
    "delivery truck": "truck",
    "derelict house": "house",
    "empty nest": "nest",
    "fountain pen": "pen",
    "guide dog": "dog",
    "hatching chick": "chick",
    "high-speed train": "train",
    "house with garden": "house",
    "houses": "house",
    "in manual wheelchair": "in wheelchair",
    "in motorized wheelchair": "in wheelchair",
    "manual wheelchair": "wheelchair",
    "mermaid": "merperson",
    "merman": "merperson",
    "motor boat": "speedboat",
    "motorized wheelchair": "wheelchair",
    "mountain biking": "biking",
    "mrs. claus": "claus",
    "mx claus": "claus",
    "nest with eggs": "nest",
    "old": "person",
    "older": "person",
    "ox": "cow",
    "passenger ship": "ship",
    "pickup truck": "truck",
    "prince": "with crown",
    "princess": "with crown",
    "railway car": "train",
    "ram": "ewe",
    "santa claus": "claus",
    "service dog": "dog",
    "smiling face with horns": "face with horns",
    "soft ice cream": "ice cream",
    "spouting whale": "whale",
    "tram car": "tram",
    "two-hump camel": "camel",
    "water buffalo": "cow",
}
#: Things that "hammer and pick", which serves pre-training, shows as well: on neither side.
_SHOWN_IN_PRETRAINING = frozenset(("hammer", "pick", "hammer wrench"))
#: Sub-groups that show one thing in many moods.
_ONE_THING = {"cat-face": "cat", "monkey-face": "monkey"}


@dataclass(frozen=True)
class Concept:
    """One emoji without skin tones, whoever drew it.

    Attributes:
        key: lower-case hexadecimal code points joined by "-", without U+FE0F.
        name: CLDR short name in ASCII lower case, e.g. "dog face".
        subgroup: Unicode sub-group, e.g. "animal-mammal".
    """

    key: str
    name: str
    subgroup: str

    @property
    def base(self) -> str:
        return base_name(self.name, self.subgroup)

    @property
    def cls(self) -> str:
        """The class it belongs to, or "" for none of the ten."""
        return "" if self.name in NOT_OF_CLASS else _CLASS_OF.get(self.subgroup, "")

    @property
    def slug(self) -> str:
        """Its file name without the ending."""
        return re.sub(r"[^a-z0-9]+", "-", self.name).strip("-")


_CLASS_OF = {group: cls for cls, groups in CLASS_SUBGROUPS.items() for group in groups}


def plain(text: str) -> str:
    """ASCII lower case of a CLDR short name: no accents, no typographic quotes."""
    text = text.replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    decomposed = unicodedata.normalize("NFKD", text)
    return decomposed.encode("ascii", "ignore").decode().lower().strip()


def base_name(name: str, subgroup: str) -> str:
    """What all variants of one thing share: "man running" and "woman running" -> "running"."""
    if subgroup in _ONE_THING:
        return _ONE_THING[subgroup]
    head = name.split(":")[0]
    words = [w for w in head.split() if w not in _DROPPED]
    if len(words) > 1 and words[-1] == "face":
        words.pop()
    rest = " ".join(words) or (head if head == "baby" else _BARE)
    return _ALIASES.get(rest, rest)


def split_concepts(concepts: list[Concept], complete: set[str]) -> dict[str, str]:
    """Put every concept on one side.

    In each class the base names are ordered by their SHA-256, and taken from the front until
    the class's share is reached.

    Args:
        concepts: all emoji.
        complete: keys of those drawn in every style; no other can be held out.

    Returns:
        key -> "held_out", "pretrain", or "unused" (a variant of a held-out thing that has no
        class or is not drawn in all styles, or a thing that pre-training shows beside another).
    """
    members: dict[str, dict[str, int]] = {cls: defaultdict(int) for cls in CLASS_SUBGROUPS}
    for concept in concepts:
        if concept.cls and concept.key in complete:
            members[concept.cls][concept.base] += 1
    held: set[str] = set()
    for bases in members.values():
        wanted = max(HELD_OUT_LEAST, round(HELD_OUT_SHARE * sum(bases.values())))
        count = 0
        for base in sorted(bases, key=_digest):
            if count >= wanted:
                break
            held.add(base)
            count += bases[base]
    return {c.key: _side(c, held, complete) for c in concepts}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _side(concept: Concept, held: set[str], complete: set[str]) -> str:
    if concept.base not in held:
        return "pretrain"
    if concept.base in _SHOWN_IN_PRETRAINING:
        return "unused"
    return "held_out" if concept.cls and concept.key in complete else "unused"


def check_disjoint(concepts: list[Concept], sides: dict[str, str]) -> None:
    """Raise ValueError naming the base names that lie on both sides of the split."""
    held = {c.base for c in concepts if sides[c.key] == "held_out"}
    seen = {c.base for c in concepts if sides[c.key] == "pretrain"}
    if held & seen:
        raise ValueError(f"on both sides of the split: {sorted(held & seen)}")
