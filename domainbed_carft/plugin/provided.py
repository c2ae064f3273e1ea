"""The data sets of this package under the interface of DomainBed's: their base, and the tasks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from domainbed_carft.clips import pictures
from domainbed_carft.data import tasks, verify
from domainbed_carft.errors import raise_for
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


class TaskData(Provided):
    """The training split of one of ``tasks.TASKS``, as torchvision has it below the data folder."""

    N_STEPS = 5001
    CHECKPOINT_FREQ = 300
    N_WORKERS = 8
    ENVIRONMENTS = ["train"]
    INPUT_SHAPE = (3, Provided.HOSTS_SIZE, Provided.HOSTS_SIZE)
    TASK: tasks.Task

    @classmethod
    def data_problems(cls, root: Any) -> list[str]:
        """For our harness: what is wrong with the data, before a job starts."""
        return (
            []
            if root and os.path.isdir(os.path.join(root, cls.TASK.folder))
            else [
                f"{cls.TASK.name} needs --data_dir, the folder that has {cls.TASK.folder}; "
                f"{cls.TASK.remedy}"
            ]
        )

    def read(self, root: Any) -> tuple[list[Any], verify.Report]:
        raise_for(self.data_problems(root))
        found = tasks.read(self.TASK, root, train=True)
        found.root = self.ENVIRONMENTS[0]  # after which environments are called
        return [found], tasks.report(self.TASK, root, [found])


TASKS = {name: type(name, (TaskData,), {"TASK": task}) for name, task in tasks.TASKS.items()}
