"""What is known of each benchmark before its data is seen: facts only.

Class names and counts stand in ``assets/classes/NAME.csv``, a class a line and an environment a
column, empty where nothing is known; ``assets/README.md`` names their sources.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files

from domainbed_carft.errors import CarftError

# Upstream DomainBed, where sources, folder names and the list of duplicates are from.
UPSTREAM = "b93c22a1cfc3b2428398272c1a116c8de1f4139e"
DRIVE = "https://drive.google.com/uc?id="
VISDA = "http://csr.bu.edu/ftp/visda/2019/multi-source/"
LILA = "https://storage.googleapis.com/public-datasets-lila/caltechcameratraps/"


@dataclass(frozen=True)
class Environment:
    """One environment: its label in DomainBed's tables, its folder, names that copies give it."""

    label: str
    folder: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """Where a file of the data set is published, and the name to save it under."""

    url: str
    file: str

    @property
    def is_archive(self) -> bool:
        """Whether it is unpacked, rather than read."""
        return self.file.endswith((".zip", ".tar.gz"))


@dataclass(frozen=True)
class Edition:
    """Picture counts of one state in which the data went round.

    ``counts``: environment folder -> pictures; ``by_class``: environment folder -> class ->
    pictures, without the environments of which that is not known.
    """

    name: str
    counts: Mapping[str, int]
    by_class: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        """Pictures in all environments."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Benchmark:
    """One data set.

    ``folder`` is below the data folder, "" for what is in the package; ``environments`` are in
    DomainBed's order, ``classes`` in label order, today's edition is the first of ``editions``;
    ``steps`` maps a protocol ("DomainBed", "SWAD", ...) to its training steps; ``certainty`` says
    where the counts are from, ``licence`` is "not stated" where we found none.
    """

    name: str
    folder: str
    environments: tuple[Environment, ...]
    classes: tuple[str, ...]
    editions: tuple[Edition, ...]
    sources: tuple[Source, ...]
    licence: str
    citation: str
    steps: Mapping[str, int]
    certainty: str


def get(name: str) -> Benchmark:
    """The benchmark called ``name``; CarftError with the nearest names where there is none."""
    if name not in BENCHMARKS:
        raise CarftError(f"no benchmark is called {name!r}; {nearest(name)}")
    return BENCHMARKS[name]


def nearest(name: str) -> str:
    """What to say of a name that is no benchmark's: those like it, and all."""
    lowered = {known.lower(): known for known in BENCHMARKS}
    alike = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered)]
    meant = f"did you mean {' or '.join(alike)}? " if alike else ""
    return f"{meant}Known: {', '.join(BENCHMARKS)}"


Table = Mapping[str, Mapping[str, int]]


def _table(name: str) -> tuple[tuple[str, ...], Table]:
    """Class names in label order, and environment -> class -> pictures where that is known."""
    path = files("domainbed_carft") / "assets" / "classes" / f"{name}.csv"
    header, *rows = csv.reader(path.read_text(encoding="utf-8").splitlines())
    counts = {
        environment: {row[0]: int(row[column]) for row in rows if row[column]}
        for column, environment in enumerate(header[1:], start=1)
    }
    return tuple(row[0] for row in rows), {e: c for e, c in counts.items() if c}


def _edition(name: str, by_class: Table, counts: Mapping[str, int] | None = None) -> Edition:
    """``counts`` where the table by class has gaps."""
    return Edition(name, counts or {e: sum(c.values()) for e, c in by_class.items()}, by_class)


def _steps(swad: int = 5001, clipood: int = 5000) -> Mapping[str, int]:
    """By protocol; MIRO trains as long as SWAD."""
    return {"DomainBed": 5001, "SWAD": swad, "MIRO": swad, "CLIPood": clipood}


def _pacs() -> Benchmark:
    classes, table = _table("PACS")
    return Benchmark(
        "PACS",
        "PACS",
        (
            Environment("A", "art_painting", ("art",)),
            Environment("C", "cartoon"),
            Environment("P", "photo"),
            Environment("S", "sketch"),
        ),
        classes,
        (_edition("as published", table),),
        (Source(f"{DRIVE}1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd", "PACS.zip"),),
        "not stated",
        "Li, Yang, Song, Hospedales: Deeper, Broader and Artier Domain Generalization. ICCV 2017, "
        "arXiv:1710.03077",
        _steps(),
        "counted by class in the authors' own split files, as SirRob1997/RSC keeps them",
    )


def _vlcs() -> Benchmark:
    classes, table = _table("VLCS")
    return Benchmark(
        "VLCS",
        "VLCS",
        (
            Environment("C", "Caltech101", ("CALTECH",)),
            Environment("L", "LabelMe"),
            Environment("S", "SUN09", ("SUN",)),
            Environment("V", "VOC2007", ("PASCAL", "VOC")),
        ),
        classes,
        (_edition("as published", table),),
        (Source(f"{DRIVE}1skwblH1_okBwxWxmRsp9_qi15hyPpxg8", "VLCS.tar.gz"),),
        "not stated; its four sources have terms of their own",
        "Fang, Xu, Rockmore: Unbiased Metric Learning: On the Utilization of Multiple Datasets and "
        "Web Images for Softening Bias. ICCV 2013",
        _steps(),
        "counted by class in DomainBed's misc/vlcs_files.txt",
    )


def _office_home() -> Benchmark:
    classes, table = _table("OfficeHome")
    return Benchmark(
        "OfficeHome",
        "office_home",
        (
            Environment("A", "Art"),
            Environment("C", "Clipart"),
            Environment("P", "Product"),
            Environment("R", "Real World", ("Real",)),
        ),
        classes,
        (_edition("as published", table),),
        (Source(f"{DRIVE}1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC", "office_home.zip"),),
        "not stated",
        "Venkateswara, Eusebio, Chakraborty, Panchanathan: Deep Hashing Network for Unsupervised "
        "Domain Adaptation. CVPR 2017, arXiv:1706.07522",
        _steps(),
        "counted by class in the picture lists of thuml/CDAN and vcl-iisc/CoNMix, which agree",
    )


def _terra_incognita() -> Benchmark:
    classes, _ = _table("TerraIncognita")
    today, older = (4741, 9736, 3970, 5883), (4879, 9767, 4020, 6122)
    folders = ("location_100", "location_38", "location_43", "location_46")
    labels = ("L100", "L38", "L43", "L46")
    return Benchmark(
        "TerraIncognita",
        "terra_incognita",
        tuple(Environment(label, f, (label,)) for label, f in zip(labels, folders)),
        classes,
        (
            _edition("of today's script", {}, dict(zip(folders, today))),
            _edition("of older papers", {}, dict(zip(folders, older))),
        ),
        (
            Source(f"{LILA}eccv_18_all_images_sm.tar.gz", "terra_incognita_images.tar.gz"),
            Source(f"{LILA}eccv_18_annotations.tar.gz", "eccv_18_annotations.tar.gz"),
        ),
        "Community Data License Agreement, permissive variant",
        "Beery, Van Horn, Perona: Recognition in Terra Incognita. ECCV 2018, arXiv:1807.04975",
        _steps(),
        "both totals and the older edition by location: khanrc/miro issue 9; today's by location "
        "from memory, agreeing with its total; by class not known",
    )


def _domain_net() -> Benchmark:
    classes, table = _table("DomainNet")
    labels = {
        "clipart": "clip",
        "infograph": "info",
        "painting": "paint",
        "quickdraw": "quick",
        "real": "real",
        "sketch": "sketch",
    }
    counts = {e: 172947 if e == "real" else sum(table[e].values()) for e in labels}
    archives = "groundtruth/clipart infograph groundtruth/painting quickdraw real sketch".split()
    misc = f"https://raw.githubusercontent.com/facebookresearch/DomainBed/{UPSTREAM}/domainbed/misc"
    return Benchmark(
        "DomainNet",
        "domain_net",
        tuple(Environment(label, folder) for folder, label in labels.items()),
        classes,
        (_edition("without its 9,431 duplicates", table, counts),),
        (
            *(Source(f"{VISDA}{a}.zip", f"{a.split('/')[-1]}.zip") for a in archives),
            Source(f"{misc}/domain_net_duplicates.txt", "domain_net_duplicates.txt"),
        ),
        "not stated",
        "Peng, Bai, Xia, Huang, Saenko, Wang: Moment Matching for Multi-Source Domain Adaptation. "
        "ICCV 2019, arXiv:1812.01754",
        _steps(swad=15001, clipood=10000),
        "clipart, infograph, painting, sketch counted by class in the picture lists of "
        "CDTrans/CDTrans; quickdraw 500 a class by the paper; real from memory, agreeing with the "
        "total, by class not known",
    )


def _emoji_styles() -> Benchmark:
    classes, table = _table("EmojiStyles")
    return Benchmark(
        "EmojiStyles",
        "",
        tuple(Environment(folder, folder) for folder in table),
        classes,
        (_edition("of the package", table),),
        (),
        "MIT, Apache-2.0, CC-BY 4.0, CC BY-SA 4.0, by environment: assets/README.md",
        "this package (CITATION.cff)",
        {"DomainBed": 101},
        "counted in the archive",
    )


def _by_name(benchmarks: Iterable[Benchmark]) -> dict[str, Benchmark]:
    return {benchmark.name: benchmark for benchmark in benchmarks}


BENCHMARKS = _by_name(
    (_pacs(), _vlcs(), _office_home(), _terra_incognita(), _domain_net(), _emoji_styles())
)
