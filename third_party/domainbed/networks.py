"""Featurizers and classifiers, chosen by the shape of the input.

Interface of upstream file domainbed/networks.py at b93c22a, for the networks of ERM: the same
shapes, parameter names, random draws for a given seed of torch, and ImageNet weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from domainbed_carft.errors import CarftError, HparamProblem, TransientError, brief, raise_for
from domainbed_carft.files import weights

# Upstream's `pretrained=True` is V1 (`handle_legacy_interface` in torchvision/models/_utils.py),
# unlike DEFAULT, which is V2. The URL of its augmix ResNet-50 is in timm/models/resnet.py.
RESNET18 = ResNet18_Weights.IMAGENET1K_V1.url
RESNET50 = ResNet50_Weights.IMAGENET1K_V1.url
RESNET50_AUGMIX = (
    "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights/"
    "resnet50_ram-a26f946b.pth"
)

# Upstream downloads the code of transformers from another repository; ERMPlusPlus uses LARS.
_NOT_INCLUDED = {
    **dict.fromkeys(("vit", "dinov2", "vit_attn_tune"), "vision transformers (DINOv2) are"),
    "lars": "the LARS optimizer is",
}


def Featurizer(input_shape: Sequence[int], hparams: dict[str, Any]) -> MNIST_CNN | ResNet:
    """Build the network from inputs to `n_outputs` features.

    Args:
        input_shape: (channels, 28, 28) or (channels, 224, 224).
        hparams: hyperparameters.

    Raises:
        CarftError: there is no network for the shape, or the hyperparameters need a part that is
            not included.
    """
    raise_for(map(str, find_missing_parts(hparams)))
    match tuple(input_shape):
        case (_, 28, 28):
            return MNIST_CNN(input_shape)
        case (_, 224, 224):
            return ResNet(input_shape, hparams)
    raise CarftError(
        f"there is no network for inputs of shape {tuple(input_shape)}, expected images of 28 x 28 "
        "or 224 x 224 pixels; resize them, or choose an algorithm with another network"
    )


def find_missing_parts(hparams: Mapping[str, Any]) -> list[HparamProblem]:
    """Return a problem for each hyperparameter that needs a part that is not included."""
    advice = "set it to false, or use a checkout of facebookresearch/DomainBed"
    return [
        HparamProblem(
            name, hparams[name], message=f"hyperparameter {name}: {part} not included; {advice}"
        )
        for name, part in _NOT_INCLUDED.items()
        if hparams.get(name)
    ]


def Classifier(in_features: int, out_features: int, is_nonlinear: bool = False) -> nn.Module:
    """Build the layers from features to logits.

    Args:
        in_features: width of the features.
        out_features: number of classes.
        is_nonlinear: if True, three linear layers with ReLU, each half as wide as the one before,
            instead of one.
    """
    if not is_nonlinear:
        return nn.Linear(in_features, out_features)
    widths = [in_features, in_features // 2, in_features // 4, out_features]
    first, second, last = (nn.Linear(widths[i], widths[i + 1]) for i in range(3))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


class Identity(nn.Module):
    """Identity function, under upstream's name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input."""
        return x


class MNIST_CNN(nn.Module):
    """Four convolutions with group normalisation after ReLU, for images of 28 x 28."""

    n_outputs = 128

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        widths = [input_shape[0], 64, 128, 128, self.n_outputs]
        for i in range(4):
            layer = nn.Conv2d(widths[i], widths[i + 1], 3, stride=2 if i == 1 else 1, padding=1)
            self.add_module(f"conv{i + 1}", layer)
        for i in range(4):
            self.add_module(f"bn{i}", nn.GroupNorm(8, widths[i + 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (N, 128) of images (N, C, 28, 28)."""
        for i in range(4):
            x = functional.relu(self.get_submodule(f"conv{i + 1}")(x))
            x = self.get_submodule(f"bn{i}")(x)
        return x.mean(dim=(2, 3))


class ResNet(nn.Module):
    """A ResNet pretrained on ImageNet, without its last layer.

    With `resnet50_augmix` (upstream's default) it is a ResNet-50 with timm's weights
    `resnet50.ram_in1k`, regardless of `resnet18`; layers and parameter names are torchvision's. If
    there are not 3 channels, the weights of the first layer are repeated.

    Raises:
        TransientError: the pretrained weights cannot be downloaded.
        CarftError: the file of the pretrained weights cannot be read, or does not fit.
    """

    def __init__(self, input_shape: Sequence[int], hparams: dict[str, Any]) -> None:
        super().__init__()
        self.hparams = hparams
        self.network, self.n_outputs = _pretrained_resnet(hparams)

        channels = input_shape[0]
        if channels != 3:
            weight = self.network.conv1.weight.data[:, [c % 3 for c in range(channels)]].clone()
            self.network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
            self.network.conv1.weight.data = weight
        self.network.fc = Identity()
        self.dropout = nn.Dropout(hparams["resnet_dropout"])
        self.train()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features (N, n_outputs) of images (N, C, 224, 224)."""
        return self.dropout(self.network(x))

    def train(self, mode: bool = True) -> ResNet:
        """Set the mode; with `freeze_bn`, batch normalisation remains in evaluation mode."""
        super().train(mode)
        if self.hparams["freeze_bn"]:
            for module in self.network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self


def _pretrained_resnet(hparams: dict[str, Any]) -> tuple[torchvision.models.ResNet, int]:
    """Build the network with the same random draws as upstream.

    Returns:
        The network, and the width of its features.
    """
    small = hparams["resnet18"]
    augmix = hparams["resnet50_augmix"]
    plain_url = RESNET18 if small else RESNET50
    url = RESNET50_AUGMIX if augmix else plain_url

    if augmix and small:
        print(
            "Warning: resnet50_augmix is true and overrides resnet18: the network is a "
            "ResNet-50. For a ResNet-18, set resnet50_augmix to false."
        )
    if augmix:
        # Upstream first builds another network and drops it. The same random numbers must be
        # drawn here so that the classifier starts with upstream's weights.
        _random_resnet(small)

    small = small and not augmix
    network = _random_resnet(small)
    state_dict = pretrained(url)
    try:
        network.load_state_dict(state_dict)
    except Exception as error:  # RuntimeError for another network; other errors for other contents
        raise CarftError(
            f"the pretrained weights {_cached_file(url)} do not fit this network ({brief(error)}). "
            f"Replace the file with {url}"
        ) from error

    return network, 512 if small else 2048


def _random_resnet(small: bool) -> torchvision.models.ResNet:
    build = torchvision.models.resnet18 if small else torchvision.models.resnet50
    return build(weights=None)


def pretrained(url: str) -> dict[str, torch.Tensor]:
    """Load a state dict from torch hub's cache, and download it first if it is missing.

    Args:
        url: address of the file, whose name ends with the first digits of its SHA-256.

    Raises:
        TransientError: the download fails.
        CarftError: the file cannot be read.
    """
    path = _cached_file(url)
    if not os.path.exists(path):
        digits = os.path.splitext(url)[0].rpartition("-")[2]  # of the SHA-256
        print(f"Downloading {url} to {path}")
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, path, hash_prefix=digits, progress=False)
        except Exception as error:  # of many types: no network, no space, another hash
            raise TransientError(
                f"the pretrained weights {path} are missing, and downloading them failed "
                f"({brief(error)}). Put {url} there, or set TORCH_HOME to another folder"
            ) from error

    try:
        return weights.load_weights(path)
    except CarftError as error:
        raise CarftError(f"{error}. Delete the file, or replace it with {url}") from error


def _cached_file(url: str) -> str:
    """Return the path of a URL's file in torch hub's cache."""
    return os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
