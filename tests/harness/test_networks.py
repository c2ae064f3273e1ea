"""Networks and ERM, compared with upstream's outputs."""

import functools
import os

import pytest
import torch
from domainbed import algorithms, hparams_registry, networks
from domainbed.scripts import train
from torchvision import models

from domainbed_carft.errors import CarftError

from . import fixed_inputs

DEFAULTS = hparams_registry.default_hparams("ERM", "PACS")
LARGE = (3, 224, 224)


@functools.cache
def random_weights(small: bool):
    """Return the state dict of a ResNet-18 (small) or ResNet-50 with random weights."""
    with torch.random.fork_rng():
        return (models.resnet18 if small else models.resnet50)().state_dict()


@pytest.fixture
def requested_urls(monkeypatch):
    """Collect the URLs of pretrained weights, and load random weights instead."""
    urls = []

    def fake_pretrained(url):
        urls.append(url)
        return random_weights(small=url == networks.RESNET18)

    monkeypatch.setattr(networks, "pretrained", fake_pretrained)
    return urls


def build(golden, name, **changed_hparams):
    """Build ERM as golden_from_upstream.py does, and return it with its golden values."""
    expected = golden("networks.json")[name]
    shape = tuple(expected["input_shape"])
    defaults = hparams_registry.default_hparams("ERM", "Debug28" if 28 in shape else "PACS")
    hparams = {**defaults, **expected["hparams"], **changed_hparams}

    torch.manual_seed(0)
    return algorithms.ERM(shape, fixed_inputs.CLASSES, 3, hparams), expected


# Name -> files of pretrained weights. V1 of torchvision's ResNet-50 is 0676ba61, V2 is 11ad3fa6.
NETWORKS = {
    "mnist, 1 channel": [],
    "mnist, 2 channels, nonlinear": [],
    "resnet18": ["resnet18-f37072fd.pth"],
    "resnet18, 5 channels": ["resnet18-f37072fd.pth"],
    "resnet50": ["resnet50-0676ba61.pth"],
    "resnet50_augmix": ["resnet50_ram-a26f946b.pth"],
    "resnet50_augmix over resnet18": ["resnet50_ram-a26f946b.pth"],
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if "resnet50" in n else ()) for n in NETWORKS],
)
def test_network_has_upstreams_parameters_and_outputs(golden, requested_urls, capsys, name):
    algorithm, expected = build(golden, name)
    next_random_number = torch.rand(1).item()
    assert [os.path.basename(url) for url in requested_urls] == NETWORKS[name]
    assert ("overrides resnet18" in capsys.readouterr().out) == ("over" in name)

    state = algorithm.state_dict()
    assert fixed_inputs.digest_of_names(state) == expected["all_names"]
    shapes = {key: "x".join(map(str, value.shape)) for key, value in state.items()}
    # `network` contains featurizer and classifier again.
    distinct = {key: shape for key, shape in shapes.items() if not key.startswith("network.")}
    assert distinct == expected["shapes"]
    assert algorithm.featurizer.n_outputs == expected["n_outputs"]

    random_part = algorithm.classifier if requested_urls else algorithm.network
    first_values = [parameter.flatten()[0].item() for parameter in random_part.parameters()]
    assert first_values == pytest.approx(expected["drawn"], rel=1e-4)
    assert next_random_number == pytest.approx(expected["drawn_afterwards"])

    fixed_inputs.set_weights(algorithm.network)
    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(fixed_inputs.normal("x", (2, *expected["input_shape"])))
    assert torch.allclose(logits, torch.tensor(expected["logits"]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "mnist, 1 channel",
        "mnist, 2 channels, nonlinear",
        pytest.param("resnet18", marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("requested_urls")
def test_erm_steps_equal_upstream(golden, name):
    expected = golden("erm_steps.json")[name]
    algorithm, network = build(golden, name, **expected["hparams"])
    fixed_inputs.set_weights(algorithm.network)
    shape = tuple(network["input_shape"])

    algorithm.train()
    losses = [algorithm.update(fixed_inputs.minibatches(shape, step))["loss"] for step in range(3)]
    assert losses == pytest.approx(expected["losses"], rel=1e-3)

    algorithm.eval()
    with torch.no_grad():
        logits = algorithm.predict(fixed_inputs.normal("x", (2, *shape)))
    assert torch.allclose(logits, torch.tensor(expected["logits"]), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("requested_urls")
@pytest.mark.parametrize("is_frozen", [False, True])
def test_freeze_bn_keeps_batch_norm_statistics(is_frozen):
    hparams = DEFAULTS | {"resnet18": True, "resnet50_augmix": False, "freeze_bn": is_frozen}
    network = networks.Featurizer(LARGE, hparams)
    network.eval()
    network.train()

    mean_before = network.network.bn1.running_mean.clone()
    network(torch.randn(2, *LARGE))

    assert torch.equal(mean_before, network.network.bn1.running_mean) == is_frozen
    assert network.training and network.dropout.training


def test_failed_download_of_weights_names_the_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "hub").touch()  # so that its folder cannot be created, with or without a network
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    arguments = ["--dataset", "Debug224", "--workers", "0", "--output_dir", str(tmp_path / "run")]

    assert train.main(arguments) == 1  # with this status a launcher retries

    err = capsys.readouterr().err
    path = f"{tmp_path}/hub/checkpoints/resnet50_ram-a26f946b.pth"
    assert f"the pretrained weights {path} are missing, and downloading them failed (" in err
    assert f"Put {networks.RESNET50_AUGMIX} there, or set TORCH_HOME" in err
    assert "Traceback" not in err


def test_pretrained_weights_of_another_network_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, path)

    assert torch.equal(networks.pretrained(networks.RESNET18)["a"], torch.ones(2))
    with pytest.raises(CarftError, match=r"f37072fd.pth do not fit this network \(.*Replace"):
        networks.Featurizer(LARGE, DEFAULTS | {"resnet18": True, "resnet50_augmix": False})
