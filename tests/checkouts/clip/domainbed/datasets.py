"""A fork for CLIP, with its normalisation, which writes names into the hparams."""

import os

from torchvision import transforms
from torchvision.datasets import ImageFolder

DATASETS = ["Pets"]
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class MultipleEnvironmentImageFolder:
    def __init__(self, root, test_envs, augment, hparams):
        names = sorted(os.listdir(root))
        hparams["domain_name"] = names
        hparams["class_names"] = sorted(os.listdir(os.path.join(root, names[0])))

        steps = [transforms.Resize((48, 48)), transforms.ToTensor()]
        steps.append(transforms.Normalize(CLIP_MEAN, CLIP_STD))
        self.datasets = [
            ImageFolder(os.path.join(root, name), transform=transforms.Compose(steps))
            for name in names
        ]
        self.input_shape = (3, 48, 48)
        self.num_classes = len(self.datasets[-1].classes)

    def __getitem__(self, index):
        return self.datasets[index]

    def __len__(self):
        return len(self.datasets)


class Pets(MultipleEnvironmentImageFolder):
    def __init__(self, root, test_envs, hparams):
        super().__init__(os.path.join(root, "Pets"), test_envs, True, hparams)
