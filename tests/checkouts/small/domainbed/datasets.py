import os

DATASETS = ["Pets"]
NUM_ENVIRONMENTS = {"Pets": 2}


class Normalize:
    mean, std = [0.5, 0.25, 0.0], [2.0, 1.0, 1.0]


class Compose:
    transforms = [str, Normalize()]


class Folder:
    transform = Compose()

    def __init__(self, root):
        self.root = root
        self.classes = sorted(os.listdir(root))


class MultipleDomainDataset:
    ENVIRONMENTS = None


class MultipleEnvironmentImageFolder(MultipleDomainDataset):
    def __init__(self, root, test_envs, augment, hparams):
        names = sorted(os.listdir(root))
        self.input_shape = (3, 224, 224)
        self.datasets = [Folder(os.path.join(root, name)) for name in names]


class Pets(MultipleEnvironmentImageFolder):
    ENVIRONMENTS = ["A", "B"]

    def __init__(self, root, test_envs, hparams):
        super().__init__(root, test_envs, True, hparams=hparams)
