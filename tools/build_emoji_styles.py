"""Builds the EmojiStyles archive and, beside it, the tiny CLIP's pre-training pictures.

    python tools/build_emoji_styles.py --node-modules DIR --work-dir WORK
    python tools/build_emoji_styles.py --check

The npm packages are named in emoji_sources.py. The archive, the table of the split and the
contexts go into the package's assets; WORK/pretrain.npz is what pretrain_tiny.py reads. All
files are the same bytes on every run with the same versions of Pillow, zlib and resvg-py (what is
shipped was built with Pillow 13.0, resvg-py 0.5 from PyPI).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from captions import contexts
from emoji_concepts import (
    CLASS_SUBGROUPS,
    DOMAINS,
    Concept,
    check_disjoint,
    split_concepts,
)
from emoji_sources import complete_keys, list_files, read_catalogue, read_picture
from PIL import Image

ASSETS = Path(__file__).resolve().parent.parent / "domainbed_carft" / "assets"
LIMIT = 12 * 2**20
_STAMP = (2020, 1, 1, 0, 0, 0)
_COLUMNS = ("codepoints", "name", "subgroup", "class", "split")


def png_bytes(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    """Zip with sorted names and one time stamp, written then renamed."""
    partial = path.with_suffix(".part")
    with zipfile.ZipFile(partial, "w") as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _STAMP)
            info.external_attr = 0o644 << 16
            # PNG is deflated already; only the text gains from another pass.
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
    """The concepts and their sides, as `write_split` wrote them."""
    with path.open(newline="", encoding="ascii") as stream:
        rows = list(csv.DictReader(stream))
    concepts = [Concept(r["codepoints"], r["name"], r["subgroup"]) for r in rows]
    return concepts, {r["codepoints"]: r["split"] for r in rows}


def write_contexts(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{template}\n" for template, _ in contexts()), encoding="ascii")


def held_out_members(
    concepts: list[Concept], sides: dict[str, str], files: dict[str, dict[str, Path]]
) -> dict[str, bytes]:
    """Archive name -> PNG, for all held-out concepts in all styles."""
    members = {}
    for concept in concepts:
        if sides[concept.key] == "held_out":
            for domain in DOMAINS:
                name = f"{domain}/{concept.cls}/{concept.slug}.png"
                if name in members:
                    raise ValueError(f"two emoji share the file name {name}")
                members[name] = png_bytes(read_picture(files[domain][concept.key]))
    return members


def write_pretraining(
    path: Path, concepts: list[Concept], sides: dict[str, str], files: dict[str, dict[str, Path]]
) -> int:
    """All pictures that are not held out, as arrays; returns how many."""
    pictures, keys, styles = [], [], []
    for concept in concepts:
        for domain in DOMAINS:
            if sides[concept.key] == "pretrain" and concept.key in files[domain]:
                pictures.append(read_picture(files[domain][concept.key]))
                keys.append(concept.key)
                styles.append(domain)
    np.savez(path, pictures=np.stack(pictures), keys=np.array(keys), styles=np.array(styles))
    return len(pictures)


def report(concepts: list[Concept], sides: dict[str, str]) -> None:
    """Prints the counts of each class on each side."""
    counts = Counter((c.cls, sides[c.key]) for c in concepts)
    for cls in [*CLASS_SUBGROUPS, ""]:
        held, seen, unused = (counts[cls, side] for side in ("held_out", "pretrain", "unused"))
        print(f"{cls or '(other)':10} held out {held:4}  pre-training {seen:4}  unused {unused:3}")
    print("total", dict(Counter(sides.values())))


def build(node_modules: Path, work_dir: Path) -> None:
    concepts, files = read_catalogue(node_modules), list_files(node_modules)
    sides = split_concepts(concepts, complete_keys(files, [c.key for c in concepts]))
    check_disjoint(concepts, sides)
    write_contexts(ASSETS / "contexts" / "emoji.txt")
    write_split(ASSETS / "emoji_split.csv", concepts, sides)
    members = held_out_members(concepts, sides, files)
    members["LICENSES.txt"] = (ASSETS / "LICENSES.txt").read_bytes()
    write_archive(ASSETS / "emoji_styles.zip", members)
    work_dir.mkdir(parents=True, exist_ok=True)
    count = write_pretraining(work_dir / "pretrain.npz", concepts, sides, files)
    print(f"{count} pre-training pictures in {work_dir / 'pretrain.npz'}")


def check() -> None:
    """Proves that no base name is on both sides and that the archive holds just the held-out side.

    Raises ValueError if not.
    """
    concepts, sides = read_split(ASSETS / "emoji_split.csv")
    check_disjoint(concepts, sides)
    held = [c for c in concepts if sides[c.key] == "held_out"]
    wanted = {f"{d}/{c.cls}/{c.slug}.png" for d in DOMAINS for c in held} | {"LICENSES.txt"}
    path = ASSETS / "emoji_styles.zip"
    with zipfile.ZipFile(path) as archive:
        found = set(archive.namelist())
    if wanted != found:
        raise ValueError(f"archive and split differ in {sorted(wanted ^ found)[:5]}")
    data = path.read_bytes()
    if len(data) > LIMIT:
        raise ValueError(f"{path.name} has {len(data)} bytes, more than {LIMIT}")
    report(concepts, sides)
    print(f"{path.name}: {len(data)} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--node-modules", type=Path, help="folder with the four npm packages")
    parser.add_argument("--work-dir", type=Path, default=Path("work"), help="for pretrain.npz")
    parser.add_argument("--check", action="store_true", help="only check what is there")
    args = parser.parse_args()
    if not args.check:
        if args.node_modules is None:
            parser.error("--node-modules is needed unless --check is given")
        build(args.node_modules, args.work_dir)
    check()


if __name__ == "__main__":
    main()
