"""Trees with the names and shapes of the benchmarks, and the command that judges them."""

import io
from dataclasses import replace

from fake_checkout import REPO, run_python
from PIL import Image

from domainbed_carft.data import benchmarks


def grow(root, counts, content=b"x"):
    """environment/class/0.jpg, ... below ``root``; returns it."""
    for environment, classes in counts.items():
        for name, pictures in classes.items():
            folder = root / environment / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(pictures):
                (folder / f"{index}.jpg").write_bytes(content)
    return root


def even(names, environments=("art", "photo"), pictures=1):
    return {environment: dict.fromkeys(names, pictures) for environment in environments}


def smaller(monkeypatch, name):
    """Expect but one picture a class of ``name``; returns its environments and classes."""
    known = benchmarks.BENCHMARKS[name]
    table = even(known.classes, [e.folder for e in known.environments])
    edition = benchmarks.Edition("of the test", {e: len(c) for e, c in table.items()}, table)
    monkeypatch.setitem(benchmarks.BENCHMARKS, name, replace(known, editions=(edition,)))
    return known.folder, table


def write_pacs(data):
    """All 9,991 pictures of PACS in a data folder, a byte each."""
    grow(data / "PACS", benchmarks.get("PACS").editions[0].by_class)
    return data


def link_pacs(pacs, data):
    """A PACS of links to the former's classes, in a data folder that may be changed at will."""
    for classes in (pacs / "PACS").iterdir():
        (data / "PACS" / classes.name).mkdir(parents=True)
        for pictures in classes.iterdir():
            (data / "PACS" / classes.name / pictures.name).symlink_to(pictures)
    return data


def jpeg(mode="RGB", size=(64, 64)):
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def only(report, kind):
    (sentence,) = getattr(report, kind)
    return sentence


def carft(*arguments):
    return run_python("-m", "domainbed_carft", "data", *map(str, arguments), cwd=REPO, path=[REPO])
