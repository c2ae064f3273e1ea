"""Data sets that are told neither the test environments nor the hparams."""

import os

from torchvision.datasets import ImageFolder

DATASETS = ["Pets"]


class MultipleEnvironmentImageFolder:
    def __init__(self, root):
        self.datasets = [ImageFolder(os.path.join(root, name)) for name in sorted(os.listdir(root))]
        self.input_shape = (3, 224, 224)
        self.num_classes = len(self.datasets[-1].classes)

    def __getitem__(self, index):
        return self.datasets[index]

    def __len__(self):
        return len(self.datasets)


class Pets(MultipleEnvironmentImageFolder):
    def __init__(self, root):
        super().__init__(os.path.join(root, "Pets"))
