"""Facts about the benchmarks, compared with the harness, the archive, and published totals."""

import zipfile
from collections import Counter
from importlib.resources import files

import pytest
from domainbed import datasets

from domainbed_carft.data import benchmarks, emoji
from domainbed_carft.datasets.included import EmojiStyles

# Typed in from publications, independently of the package's tables.
TOTALS = {
    "PACS": {"A": 2048, "C": 2344, "P": 1670, "S": 3929},
    "VLCS": {"C": 1415, "L": 2656, "S": 3282, "V": 3376},
    "OfficeHome": {"A": 2427, "C": 4365, "P": 4439, "R": 4357},
    "TerraIncognita": {"L100": 4741, "L38": 9736, "L43": 3970, "L46": 5883},
    "DomainNet": {
        "clip": 48129,
        "info": 51605,
        "paint": 72266,
        "quick": 172500,
        "real": 172947,
        "sketch": 69128,
    },
}

CLASSES = {"PACS": 7, "VLCS": 5, "OfficeHome": 65, "TerraIncognita": 10, "DomainNet": 345}


@pytest.mark.parametrize("name", TOTALS)
def test_benchmark_facts_equal_the_harness_and_published_totals(name):
    benchmark = benchmarks.get(name)
    dataset_class = getattr(datasets, name)
    assert benchmark.folder == dataset_class.FOLDER
    assert [e.label for e in benchmark.environments] == dataset_class.ENVIRONMENTS
    assert benchmark.steps["DomainBed"] == dataset_class.N_STEPS

    # DomainBed numbers sorted folders.
    folders = [e.folder for e in benchmark.environments]
    assert folders == sorted(folders)
    assert list(benchmark.classes) == sorted({*benchmark.classes})
    assert len(benchmark.classes) == CLASSES[name]

    edition = benchmark.editions[0]
    assert {e.label: edition.counts[e.folder] for e in benchmark.environments} == TOTALS[name]
    for environment, by_class in edition.by_class.items():
        assert set(by_class) == set(benchmark.classes)
        assert sum(by_class.values()) == edition.counts[environment]


def test_emoji_styles_counts_equal_the_archive():
    assets = files("domainbed_carft") / "assets"
    with zipfile.ZipFile(assets / emoji.ARCHIVE) as archive:
        paths = [n.split("/") for n in archive.namelist() if n.endswith(".png")]
    counts = Counter((environment, name) for environment, name, _ in paths)
    benchmark = benchmarks.get("EmojiStyles")
    assert [e.folder for e in benchmark.environments] == EmojiStyles.ENVIRONMENTS

    table = benchmark.editions[0].by_class
    assert counts == Counter(
        {(e, c): n for e, classes in table.items() for c, n in classes.items()}
    )
    assert benchmark.steps["DomainBed"] == EmojiStyles.N_STEPS
