"""Builds the archive of further drawing styles of the held-out things, and the audit of `tiny`.

    python tools/build_emoji_styles.py --node-modules DIR --work-dir WORK
    python tools/build_emoji_unseen.py --node-modules DIR --work-dir WORK
    python tools/build_emoji_unseen.py --check

DIR has the packages that iconify.py and emoji_sources.py name. The first command writes
WORK/pretrain.npz, the pictures that `tiny` was trained on. The second lists them, with digests and
difference hashes, in assets/tiny_pretraining.csv, and the pictures of EmojiStyles that nearly equal
one of them in assets/emoji_styles_near_duplicates.csv. emoji_icons.csv says which icon of each
style shows which thing; it was made by name and reviewed by eye. All files are the same bytes on
every run with Pillow 13.0 and resvg-py 0.5.

Two kinds of pictures are left out. A picture that equals an earlier one of its style, pixel by
pixel, tells nothing new. A picture of a never-seen style that nearly equals one of pre-training, or
the same thing's in a seen style, is not unseen: an egg is an egg.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from build_emoji_styles import ASSETS, png_bytes, read_split, write_archive
from emoji_concepts import DOMAINS, Concept
from iconify import check_package, draw_icon, read_icons
from near_duplicates import NEAR, as_text, difference_hashes, distances, from_text
from PIL import Image

from domainbed_carft.data import emoji, emoji_styles
from domainbed_carft.data.emoji_styles import DrawingStyle

LICENSES = ASSETS / "LICENSES_further_styles.txt"
AUDIT = ASSETS / "tiny_pretraining.csv"
NEAR_DUPLICATES = ASSETS / "emoji_styles_near_duplicates.csv"
ICONS = Path(__file__).resolve().parent / "emoji_icons.csv"
#: All assets together, so that the wheel stays small.
LIMIT = 32 * 2**20


def write_audit(pretrain: Path) -> None:
    """Lists the pictures of pretrain.npz: thing, style, SHA-256 of the pixels, difference hash."""
    stored = np.load(pretrain)
    hashes = difference_hashes(stored["pictures"])
    with AUDIT.open("w", newline="", encoding="ascii") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("codepoints", "style", "sha256", "hash"))
        for key, style, pixels, bits in zip(
            stored["keys"], stored["styles"], stored["pictures"], hashes, strict=True
        ):
            digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
            writer.writerow((key, style, digest, as_text(bits)))


def read_audit() -> list[dict[str, str]]:
    """The pictures of pre-training, as `write_audit` lists them."""
    with AUDIT.open(newline="", encoding="ascii") as stream:
        return list(csv.DictReader(stream))


def read_audited_hashes() -> np.ndarray:
    """The difference hashes of all pictures of pre-training."""
    return np.stack([from_text(row["hash"]) for row in read_audit()])


def near_duplicates() -> str:
    """A table of the pictures of EmojiStyles that nearly equal one of pre-training, as CSV.

    Columns: the picture, how many bits differ, thing and style of the nearest in pre-training, and
    whether the two are equal to the pixel.
    """
    pictures = read_pictures(ASSETS / emoji.ARCHIVE)
    names = sorted(pictures)
    audit = read_audit()
    hashes = difference_hashes(np.stack([pictures[name] for name in names]))
    bits = distances(hashes, read_audited_hashes())

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("picture", "bits", "codepoints", "style", "identical"))
    for name, of_picture in zip(names, bits, strict=True):
        nearest = audit[int(of_picture.argmin())]
        digest = hashlib.sha256(pictures[name].tobytes()).hexdigest()[:16]
        identical = "yes" if digest == nearest["sha256"] else "no"
        if of_picture.min() <= NEAR:
            row = (name, of_picture.min(), nearest["codepoints"], nearest["style"], identical)
            writer.writerow(row)
    return stream.getvalue()


def read_pictures(path: Path) -> dict[str, np.ndarray]:
    """Member -> pixels, of an archive."""
    with zipfile.ZipFile(path) as archive:
        return {
            name: np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            for name in archive.namelist()
            if name.endswith(".png")
        }


def seen_hashes() -> dict[str, np.ndarray]:
    """ "class/thing.png" -> the difference hashes of its drawings in the seen styles."""
    pictures = read_pictures(ASSETS / emoji.ARCHIVE)
    things = sorted({name.partition("/")[2] for name in pictures})
    return {
        thing: difference_hashes(np.stack([pictures[f"{style}/{thing}"] for style in DOMAINS]))
        for thing in things
    }


def held_out_things() -> dict[str, Concept]:
    """Code points -> the thing, of all in EmojiStyles."""
    concepts, sides = read_split(ASSETS / "emoji_split.csv")
    return {c.key: c for c in concepts if sides[c.key] == "held_out"}


def draw_style(node_modules: Path, style: DrawingStyle) -> dict[str, np.ndarray]:
    """ "class/thing.png" -> pixels, of all things that the style draws, without repetitions."""
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
            raise ValueError(f"{ICONS.name} calls {thing.name!r} {row['name']!r}")
        pixels = draw_icon(icons, row[style.name])
        digest = hashlib.sha256(pixels.tobytes()).digest()
        if digest not in digests:
            digests.add(digest)
            drawn[f"{thing.cls}/{thing.slug}.png"] = pixels
    print(f"{style.name}: {len(rows)} things, {len(rows) - len(drawn)} repetitions left out")
    return drawn


def near_seen(
    drawn: dict[str, np.ndarray], audited: np.ndarray, same_things: dict[str, np.ndarray]
) -> list[str]:
    """Those of the pictures that nearly equal one of pre-training, or of the same thing."""
    hashes = difference_hashes(np.stack(list(drawn.values())))
    found = []
    for thing, bits in zip(drawn, hashes, strict=True):
        others = np.concatenate([audited, same_things[thing]])
        if distances(bits[None], others).min() <= NEAR:
            found.append(thing)
    return found


def build(node_modules: Path, work_dir: Path) -> None:
    """Writes the audit, the archive and the counts of EmojiUnseen."""
    write_audit(work_dir / "pretrain.npz")
    NEAR_DUPLICATES.write_text(near_duplicates(), encoding="ascii")
    audited = read_audited_hashes()
    same_things = seen_hashes()
    members = {"LICENSES.txt": LICENSES.read_bytes()}
    for style in emoji_styles.styles():
        if style.label == emoji_styles.SEEN:
            continue
        drawn = draw_style(node_modules, style)
        if style.label == emoji_styles.NEVER_SEEN:
            for thing in near_seen(drawn, audited, same_things):
                print(f"{style.name}: {thing} nearly equals a seen drawing and is left out")
                del drawn[thing]
        for thing, pixels in drawn.items():
            members[f"{emoji_styles.folder(style.label)}/{style.name}/{thing}"] = png_bytes(pixels)
    write_archive(ASSETS / emoji.FURTHER_ARCHIVE, members)
    write_counts(members)


def write_counts(members: Iterable[str]) -> None:
    """Writes the pictures by class and never-seen style, as `carft data verify` expects them."""
    columns = emoji_styles.names(emoji_styles.NEVER_SEEN)
    counts = Counter(tuple(name.split("/")[1:3]) for name in members)
    classes = sorted({thing.cls for thing in held_out_things().values()})
    with (ASSETS / "classes" / "EmojiUnseen.csv").open("w", newline="", encoding="ascii") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("class", *columns))
        for name in classes:
            writer.writerow((name, *(counts[style, name] for style in columns)))


def check() -> None:
    """Prints the counts; raises ValueError for a near duplicate or too many bytes."""
    audited = read_audited_hashes()
    same_things = seen_hashes()
    pictures = read_pictures(ASSETS / emoji.FURTHER_ARCHIVE)
    for style in emoji_styles.styles():
        if style.label == emoji_styles.SEEN:
            continue
        place = f"{emoji_styles.folder(style.label)}/{style.name}/"
        drawn = {n.removeprefix(place): p for n, p in pictures.items() if n.startswith(place)}
        near = near_seen(drawn, audited, same_things)
        print(f"{style.name} ({style.label}): {len(drawn)} pictures, {len(near)} near duplicates")
        if len(drawn) != style.pictures:
            raise ValueError(f"emoji_styles.json says {style.pictures} pictures of {style.name}")
        if near and style.label == emoji_styles.NEVER_SEEN:
            raise ValueError(f"{style.name} is not unseen: {near}")

    if NEAR_DUPLICATES.read_text(encoding="ascii") != near_duplicates():
        raise ValueError(f"{NEAR_DUPLICATES.name} is not what the pictures give")

    size = sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file())
    if size > LIMIT:
        raise ValueError(f"the assets have {size} bytes, expected at most {LIMIT}")
    data = (ASSETS / emoji.FURTHER_ARCHIVE).read_bytes()
    print(f"{emoji.FURTHER_ARCHIVE}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")
    print(f"all assets: {size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--node-modules", type=Path, help="folder with the npm packages")
    parser.add_argument("--work-dir", type=Path, default=Path("work"), help="with pretrain.npz")
    parser.add_argument("--check", action="store_true", help="only check what is there")
    arguments = parser.parse_args()
    if not arguments.check:
        if arguments.node_modules is None:
            parser.error("--node-modules is needed unless --check is given")
        build(arguments.node_modules, arguments.work_dir)
    check()


if __name__ == "__main__":
    main()
