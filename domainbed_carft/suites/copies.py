"""``carft data`` for the test sets of `imagenet`: is a copy complete, and how is one come by."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from domainbed_carft.data import download as downloading
from domainbed_carft.data import verify as verifying
from domainbed_carft.data.benchmarks import Source
from domainbed_carft.errors import CarftError
from domainbed_carft.suites import imagenet


def verify(name: str, data_dir: Path | None, decode: bool = False) -> verifying.Report:
    """What is found of the test set ``name``; its problems are what makes it incomplete.

    Raises CarftError where there is no folder.
    """
    (one,) = (one for one in imagenet.suite().sets if one.name == name)
    if data_dir is None:
        raise CarftError(f"{name} needs --data_dir, the folder that contains it")
    found = one.find(data_dir)
    if found.root is None:
        raise CarftError(f"{name}: {'; '.join(found.problems)}. {terms(name)}")
    of_label = Counter(label for _, label in found.samples)
    counts = {name: {c: of_label[label] for label, c in enumerate(one.classes)}}
    edition = None if found.problems else "as published"
    notes = [terms(name)]
    report = verifying.Report(name, found.root, counts, found.problems, [], notes, edition, decode)
    return verifying.judged(report, [str(path) for path, _ in found.samples])


def terms(name: str) -> str:
    """How to get the test set, and on what terms, as sentences."""
    fact = imagenet.facts()[name]
    by_hand = fact.get("by_hand") or f"carft data download {name} gets it from its authors"
    return f"{by_hand}. Terms: {fact['licence']}"


def download(name: str, data_dir: Path, fetch: downloading.Fetch | None = None) -> verifying.Report:
    """As ``data.download``; CarftError with `terms` for what users have to get themselves."""
    fact = imagenet.facts()[name]
    if not fact["sources"]:
        raise CarftError(f"{name} is not downloaded. {terms(name)}")
    sources = [Source(**one) for one in fact["sources"]]
    wanted = downloading.Wanted(name, fact["folders"][0], sources)

    def prepare(unpacked: Path, ready: Path) -> None:
        inner = [path for path in unpacked.iterdir() if path.is_dir()]
        if len(inner) != 1:
            raise CarftError(
                f"{sources[0].file} has {len(inner)} folders, expected one; it is another archive"
            )
        inner[0].rename(ready)

    return downloading.install(wanted, data_dir, prepare, lambda at: verify(name, at), fetch)
