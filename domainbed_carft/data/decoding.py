"""Every picture decoded to its last line, by all cores."""

from __future__ import annotations

import functools
import multiprocessing
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile
from tqdm import tqdm

from domainbed_carft import machine
from domainbed_carft.errors import CarftError

CHUNK = 32  # pictures handed to a process at once


@dataclass(frozen=True)
class Damaged:
    """A picture that is not whole, its path below the root.

    A ``truncated`` one is read by DomainBed all the same, with grey where its data ends; others
    end the job.
    """

    path: str
    truncated: bool
    reason: str


def damaged(root: Path, pictures: Sequence[str], workers: int | None = None) -> list[Damaged]:
    """Decode all ``pictures`` (paths below ``root``); those that are not whole, by path.

    ``workers`` processes, as many as there are cores for this one unless given. Raises CarftError
    where one of them was killed.
    """
    workers = workers or machine.cores()
    look = functools.partial(_look_at, str(root))
    # Not forked: the caller may have threads, torch's among them.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        seen = pool.map(look, pictures, chunksize=CHUNK)
        bar = tqdm(seen, total=len(pictures), desc="decoding", unit="picture", disable=None)
        try:
            found = [one for one in bar if one]
        except BrokenProcessPool as error:
            raise CarftError(
                f"a process that decodes pictures of {root} was killed, most likely for want of "
                "memory; run it again on a machine with more, or with fewer cores (taskset -c 0)"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return sorted(found, key=lambda one: one.path)


def _look_at(root: str, picture: str) -> Damaged | None:
    path = os.path.join(root, picture)
    try:
        _decode(path, forgiving=False)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        reason = str(error).replace(path, picture)
        try:
            _decode(path, forgiving=True)
        except Exception:
            return Damaged(picture, False, reason)
        return Damaged(picture, True, reason)
    return None


def _decode(path: str, forgiving: bool) -> None:
    """As torchvision's loader does it; ``forgiving`` as DomainBed sets it."""
    ImageFile.LOAD_TRUNCATED_IMAGES = forgiving
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata, large pictures: both are read
        with open(path, "rb") as file:
            Image.open(file).convert("RGB")
