"""Build the emoji archives, the split, the audit of `tiny` and its pre-training images.

    npm install emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 openmoji@17.0.0 \\
        @lobehub/fluent-emoji-3d@1.1.0 @iconify-json/emojione-v1@1.2.3 \\
        @iconify-json/emojione@1.2.3 @iconify-json/emojione-monotone@1.2.1 \\
        @iconify-json/fxemoji@1.2.2 @iconify-json/streamline-emojis@1.2.4 \\
        @iconify-json/noto-v1@1.2.5 @iconify-json/fluent-emoji-high-contrast@1.2.6 \\
        @iconify-json/fluent-emoji-flat@1.2.6 @iconify-json/openmoji@1.2.29
    pip install resvg-py
    python tools/build_emoji.py --node-modules node_modules --work-dir WORK
    python tools/build_emoji.py --check

Archives and tables are written to the package's assets, and WORK/pretrain.npz for pretrain_tiny.py.
All files are identical on every run with Pillow 13.0 and resvg-py 0.5. emoji_icons.csv lists which
icon of each further style shows which thing; it was made by name and reviewed by eye.

The split is made over *base names*: the CLDR short name without the words that only describe a
variant (gender, hair, skin, direction, colour). All emoji of a base name are on the same side. Two
kinds of images of the further styles are dropped: images equal to an earlier one of their style,
and images of a never-seen style that nearly equal a pre-training image, or the same thing in a seen
style (an egg is an egg). Two images nearly equal if at most a tenth of the 480 bits of their
difference hashes differ.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import re
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from domainbed_carft.data import emoji, emoji_styles
from domainbed_carft.data.emoji_styles import DrawingStyle

DOMAINS = ("fluent3d", "line", "noto", "twemoji")

#: Class -> Unicode sub-groups, spelled like in OpenMoji's metadata.
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
        # things next to roads, rails and quays
        *("bus stop", "motorway", "railway track", "oil drum", "fuel pump", "wheel", "seat"),
        *("police car light", "horizontal traffic light", "vertical traffic light"),
        *("stop sign", "construction", "anchor", "ring buoy", "station"),
        # a sign of danger rather than a face
        "skull and crossbones",
    )
)

#: Share of each class's concepts that is held out, and the minimum number of concepts.
HELD_OUT_SHARE = 0.48
MIN_HELD_OUT = 16

#: Words that only make a variant: people, directions, colours, and the rest.
_VARIANT_WORDS = """
    man men woman women person people boy girl child man's woman's
    left right up down leftwards rightwards left-facing right-facing front-facing facing
    oncoming tilted
    red orange yellow green blue purple brown black white grey pink light
    and japanese baby small tiny
"""
_DROPPED = frozenset(_VARIANT_WORDS.split())
#: Base name if all words of a name describe a variant.
_BARE = "person"

#: Variants that the rule above does not catch.
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
#: Things that are also in "hammer and pick", a pre-training emoji: on neither side.
_SHOWN_IN_PRETRAINING = frozenset(("hammer", "pick", "hammer wrench"))
#: Sub-groups that show one thing in many moods.
_ONE_THING = {"cat-face": "cat", "monkey-face": "monkey"}


@dataclass(frozen=True)
class Concept:
    """One emoji without skin tones, in any style.

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
        """The class, or "" for an emoji of none of the ten classes."""
        return "" if self.name in NOT_OF_CLASS else _CLASS_BY_SUBGROUP.get(self.subgroup, "")

    @property
    def slug(self) -> str:
        """File name without the extension."""
        return re.sub(r"[^a-z0-9]+", "-", self.name).strip("-")


_CLASS_BY_SUBGROUP = {group: cls for cls, groups in CLASS_SUBGROUPS.items() for group in groups}


def normalise(text: str) -> str:
    """Return a CLDR short name in ASCII lower case, without accents and typographic quotes."""
    text = text.replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    decomposed = unicodedata.normalize("NFKD", text)
    return decomposed.encode("ascii", "ignore").decode().lower().strip()


def base_name(name: str, subgroup: str) -> str:
    """Return the name shared by all variants: "running" for "man running"."""
    if subgroup in _ONE_THING:
        return _ONE_THING[subgroup]
    head = name.split(":")[0]
    words = [w for w in head.split() if w not in _DROPPED]
    if len(words) > 1 and words[-1] == "face":
        words.pop()
    base = " ".join(words) or (head if head == "baby" else _BARE)
    return _ALIASES.get(base, base)


def split_concepts(concepts: list[Concept], complete: set[str]) -> dict[str, str]:
    """Assign every concept to a side of the split.

    In each class the base names are ordered by their SHA-256, and held out from the front until the
    class's share is reached.

    Args:
        concepts: all emoji.
        complete: keys of the emoji drawn in every style; only these can be held out.

    Returns:
        Key -> "held_out", "pretrain", or "unused" (a variant of a held-out thing that has no
        class or is not drawn in all styles, or a thing that pre-training shows next to another).
    """
    members: dict[str, dict[str, int]] = {cls: defaultdict(int) for cls in CLASS_SUBGROUPS}
    for concept in concepts:
        if concept.cls and concept.key in complete:
            members[concept.cls][concept.base] += 1
    held: set[str] = set()
    for bases in members.values():
        min_count = max(MIN_HELD_OUT, round(HELD_OUT_SHARE * sum(bases.values())))
        count = 0
        for base in sorted(bases, key=_digest):
            if count >= min_count:
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
    """Raise ValueError if base names are on both sides of the split."""
    held = {c.base for c in concepts if sides[c.key] == "held_out"}
    seen = {c.base for c in concepts if sides[c.key] == "pretrain"}
    if held & seen:
        raise ValueError(f"on both sides of the split: {sorted(held & seen)}")


SIZE = 64

#: Domain -> folder below node_modules with one file per emoji.
FOLDERS = {
    "fluent3d": "@lobehub/fluent-emoji-3d/assets",
    "line": "openmoji/black/svg",
    "noto": "emoji-datasource-google/img/google/64",
    "twemoji": "emoji-datasource-twitter/img/twitter/64",
}
_METADATA = "openmoji/data/openmoji.json"


def emoji_key(name: str) -> str:
    """Normalise code points: the packages differ in case, joiner and U+FE0F."""
    parts = name.lower().replace("_", "-").split("-")
    return "-".join(part for part in parts if part != "fe0f")


def read_catalogue(node_modules: Path) -> list[Concept]:
    """Read all Unicode emoji without skin tones, in Unicode's order.

    OpenMoji's additional emoji (groups "extras-...") are skipped: their names are not CLDR's, so
    variants of a held-out thing could not be recognised by name.
    """
    entries = json.loads((node_modules / _METADATA).read_text(encoding="utf-8"))
    concepts = {}
    for entry in entries:
        if entry["skintone"] or entry["group"].startswith("extras"):
            continue
        key = emoji_key(entry["hexcode"])
        concepts[key] = Concept(key, normalise(entry["annotation"]), entry["subgroups"])
    return list(concepts.values())


def list_files(node_modules: Path) -> dict[str, dict[str, Path]]:
    """Return domain -> emoji key -> file.

    Raises:
        FileNotFoundError: if a package is missing.
    """
    files = {}
    for domain, folder in FOLDERS.items():
        root = node_modules / folder
        if not root.is_dir():
            raise FileNotFoundError(
                f"{root} does not exist; run the npm install lines of this file"
            )
        files[domain] = {emoji_key(path.stem): path for path in sorted(root.iterdir())}
    return files


def complete_keys(files: dict[str, dict[str, Path]], keys: Iterable[str]) -> set[str]:
    """Return the keys that every style has drawn."""
    return {key for key in keys if all(key in drawn for drawn in files.values())}


def read_image(path: Path) -> np.ndarray:
    """Read an image on white: uint8, (SIZE, SIZE, 3)."""
    if path.suffix == ".svg":
        import resvg_py  # only needed to build; checking and training also import this module

        data = resvg_py.svg_to_bytes(
            svg_path=str(path), width=SIZE, height=SIZE, background="#ffffff"
        )
        image = Image.open(io.BytesIO(bytes(data)))
    else:
        image = Image.open(path)
    rgba = image.convert("RGBA")
    if rgba.size != (SIZE, SIZE):
        # Premultiplied, so that colours of transparent pixels do not bleed into the edges.
        rgba = rgba.convert("RGBa").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        rgba = rgba.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def check_package(node_modules: Path, style: DrawingStyle) -> None:
    """Raise ValueError unless npm installed the exact package of the style."""
    # npm writes the version and digest of each archive to this file.
    lock = json.loads((node_modules / ".package-lock.json").read_text(encoding="utf-8"))
    installed = lock["packages"].get(f"node_modules/{style.package}", {})
    found = (installed.get("version"), installed.get("integrity"))
    expected = (style.version, style.integrity)
    if found != expected:
        raise ValueError(f"{style.package}: found {found}, expected {expected}; see npm install")


def read_icons(node_modules: Path, package: str) -> dict[str, Any]:
    """Read the icons of a package: bodies of SVG, sizes and aliases."""
    path = node_modules / package / "icons.json"
    return json.loads(path.read_text(encoding="utf-8"))


def draw_icon(icons: dict[str, Any], icon_name: str) -> np.ndarray:
    """Draw an icon on white, in black if it has no colour: uint8, (SIZE, SIZE, 3)."""
    import resvg_py  # only needed to build

    alias = icons.get("aliases", {}).get(icon_name, {})
    if unexpected := alias.keys() - {"parent", "hFlip", "hidden"}:
        raise ValueError(f"the alias {icon_name} has unexpected keys: {sorted(unexpected)}")
    icon = icons["icons"][alias.get("parent", icon_name)]
    width, height = (icon.get(name) or icons[name] for name in ("width", "height"))
    side = max(width, height)  # a few icons are slightly higher than wide; centre them

    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{(width - side) / 2:g} {(height - side) / 2:g} {side} {side}" '
        f'width="{side}" height="{side}" color="#000000">'
        f"{icon['body']}</svg>"
    )
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, background="#ffffff")
    image = Image.open(io.BytesIO(bytes(drawn))).convert("RGB")
    if image.size != (SIZE, SIZE):
        raise ValueError(f"{icon_name} was drawn {image.size}, expected {SIZE} x {SIZE} pixels")

    pixels = np.asarray(image)
    return pixels[:, ::-1] if alias.get("hFlip") else pixels


GRID = 16
BITS = 2 * GRID * (GRID - 1)
#: Two images are near duplicates if at most this number of bits differ: a tenth.
MAX_DISTANCE = BITS // 10
#: Shares of red, green and blue in the luminance, in thousandths (ITU-R BT.601).
_LUMINANCE = np.array((299, 587, 114))


def difference_hashes(images: np.ndarray) -> np.ndarray:
    """Return the hashes, bool (n, BITS), of images, uint8 (n, 64, 64, 3)."""
    luminance = images.astype(np.int64) @ _LUMINANCE
    side = luminance.shape[1] // GRID
    cells = luminance.reshape(-1, GRID, side, GRID, side).sum(axis=(2, 4))

    to_the_right = cells[:, :, :-1] > cells[:, :, 1:]
    below = cells[:, :-1] > cells[:, 1:]
    flat = [bits.reshape(len(cells), -1) for bits in (to_the_right, below)]
    return np.concatenate(flat, axis=1)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the numbers of differing bits, (n, m), of hashes (n, BITS) and (m, BITS)."""
    # Exact in float32, whose matrix products are fast.
    a = first.astype(np.float32)
    b = second.astype(np.float32)
    return (a @ (1 - b).T + (1 - a) @ b.T).astype(np.int32)


def as_text(bits: np.ndarray) -> str:
    """Convert a hash to hexadecimal digits."""
    return np.packbits(bits).tobytes().hex()


def from_text(text: str) -> np.ndarray:
    """Convert hexadecimal digits of `as_text` back to a hash."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:BITS].astype(bool)


ASSETS = Path(__file__).resolve().parents[1] / "domainbed_carft" / "assets"
_STAMP = (2020, 1, 1, 0, 0, 0)
_COLUMNS = ("codepoints", "name", "subgroup", "class", "split")


def png_bytes(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    """Write a zip archive with sorted names and a fixed time stamp, atomically."""
    partial = path.with_suffix(".part")
    with zipfile.ZipFile(partial, "w") as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _STAMP)
            info.external_attr = 0o644 << 16
            # PNG is already deflated.
            info.compress_type = (
                zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
            )
            archive.writestr(info, members[name])
    partial.replace(path)


def write_split(path: Path, concepts: list[Concept], sides: dict[str, str]) -> None:
    with path.open("w", newline="", encoding="ascii") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for c in sorted(concepts, key=lambda c: c.key):
            writer.writerow((c.key, c.name, c.subgroup, c.cls, sides[c.key]))


def read_split(path: Path) -> tuple[list[Concept], dict[str, str]]:
    """Read the concepts and their sides from a file of `write_split`."""
    with path.open(newline="", encoding="ascii") as stream:
        rows = list(csv.DictReader(stream))
    concepts = [Concept(r["codepoints"], r["name"], r["subgroup"]) for r in rows]
    return concepts, {r["codepoints"]: r["split"] for r in rows}


def held_out_members(
    concepts: list[Concept], sides: dict[str, str], files: dict[str, dict[str, Path]]
) -> dict[str, bytes]:
    """Return archive name -> PNG, for all held-out concepts in all styles."""
    members = {}
    for concept in concepts:
        if sides[concept.key] == "held_out":
            for domain in DOMAINS:
                name = f"{domain}/{concept.cls}/{concept.slug}.png"
                if name in members:
                    raise ValueError(f"two emoji have the file name {name}")
                members[name] = png_bytes(read_image(files[domain][concept.key]))
    return members


def write_pretraining(
    path: Path, concepts: list[Concept], sides: dict[str, str], files: dict[str, dict[str, Path]]
) -> int:
    """Write the pre-training images as arrays, and return their number."""
    images, keys, styles = [], [], []
    for concept in concepts:
        for domain in DOMAINS:
            if sides[concept.key] == "pretrain" and concept.key in files[domain]:
                images.append(read_image(files[domain][concept.key]))
                keys.append(concept.key)
                styles.append(domain)
    np.savez(path, images=np.stack(images), keys=np.array(keys), styles=np.array(styles))
    return len(images)


def report(concepts: list[Concept], sides: dict[str, str]) -> None:
    """Print the counts of each class on each side."""
    counts = Counter((c.cls, sides[c.key]) for c in concepts)
    for cls in [*CLASS_SUBGROUPS, ""]:
        held, seen, unused = (counts[cls, side] for side in ("held_out", "pretrain", "unused"))
        print(f"{cls or '(other)':10} held out {held:4}  pre-training {seen:4}  unused {unused:3}")
    print("total", dict(Counter(sides.values())))


def build_styles(node_modules: Path, work_dir: Path) -> None:
    concepts, files = read_catalogue(node_modules), list_files(node_modules)
    sides = split_concepts(concepts, complete_keys(files, [c.key for c in concepts]))
    check_disjoint(concepts, sides)
    write_split(ASSETS / "emoji_split.csv", concepts, sides)
    members = held_out_members(concepts, sides, files)
    members["LICENSES.txt"] = (ASSETS / "LICENSES.txt").read_bytes()
    write_archive(ASSETS / "emoji_styles.zip", members)
    work_dir.mkdir(parents=True, exist_ok=True)
    count = write_pretraining(work_dir / "pretrain.npz", concepts, sides, files)
    print(f"{count} pre-training images in {work_dir / 'pretrain.npz'}")


def check_styles() -> None:
    """Raise ValueError unless the sides are disjoint and the archive equals the held-out side."""
    concepts, sides = read_split(ASSETS / "emoji_split.csv")
    check_disjoint(concepts, sides)
    held = [c for c in concepts if sides[c.key] == "held_out"]
    expected = {f"{d}/{c.cls}/{c.slug}.png" for d in DOMAINS for c in held} | {"LICENSES.txt"}
    path = ASSETS / "emoji_styles.zip"
    with zipfile.ZipFile(path) as archive:
        members = set(archive.namelist())
    if members != expected:
        raise ValueError(f"archive and split differ in {sorted(members ^ expected)[:5]}")
    data = path.read_bytes()
    report(concepts, sides)
    print(f"{path.name}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


LICENSES = ASSETS / "LICENSES_further_styles.txt"
AUDIT = ASSETS / "tiny_pretraining.csv"
NEAR_DUPLICATES = ASSETS / "emoji_styles_near_duplicates.csv"
ICONS = Path(__file__).resolve().parent / "emoji_icons.csv"
#: Of all assets together, to limit the size of the wheel.
MAX_ASSET_BYTES = 32 * 2**20


def write_audit(pretrain: Path) -> None:
    """List the images of pretrain.npz: thing, style, SHA-256 of the pixels, difference hash."""
    stored = np.load(pretrain)
    hashes = difference_hashes(stored["images"])
    with AUDIT.open("w", newline="", encoding="ascii") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("codepoints", "style", "sha256", "hash"))
        for key, style, pixels, bits in zip(
            stored["keys"], stored["styles"], stored["images"], hashes, strict=True
        ):
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
            writer.writerow((key, style, digest, as_text(bits)))


def read_audit() -> list[dict[str, str]]:
    """Read the list of pre-training images."""
    with AUDIT.open(newline="", encoding="ascii") as stream:
        return list(csv.DictReader(stream))


def read_audited_hashes() -> np.ndarray:
    """Return the difference hashes of all pre-training images."""
    return np.stack([from_text(row["hash"]) for row in read_audit()])


def format_near_duplicates() -> str:
    """Format a CSV table of images of EmojiStyles that nearly equal a pre-training image.

    The columns are the image, the number of differing bits, thing and style of the nearest
    pre-training image, and "yes" if both images are identical.
    """
    images = read_images(ASSETS / emoji.ARCHIVE)
    names = sorted(images)
    audit = read_audit()
    hashes = difference_hashes(np.stack([images[name] for name in names]))
    bits = distances(hashes, read_audited_hashes())

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("image", "bits", "codepoints", "style", "identical"))
    for name, image_bits in zip(names, bits, strict=True):
        nearest = audit[int(image_bits.argmin())]
        digest = hashlib.sha256(images[name].tobytes()).hexdigest()[:16]
        identical = "yes" if digest == nearest["sha256"] else "no"
        if image_bits.min() <= MAX_DISTANCE:
            row = (name, image_bits.min(), nearest["codepoints"], nearest["style"], identical)
            writer.writerow(row)
    return stream.getvalue()


def read_images(path: Path) -> dict[str, np.ndarray]:
    """Read the pixels of an archive's images, by member."""
    with zipfile.ZipFile(path) as archive:
        return {
            name: np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            for name in archive.namelist()
            if name.endswith(".png")
        }


def seen_hashes() -> dict[str, np.ndarray]:
    """Return the difference hashes of drawings in the seen styles, by "class/thing.png"."""
    images = read_images(ASSETS / emoji.ARCHIVE)
    things = sorted({name.partition("/")[2] for name in images})
    return {
        thing: difference_hashes(np.stack([images[f"{style}/{thing}"] for style in DOMAINS]))
        for thing in things
    }


def held_out_things() -> dict[str, Concept]:
    """Return the things of EmojiStyles, by code points."""
    concepts, sides = read_split(ASSETS / "emoji_split.csv")
    return {c.key: c for c in concepts if sides[c.key] == "held_out"}


def draw_style(node_modules: Path, style: DrawingStyle) -> dict[str, np.ndarray]:
    """Draw all things of a style, without repetitions: "class/thing.png" -> pixels."""
    check_package(node_modules, style)
    icons = read_icons(node_modules, style.package)
    things = held_out_things()
    with ICONS.open(newline="", encoding="ascii") as stream:
        rows = [row for row in csv.DictReader(stream) if row[style.name]]

    drawn: dict[str, np.ndarray] = {}
    digests = set()
    for row in rows:
        thing = things[row["codepoints"]]
        if thing.name != row["name"]:
            raise ValueError(f"{ICONS.name} has the name {row['name']!r} for {thing.name!r}")
        pixels = draw_icon(icons, row[style.name])
        digest = hashlib.sha256(pixels.tobytes()).digest()
        if digest not in digests:
            digests.add(digest)
            drawn[f"{thing.cls}/{thing.slug}.png"] = pixels
    print(f"{style.name}: {len(rows)} things, {len(rows) - len(drawn)} repetitions dropped")
    return drawn


def find_near_duplicates(
    drawn: dict[str, np.ndarray], audited: np.ndarray, same_things: dict[str, np.ndarray]
) -> list[str]:
    """Return the drawings that nearly equal a pre-training image, or the same thing."""
    hashes = difference_hashes(np.stack(list(drawn.values())))
    near_duplicates = []
    for thing, bits in zip(drawn, hashes, strict=True):
        others = np.concatenate([audited, same_things[thing]])
        if distances(bits[None], others).min() <= MAX_DISTANCE:
            near_duplicates.append(thing)
    return near_duplicates


def build_unseen(node_modules: Path, work_dir: Path) -> None:
    """Write the audit, the archive and the counts of EmojiUnseen."""
    write_audit(work_dir / "pretrain.npz")
    NEAR_DUPLICATES.write_text(format_near_duplicates(), encoding="ascii")
    audited = read_audited_hashes()
    same_things = seen_hashes()
    members = {"LICENSES.txt": LICENSES.read_bytes()}
    for style in emoji_styles.styles():
        if style.label == emoji_styles.SEEN:
            continue
        drawn = draw_style(node_modules, style)
        if style.label == emoji_styles.NEVER_SEEN:
            for thing in find_near_duplicates(drawn, audited, same_things):
                print(f"{style.name}: {thing} nearly equals a seen drawing and is dropped")
                del drawn[thing]
        for thing, pixels in drawn.items():
            members[f"{emoji_styles.folder(style.label)}/{style.name}/{thing}"] = png_bytes(pixels)
    write_archive(ASSETS / emoji.FURTHER_ARCHIVE, members)
    write_counts(members)


def write_counts(members: Iterable[str]) -> None:
    """Write the counts by class and never-seen style, for `carft data verify`."""
    columns = emoji_styles.names(emoji_styles.NEVER_SEEN)
    counts = Counter(tuple(name.split("/")[1:3]) for name in members)
    classes = sorted({thing.cls for thing in held_out_things().values()})
    with (ASSETS / "classes" / "EmojiUnseen.csv").open("w", newline="", encoding="ascii") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("class", *columns))
        for name in classes:
            writer.writerow((name, *(counts[style, name] for style in columns)))


def check_unseen() -> None:
    """Print the counts; raise ValueError for near duplicates or too many bytes."""
    audited = read_audited_hashes()
    same_things = seen_hashes()
    images = read_images(ASSETS / emoji.FURTHER_ARCHIVE)
    for style in emoji_styles.styles():
        if style.label == emoji_styles.SEEN:
            continue
        prefix = f"{emoji_styles.folder(style.label)}/{style.name}/"
        drawn = {n.removeprefix(prefix): p for n, p in images.items() if n.startswith(prefix)}
        near = find_near_duplicates(drawn, audited, same_things)
        print(f"{style.name} ({style.label}): {len(drawn)} images, {len(near)} near duplicates")
        if len(drawn) != style.images:
            raise ValueError(f"emoji_styles.json lists {style.images} images of {style.name}")
        if near and style.label == emoji_styles.NEVER_SEEN:
            raise ValueError(f"{style.name} is not unseen: {near}")

    if NEAR_DUPLICATES.read_text(encoding="ascii") != format_near_duplicates():
        raise ValueError(f"{NEAR_DUPLICATES.name} differs from the images")

    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    if size > MAX_ASSET_BYTES:
        raise ValueError(f"the assets have {size} bytes, expected at most {MAX_ASSET_BYTES}")
    data = (ASSETS / emoji.FURTHER_ARCHIVE).read_bytes()
    print(f"{emoji.FURTHER_ARCHIVE}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
    print(f"all assets: {size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--node-modules", type=Path, help="folder with the npm packages")
    parser.add_argument("--work-dir", type=Path, default=Path("work"), help="for pretrain.npz")
    parser.add_argument("--check", action="store_true", help="only check the existing files")
    arguments = parser.parse_args()
    if not arguments.check:
        if arguments.node_modules is None:
            parser.error("pass --node-modules, or --check to check the existing files")
        build_styles(arguments.node_modules, arguments.work_dir)
        build_unseen(arguments.node_modules, arguments.work_dir)
    check_styles()
    check_unseen()


if __name__ == "__main__":
    main()
