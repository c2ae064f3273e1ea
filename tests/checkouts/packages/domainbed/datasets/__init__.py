"""Datasets without test environments and hparams, whose transforms are set later."""

import os

from torchvision import transforms
from torchvision.datasets import ImageFolder

DATASETS = ["Pets"]
NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRANSFORM = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), NORMALIZE])


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


def get_dataset(args):
    dataset = globals()[args.dataset](args.data_dir)
    for environment in dataset:
        environment.transform = TRANSFORM
    return dataset
