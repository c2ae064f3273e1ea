"""EmojiStyles: the benchmark that ships with the package, as a DomainBed data set.

Four teams of artists drew the same things: a small PACS of real drawings. How the archive was made,
and whose drawings these are: ``assets/README.md``.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import default_loader

from domainbed_carft import files
from domainbed_carft.errors import PassingError
from domainbed_carft.method import observed, protocol

SIZE = 48  # px, the resolution of the tiny CLIP; the archive has 64 px, so crops stay sharp
ARCHIVE = "emoji_styles.zip"


class EmojiStyles:
    """Ten classes in four styles, 48 px. ``root`` is not read: the pictures are in the package.

    Augmentation is DomainBed's recipe at this size. Concepts in it are disjoint from those that the
    embedded ``tiny`` CLIP was pre-trained on.

    It keeps to the interface of DomainBed's data sets by itself; the plugin adds the host's base
    class, whose place differs between forks. The host's own algorithms get 224 px, since they have
    no networks for 48. Forks that give it no ``hparams`` (SWAD, MIRO) transform pictures to that
    size themselves and get them as they are.
    """

    N_STEPS = 101
    CHECKPOINT_FREQ = 50
    N_WORKERS = 0  # decoding 64 px takes less than handing a picture to another process
    ENVIRONMENTS = ["fluent3d", "line", "noto", "twemoji"]
    INPUT_SHAPE = (3, SIZE, SIZE)
    HOSTS_SIZE = 224  # px

    def __init__(
        self, root: Any, test_envs: Sequence[int] = (), hparams: dict[str, Any] | None = None
    ) -> None:
        folder = unpacked()
        self.protocol = hparams.get("protocol", "domainbed") if hparams else "domainbed"
        self.environments = list(self.ENVIRONMENTS)
        size = SIZE if hparams and "clip_backbone" in hparams else self.HOSTS_SIZE
        self.input_shape = (3, size, size)
        self.datasets = [
            ImageFolder(
                str(folder / environment),
                loader=_picture,
                transform=self._transform(hparams, index in test_envs),
            )
            for index, environment in enumerate(self.ENVIRONMENTS)
        ]
        self.num_classes = len(self.datasets[0].classes)
        shown = [
            observed.Environment(
                name,
                folder.classes,
                observed.normalisation(folder.transform),
                self.protocol,
                observed.counts(folder),
            )
            for name, folder in zip(self.ENVIRONMENTS, self.datasets)
        ]
        self.data_edition = observed.remember(hparams, type(self).__name__, shown).edition

    def _transform(
        self, hparams: dict[str, Any] | None, is_test: bool
    ) -> Callable[[Any], Any] | None:
        if hparams is None:
            return None
        augment = hparams.get("data_augmentation", True)  # the key is younger than DomainBed
        return protocol.transform(self.protocol, self.input_shape[-1], augment and not is_test)

    def __getitem__(self, index: int) -> ImageFolder:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)


@functools.cache
def _picture(path: str) -> Image.Image:
    """A decoded picture, kept: all 1,716 take 21 MB, and a job reads each a dozen times."""
    return default_loader(path)


def unpacked() -> Path:
    """The folder domain/class/picture.png, unpacked from the package on first use.

    Unpacked beside its place, then renamed, so that jobs that start at once never see half of it.
    Raises CarftError where the cache folder cannot be written.
    """
    with resources.as_file(resources.files("domainbed_carft") / "assets" / ARCHIVE) as archive:
        stat = archive.stat()
        with zipfile.ZipFile(archive) as pictures:
            version = f"{_checksum(pictures):08x}-{stat.st_size}"
            target = files.cache_folder() / "emoji_styles" / version
            if not target.is_dir():
                _unpack(pictures, target)
    return target


def _checksum(pictures: zipfile.ZipFile) -> int:
    """Changes with any picture: a mix of the CRCs that the archive's directory already holds."""
    mixed = 0
    for info in pictures.infolist():
        mixed = (mixed * 31 + info.CRC) % 2**32
    return mixed


def _unpack(pictures: zipfile.ZipFile, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-")
    except OSError as error:
        raise PassingError(
            f"EmojiStyles is unpacked to {target}, which cannot be written ({error}); set "
            "DOMAINBED_CARFT_CACHE to a folder that can"
        ) from error
    try:
        pictures.extractall(temporary)
        os.rename(temporary, target)
    except OSError as error:
        if not target.is_dir():  # else another job was faster, and its copy is as good
            raise PassingError(f"EmojiStyles cannot be unpacked to {target}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
