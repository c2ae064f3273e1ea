"""Networks and ERM, against what upstream's compute."""

from __future__ import annotations

import functools
import os

import pytest
import torch
from domainbed import algorithms, hparams_registry, networks
from domainbed.scripts import train

from domainbed_carft.errors import CarftError

from . import fixed_inputs

DEFAULTS = hparams_registry.default_hparams("ERM", "PACS")
LARGE = (3, 224, 224)


@functools.cache
def random_weights(small: bool):
    with torch.random.fork_rng():
        return networks._random_resnet(small).state_dict()


@pytest.fixture
def read(monkeypatch):
    """Random weights in place of pretrained ones; lists the URLs that were asked for."""
    asked = []

    def stand_in(url):
        asked.append(url)
        return random_weights(small=url == networks.RESNET18)

    monkeypatch.setattr(networks, "pretrained", stand_in)
    return asked


def build(golden, name, **more):
    """Our ERM as tools/golden_models.py builds upstream's, and the golden values of its network."""
    expected = golden("networks.json")[name]
    shape = tuple(expected["input_shape"])
    defaults = hparams_registry.default_hparams("ERM", "Debug28" if 28 in shape else "PACS")
    torch.manual_seed(0)
    hparams = {**defaults, **expected["hparams"], **more}
    return algorithms.ERM(shape, fixed_inputs.CLASSES, 3, hparams), expected


# And the pretrained weights of each: V1 of torchvision's ResNet-50, since V2 is 11ad3fa6.
NETWORKS = {
    "mnist, 1 channel": [],
    "mnist, 2 channels, nonlinear": [],
    "resnet18": ["resnet18-f37072fd.pth"],
    "resnet18, 5 channels": ["resnet18-f37072fd.pth"],
    "resnet50": ["resnet50-0676ba61.pth"],
    "resnet50_augmix": ["resnet50_ram-a26f946b.pth"],
    "resnet50_augmix over resnet18": ["resnet50_ram-a26f946b.pth"],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_upstreams(golden, read, capsys, name):
    """Same parameter names and shapes, same first draws, same logits from the same weights."""
    algorithm, expected = build(golden, name)
    assert [os.path.basename(url) for url in read] == NETWORKS[name]
    assert ("overrides resnet18" in capsys.readouterr().out) == ("over" in name)
    afterwards = torch.rand(1).item()
    state = algorithm.state_dict()
    assert fixed_inputs.digest_of_names(state) == expected["all_names"]
    shapes = {key: "x".join(map(str, value.shape)) for key, value in state.items()}
    once = {key: shape for key, shape in shapes.items() if not key.startswith("network.")}
    assert once == expected["shapes"]
    assert algorithm.featurizer.n_outputs == expected["n_outputs"]

    drawn = algorithm.classifier if read else algorithm.network
    first = [parameter.flatten()[0].item() for parameter in drawn.parameters()]
    assert first == pytest.approx(expected["drawn"], rel=1e-4)
    assert afterwards == pytest.approx(expected["drawn_afterwards"])

    fixed_inputs.set_weights(algorithm.network)
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(fixed_inputs.normal("x", (2, *expected["input_shape"])))
    assert torch.allclose(logits, torch.tensor(expected["logits"]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mnist, 1 channel", "mnist, 2 channels, nonlinear", "resnet18"])
def test_steps_of_erm_are_upstreams(golden, read, name):
    expected = golden("erm_steps.json")[name]
    algorithm, network = build(golden, name, **expected["hparams"])
    fixed_inputs.set_weights(algorithm.network)
    algorithm.train()
    shape = tuple(network["input_shape"])
    losses = [algorithm.update(fixed_inputs.minibatches(shape, step))["loss"] for step in range(3)]
    assert losses == pytest.approx(expected["losses"], rel=1e-3)
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(fixed_inputs.normal("x", (2, *shape)))
    assert torch.allclose(logits, torch.tensor(expected["logits"]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("frozen", [False, True])
def test_freeze_bn_keeps_the_statistics(read, frozen):
    hparams = DEFAULTS | {"resnet18": True, "resnet50_augmix": False, "freeze_bn": frozen}
    network = networks.Featurizer(LARGE, hparams)
    network.eval()
    network.train()
    before = network.network.bn1.running_mean.clone()
    network(torch.randn(2, *LARGE))
    assert torch.equal(before, network.network.bn1.running_mean) == frozen
    assert network.training and network.dropout.training


def test_weights_that_cannot_be_downloaded_are_a_line_that_names_the_file(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "hub").touch()  # no folder can be made there, with or without a network
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    arguments = ["--dataset", "Debug224", "--workers", "0", "--output_dir", str(tmp_path / "run")]
    assert train.main(arguments) == 1  # a launcher tries again
    err = capsys.readouterr().err
    path = f"{tmp_path}/hub/checkpoints/resnet50_ram-a26f946b.pth"
    assert f"the pretrained weights {path} are missing, and downloading them failed (" in err
    assert f"Put {networks.RESNET50_AUGMIX} there; TORCH_HOME sets" in err
    assert "Traceback" not in err


def test_a_file_in_place_is_read_and_one_of_another_network_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, path)
    assert torch.equal(networks.pretrained(networks.RESNET18)["a"], torch.ones(2))
    with pytest.raises(CarftError, match=r"f37072fd.pth do not fit this network \(.*Replace"):
        networks.Featurizer(LARGE, DEFAULTS | {"resnet18": True, "resnet50_augmix": False})
