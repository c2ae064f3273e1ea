"""Transforms are the package's, data sets only list files."""

from domainbed.datasets import datasets
from torchvision import transforms

TRANSFORM = transforms.Compose(
    [
        transforms.Resize((224, 224)),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)


def get_dataset(args):
    dataset = vars(datasets)[args.dataset](args.data_dir)
    for environment in dataset:
        environment.transform = TRANSFORM
    return dataset
