"""Weights trained on ImageNet: which file each network starts from, and where it is looked for.

The choice is that of upstream file domainbed/networks.py at b93c22a. Its
`torchvision.models.resnet50(pretrained=True)` means IMAGENET1K_V1 in every torchvision that knows
several weights (0.13 and later: `handle_legacy_interface` in torchvision/models/_utils.py), and
not V2, which is what DEFAULT means. Its augmix ResNet-50 is timm's `resnet50.ram_in1k`, whose file
timm/models/resnet.py names.
"""

from __future__ import annotations

import os

import torch
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from domainbed_carft.errors import CarftError, PassingError, brief
from domainbed_carft.files import weights

RESNET18 = ResNet18_Weights.IMAGENET1K_V1.url
RESNET50 = ResNet50_Weights.IMAGENET1K_V1.url
RESNET50_AUGMIX = (
    "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-weights/"
    "resnet50_ram-a26f946b.pth"
)


def read(url: str) -> dict[str, torch.Tensor]:
    """Return the state dict in torch hub's cache under the URL's file name; download if need be.

    Raises PassingError if the file is missing and could not be downloaded, and CarftError if it
    cannot be read; either message says which file belongs where.
    """
    path = _place(url)
    if not os.path.exists(path):
        # The name ends in the first digits of the file's SHA-256.
        digits = os.path.splitext(url)[0].rpartition("-")[2]
        print(f"Downloading {url} to {path}")
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            torch.hub.download_url_to_file(url, path, hash_prefix=digits, progress=False)
        except Exception as error:  # no network, no room, another hash: many types, one remedy
            raise PassingError(
                f"the pretrained weights {path} are missing, and downloading them failed "
                f"({brief(error)}). Put {url} there; TORCH_HOME sets another folder"
            ) from error
    try:
        found: dict[str, torch.Tensor] = weights.load_weights(path)
    except ValueError as error:
        raise CarftError(f"{error}. Delete the file, or replace it with {url}") from error
    return found


def load(network: torch.nn.Module, url: str) -> None:
    """Put the weights at `url` into a network; raises as `read`, and if they are another's."""
    found = read(url)
    try:
        network.load_state_dict(found)
    except Exception as error:  # RuntimeError for another network's, others for no state dict
        raise CarftError(
            f"the pretrained weights {_place(url)} do not fit this {type(network).__name__} "
            f"({brief(error)}). Replace the file with {url}"
        ) from error


def _place(url: str) -> str:
    return os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
