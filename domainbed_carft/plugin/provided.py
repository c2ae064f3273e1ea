"""The data sets of this package under the interface of DomainBed's: their base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from domainbed_carft.clips import pictures
from domainbed_carft.data import verify
from domainbed_carft.plugin.image_folders import asked_for, remember


class Provided:
    """A data set of this package under the interface of DomainBed's.

    The plugin adds the host's base class, whose place differs between forks. Pictures are as large
    as the CLIP of one of our algorithms wants, else as ``size`` says. Forks that pass no
    ``hparams`` (SWAD, MIRO) resize pictures themselves and get them untransformed.
    """

    ENVIRONMENTS: list[str]
    HOSTS_SIZE = 224  # px; the host's own algorithms have networks for it

    def __init__(
        self, root: Any, test_envs: Sequence[int] = (), hparams: dict[str, Any] | None = None
    ) -> None:
        self.protocol = hparams.get("protocol", "domainbed") if hparams else "domainbed"
        self.environments = list(self.ENVIRONMENTS)
        self.asked = asked_for(hparams)
        size = int(self.asked.split()[0]) if self.asked else self.size(hparams)
        self.input_shape = (3, size, size)
        self.datasets, report = self.read(root)
        for index, environment in enumerate(self.datasets):
            environment.transform = self._transform(hparams, index in test_envs)
        self.num_classes = len(self.datasets[0].classes)
        told = None if hparams is None else test_envs  # such hosts pass none of the two
        remember(self, report, self.protocol, hparams, told)

    def read(self, root: Any) -> tuple[list[Any], verify.Report]:
        """The environments below the data folder ``root``, not transformed, and what was found."""
        raise NotImplementedError

    def size(self, hparams: dict[str, Any] | None) -> int:
        """Pixels a side where no CLIP asks for a number."""
        return self.HOSTS_SIZE

    def _transform(
        self, hparams: dict[str, Any] | None, is_test: bool
    ) -> Callable[[Any], Any] | None:
        if hparams is None:
            return None
        augment = hparams.get("data_augmentation", True)  # the key is younger than DomainBed
        size, augment = self.input_shape[-1], augment and not is_test
        return pictures.transform(self.protocol, size, augment, self.asked)

    def __getitem__(self, index: int) -> Any:
        return self.datasets[index]

    def __len__(self) -> int:
        return len(self.datasets)
