"""Folders environment/class/image, normalised with the mean and deviation of ImageNet."""

import os

from torchvision import transforms
from torchvision.datasets import ImageFolder

DATASETS = ["Pets"]


class MultipleDomainDataset:
    ENVIRONMENTS = None

    def __getitem__(self, index):
        return self.datasets[index]

    def __len__(self):
        return len(self.datasets)


class MultipleEnvironmentImageFolder(MultipleDomainDataset):
    def __init__(self, root, test_envs, augment, hparams):
        steps = [transforms.Resize((32, 32)), transforms.ToTensor()]
        steps.append(transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        self.datasets = [
            ImageFolder(os.path.join(root, name), transform=transforms.Compose(steps))
            for name in sorted(os.listdir(root))
        ]
        self.input_shape = (3, 32, 32)
        self.num_classes = len(self.datasets[-1].classes)


class Pets(MultipleEnvironmentImageFolder):
    ENVIRONMENTS = ["A", "P", "S"]

    def __init__(self, root, test_envs, hparams):
        folder = os.path.join(root, "Pets")
        super().__init__(folder, test_envs, hparams["data_augmentation"], hparams)
