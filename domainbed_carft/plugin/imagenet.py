"""ImageNet's training set as a data set of one environment, in folders or webdataset's shards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft.data import listing, shards, verify
from domainbed_carft.data.comparison import listed
from domainbed_carft.errors import CarftError
from domainbed_carft.pictures.environment import Environment, Paths
from domainbed_carft.plugin.provided import Provided
from domainbed_carft.suites import imagenet

# Below the data folder, as other repositories have it (mlfoundations/model-soups, datasets.md).
PLACES = ("imagenet", "ILSVRC2012")


class ImageNet(Provided):
    """The 1,000 classes of ILSVRC2012 in the order of their WordNet ids.

    The steps are ten passes in batches of 512. Only what is held out is evaluated: the rest is a
    million pictures.
    """

    N_STEPS = 25_030
    CHECKPOINT_FREQ = 2_503
    N_WORKERS = 8
    ENVIRONMENTS = ["train"]
    INPUT_SHAPE = (3, Provided.HOSTS_SIZE, Provided.HOSTS_SIZE)
    PICTURES = (1_281_167,)
    EVALUATED_SPLITS = ("out",)

    @classmethod
    def data_problems(cls, root: Any) -> list[str]:
        """For our harness: what is wrong with the data, before a job starts."""
        if _found(root):
            return []
        return [
            f"ImageNet needs --data_dir, a folder with {' or '.join(PLACES)}, and in that train, a "
            "folder of pictures for each WordNet id, or shards of webdataset, train-000000.tar and "
            f"so on, not {root}. image-net.org has the pictures"
        ]

    def read(self, root: Any) -> tuple[list[Any], verify.Report]:
        if (found := _found(root)) is None:
            raise CarftError(*self.data_problems(root))
        place, archives = found
        ids, problems = imagenet.ids(), list[str]()
        if archives:
            samples: Paths | shards.Index = shards.index(archives, ids)
            print(f"ImageNet: {len(samples):,} pictures in {len(archives):,} shards in {place}")
        else:
            samples, problems = _in_folders(place / "train", ids)
        numbers = np.bincount(samples.labels, minlength=len(ids)).tolist()
        if empty := [name for name, number in zip(ids, numbers) if not number]:
            problems.append(f"{len(empty):,} of 1,000 classes have no picture: {listed(empty)}")
        (total,), differences = self.PICTURES, []
        if len(samples) != total:
            differences.append(f"has {len(samples):,} pictures, expected {total:,}")
        edition = None if problems or differences else "ILSVRC2012"
        counts = {"train": dict(zip(ids, numbers))}
        report = verify.Report("ImageNet", place, counts, problems, differences, (), edition)
        return [Environment(str(place / "train"), imagenet.class_names(), samples)], report


def _found(root: Any) -> tuple[Path, list[Path]] | None:
    """The first of PLACES that has the training set, and the shards if it is in such."""
    for place in (Path(root, name) for name in (PLACES if root else ())):
        if archives := sorted(place.glob("*train-*.tar")):
            return place, archives
        if os.path.isdir(place / "train"):
            return place, []
    return None


def _in_folders(root: Path, ids: tuple[str, ...]) -> tuple[Paths, list[str]]:
    """The pictures by class and name, and what is odd about their files."""
    found = listing.of_classes(root)
    names = list(found.counts[""])
    if names != [*ids]:
        missing, extra = ({*ids} - {*names}), ({*names} - {*ids})
        raise CarftError(
            f"{root} does not have the 1,000 WordNet ids of ILSVRC2012 as its folders: "
            f"{len(missing)} missing ({listed(sorted(missing)) or 'none'}), {len(extra)} others "
            f"({listed(sorted(extra)) or 'none'}). Labels go by position: restore the folders"
        )
    paths = np.array([os.fsencode(path) for path in sorted(found.pictures)], dtype=np.bytes_)
    labels = np.repeat(np.arange(len(ids)), list(found.counts[""].values()))
    return Paths(str(root), paths, labels), found.problems
