"""Trees with the names and shapes of the benchmarks, and the command that judges them."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from PIL import Image

from domainbed_carft import cli
from domainbed_carft.data import benchmarks, comparison, verify


def grow(root, counts, content=b"x"):
    """environment/class/0.jpg, ... below ``root``; returns it."""
    for environment, classes in counts.items():
        for name, pictures in classes.items():
            folder = root / environment / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(pictures):
                (folder / f"{index}.jpg").write_bytes(content)
    return root


def judged(name, counts):
    """The report on a tree of these counts, of which there is none."""
    return verify.Report(name, Path(name), counts, **vars(comparison.compare(name, counts)))


def even(names, environments=("art", "photo"), pictures=1):
    return {environment: dict.fromkeys(names, pictures) for environment in environments}


def smaller(monkeypatch, name):
    """Expect but one picture a class of ``name``; returns its environments and classes."""
    known = benchmarks.BENCHMARKS[name]
    table = even(known.classes, [e.folder for e in known.environments])
    edition = benchmarks.Edition("of the test", {e: len(c) for e, c in table.items()}, table)
    monkeypatch.setitem(benchmarks.BENCHMARKS, name, replace(known, editions=(edition,)))
    return known.folder, table


def jpeg(mode="RGB", size=(64, 64)):
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def only(report, kind):
    (sentence,) = getattr(report, kind)
    return sentence


def carft(*arguments):
    """What ``carft data`` ends with and prints."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = cli.main(["data", *map(str, arguments)])
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())
