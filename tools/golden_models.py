"""What upstream's networks and ERM compute, for golden_from_upstream.py.

The ResNets are built without pretrained weights, which play no part: names, shapes and draws do
not depend on them, and what is computed is computed with the weights of
tests/harness/fixed_inputs.py. timm has to be installed.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import golden_cases as cases
import torch
import torchvision


@contextlib.contextmanager
def no_pretrained_weights() -> Iterator[None]:
    """Let the builders that upstream calls start from random weights."""
    timm = importlib.import_module("timm")

    def without(build: Any) -> Any:
        return lambda pretrained: build(weights=None)

    small, large = torchvision.models.resnet18, torchvision.models.resnet50
    create = timm.create_model
    with (
        mock.patch.object(torchvision.models, "resnet18", without(small)),
        mock.patch.object(torchvision.models, "resnet50", without(large)),
        mock.patch.object(timm, "create_model", lambda name, pretrained: create(name)),
    ):
        yield


def build_erm(name: str, **more: Any) -> Any:
    """Upstream's ERM with one of the cases' networks, built under the seed 0."""
    registry = importlib.import_module("domainbed.hparams_registry")
    algorithms = importlib.import_module("domainbed.algorithms")
    inputs = importlib.import_module("fixed_inputs")
    shape, changed = cases.NETWORKS[name]
    dataset = "Debug28" if 28 in shape else "PACS"
    hparams = {**registry.default_hparams("ERM", dataset), **changed, **more}
    torch.manual_seed(0)
    with no_pretrained_weights():
        return algorithms.ERM(shape, inputs.CLASSES, 3, hparams)


def networks() -> dict[str, Any]:
    """Names and shapes of all parameters, first draws, and outputs, of each of the networks."""
    return {name: network(name) for name in cases.NETWORKS}


def network(name: str) -> dict[str, Any]:
    inputs = importlib.import_module("fixed_inputs")
    algorithm = build_erm(name)
    following = torch.rand(1).item()
    shapes = {key: "x".join(map(str, value.shape)) for key, value in algorithm.state_dict().items()}
    pretrained = 224 in cases.NETWORKS[name][0]
    drawn = algorithm.classifier if pretrained else algorithm.network
    result = {
        "input_shape": cases.NETWORKS[name][0],
        "hparams": cases.NETWORKS[name][1],
        "n_outputs": algorithm.featurizer.n_outputs,
        "shapes": {key: shape for key, shape in shapes.items() if not key.startswith("network.")},
        "all_names": inputs.digest_of_names(shapes),
        "drawn": [parameter.flatten()[0].item() for parameter in drawn.parameters()],
        "drawn_afterwards": following,
    }
    inputs.set_weights(algorithm.network)
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(inputs.normal("x", (2, *cases.NETWORKS[name][0])))
    return {**result, "logits": logits.tolist()}


def erm_steps() -> dict[str, Any]:
    """Losses of a few steps of ERM, and logits after them."""
    return {name: steps(name, more) for name, more in cases.STEPS.items()}


def steps(name: str, more: dict[str, Any]) -> dict[str, Any]:
    inputs = importlib.import_module("fixed_inputs")
    shape = cases.NETWORKS[name][0]
    algorithm = build_erm(name, **more)
    inputs.set_weights(algorithm.network)
    algorithm.train()
    losses = [algorithm.update(inputs.minibatches(shape, step))["loss"] for step in range(3)]
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(inputs.normal("x", (2, *shape)))
    return {"hparams": more, "losses": losses, "logits": logits.tolist()}
