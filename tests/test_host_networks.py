"""Algorithms of a host on a CLIP model: the featurizer, the classifier, the hyperparameters.

The host is the included harness, whose functions the plugin wraps as those of any checkout.
"""

import copy
import json

import pytest
import torch
from conftest import TINY_SHAPE, random_clip
from domainbed import algorithms, hparams_registry, networks

from domainbed_carft.clips import backbone, openai
from domainbed_carft.errors import CarftError
from domainbed_carft.images.dataset_facts import DatasetFacts, EnvironmentFacts
from domainbed_carft.method import host_hparams
from domainbed_carft.method.algorithms import hparam_values
from domainbed_carft.method.build import build

NAMES = ["cat", "dog", "owl"]
HOST = {"lr": 1e-3, "weight_decay": 0.0, "nonlinear_classifier": False}
LABELS = torch.tensor([0, 1, 2, 0, 1])


def make_images(side=48, channels=3):
    return torch.randn(5, channels, side, side, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def hparams(random_tiny):
    return {**HOST, "clip_backbone": str(random_tiny), "class_names": NAMES, "contexts": "emoji"}


@pytest.fixture
def zero_shot(hparams):
    return {**hparams, "clip_head": "zero-shot"}


class Featurized(algorithms.Algorithm):
    """An algorithm whose classifiers are built by a function of the test."""

    def __init__(self, input_shape, num_classes, num_domains, hparams, build_classifiers=None):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.featurizer = networks.Featurizer(input_shape, self.hparams)
        sizes = (self.featurizer.n_outputs, num_classes, num_domains)
        self.classifiers = torch.nn.ModuleList(build_classifiers(*sizes))

    def predict(self, x):
        return self.classifiers[0](self.featurizer(x))


def build_featurized(hparams, *classifiers, num_domains=3):
    """Build an algorithm with classifiers given as functions of D, K and the number of domains."""

    def build_classifiers(*sizes):
        return [function(*sizes) for function in classifiers]

    return Featurized((3, 48, 48), 3, num_domains, hparams, build_classifiers)


def on_classes(dim, num_classes, num_domains):
    return networks.Classifier(dim, num_classes, False)


def select_shared(hparams):
    return {name: hparams[name] for name in ("clip_backbone", "contexts")}


# The featurizer


@pytest.fixture(params=["transformer", "resnet"])
def any_clip(request, hparams, tmp_path):
    """Hyperparameters with a CLIP model of either kind."""
    if request.param == "transformer":
        return hparams
    shape = {**TINY_SHAPE, "image_resolution": 64, "vision_layers": (1, 1, 1, 1), "vision_width": 4}
    path = tmp_path / "resnet.pt"
    torch.save(random_clip(**shape).state_dict(), path)
    return {**hparams, "clip_backbone": str(path)}


@pytest.mark.parametrize("side", [28, 48, 224, 336])
def test_featurizer_has_projected_features_of_images_of_any_size(hparams, side):
    featurizer = networks.Featurizer((3, side, side), hparams)
    model = build("CLIPZeroShot", NAMES, hparams={"clip_backbone": hparams["clip_backbone"]})

    images = make_images(side)
    features = featurizer(images)
    torch.testing.assert_close(features, model.features(images))
    assert features.shape == (5, featurizer.n_outputs) and features.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in featurizer.parameters())


def test_featurizer_undoes_the_normalisation_of_the_dataset(hparams):
    mean, std = [(0.1, 0.2, 0.3), (0.5, 0.6, 0.7)], [(0.9, 0.8, 0.7), (0.3, 0.2, 0.4)]
    pixels = make_images().sigmoid()
    features = []
    for normalisation in zip(mean, std):
        shape = (3, 1, 1)
        offset, scale = (torch.tensor(values).view(shape) for values in normalisation)
        facts = DatasetFacts([EnvironmentFacts("photo", NAMES, normalisation)])
        erm = algorithms.ERM((3, 48, 48), 3, 3, hparams, dataset_facts=facts)
        features.append(erm.featurizer((pixels - offset) / scale))
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)


def test_featurizer_is_copied_and_its_state_can_be_multiplied(any_clip):
    featurizer = networks.Featurizer((3, 48, 48), any_clip)
    state = featurizer.state_dict()
    halved = copy.deepcopy(featurizer)
    halved.load_state_dict({name: 0.5 * tensor for name, tensor in state.items()})

    assert all(tensor.is_floating_point() for tensor in state.values())
    rebuilt = networks.Featurizer((3, 48, 48), any_clip).state_dict()
    for name, tensor in halved.state_dict().items():
        assert torch.equal(rebuilt[name], state[name])
        assert torch.equal(tensor, state[name] / 2)


def test_training_keeps_statistics_of_batch_norm(any_clip):
    featurizer = networks.Featurizer((3, 48, 48), any_clip).train()
    buffers = {name: buffer.clone() for name, buffer in featurizer.named_buffers()}
    featurizer(make_images()).sum().backward()
    for name, buffer in featurizer.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_host_replaces_activation_of_featurizer(hparams):
    featurizer = networks.Featurizer((3, 48, 48), hparams)
    expected = featurizer(make_images()).tanh()
    featurizer.activation = torch.nn.Tanh()
    assert torch.equal(featurizer(make_images()), expected)


def test_further_featurizers_read_no_file_and_draw_no_random_numbers(zero_shot, monkeypatch):
    algorithm = build_featurized(zero_shot, on_classes)
    monkeypatch.setattr(backbone, "load", None)

    state = torch.get_rng_state()
    featurizer = networks.Featurizer((3, 48, 48), algorithm.hparams)
    assert torch.equal(torch.get_rng_state(), state)
    assert featurizer(make_images()).equal(algorithm.featurizer(make_images()))


def test_featurizer_built_on_its_own_does_not_depend_on_earlier_algorithms(hparams):
    algorithms.ERM((3, 48, 48), 3, 3, hparams)
    tiny = networks.Featurizer((3, 48, 48), {**HOST, "clip_backbone": "tiny"})
    assert tiny.facts["clip_digest"] == openai.TINY_SHA256
    with pytest.raises(CarftError, match="expected random for a featurizer that is not built by"):
        networks.Featurizer((3, 48, 48), {**hparams, "clip_head": "zero-shot"})


def test_featurizer_with_another_head_is_not_one_of_the_algorithm_built_before(hparams):
    algorithms.ERM((3, 48, 48), 3, 3, hparams)
    with pytest.raises(CarftError, match="expected random for a featurizer that is not built by"):
        networks.Featurizer((3, 48, 48), {**hparams, "clip_head": "zero-shot"})


def test_networks_without_the_key_are_those_of_the_host():
    def build_networks(build_featurizer, build_classifier):
        torch.manual_seed(0)
        featurizer = build_featurizer((3, 28, 28), HOST)
        return featurizer, build_classifier(featurizer.n_outputs, 7, True)

    wrapped = build_networks(networks.Featurizer, networks.Classifier)
    original = build_networks(networks.Featurizer.__wrapped__, networks.Classifier.__wrapped__)
    for module, expected in zip(wrapped, original):
        assert type(module) is type(expected)
        for tensor, value in zip(module.state_dict().values(), expected.state_dict().values()):
            assert torch.equal(tensor, value)


# The classifier


def test_erm_with_zero_shot_head_equals_fine_tuning(zero_shot):
    given = {**select_shared(zero_shot), "amp": "off"}
    fine_tuned = build("CLIPFineTune", NAMES, hparams=given, steps=3)
    erm = algorithms.ERM((3, 48, 48), 3, 3, zero_shot)
    parameters = [p for p in fine_tuned.parameters() if p.requires_grad]
    assert len(parameters) == len([*erm.parameters()])
    optimizer = torch.optim.Adam(parameters, lr=HOST["lr"])

    images = make_images()
    for _ in range(4):
        logits = fine_tuned.predict(images)
        torch.testing.assert_close(erm.predict(images), logits, rtol=0, atol=1e-5)
        loss = torch.nn.functional.cross_entropy(logits, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values = erm.update([(images, LABELS)])
        assert values["loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_erm_trains_clip_model_on_device(zero_shot, device):
    on_cpu, on_device = (algorithms.ERM((3, 48, 48), 3, 3, zero_shot) for _ in range(2))
    on_device.to(device)
    images = make_images()
    for _ in range(2):
        loss = on_device.update([(images.to(device), LABELS.to(device))])["loss"]
        assert loss == pytest.approx(on_cpu.update([(images, LABELS)])["loss"], abs=1e-4)


def test_random_head_is_the_classifier_of_the_host(hparams):
    algorithm = build_featurized(hparams, on_classes)
    torch.manual_seed(5)
    classifier = networks.Classifier(algorithm.featurizer.n_outputs, 3, False)
    torch.manual_seed(5)
    assert torch.equal(classifier.weight, torch.nn.Linear(128, 3).weight)


def on_domains(dim, num_classes, num_domains):
    return networks.Classifier(dim, num_domains, False)


def on_pairs(dim, num_classes, num_domains):
    return networks.Classifier(in_features=2 * dim, out_features=num_classes)


def test_first_classifier_from_features_to_classes_gets_text_features(zero_shot):
    built = (on_pairs, on_domains, on_classes, on_classes)
    algorithm = build_featurized(zero_shot, *built, num_domains=4)
    expected = build("CLIPZeroShot", NAMES, hparams=select_shared(zero_shot)).head.weight
    pairs, domains, first, second = algorithm.classifiers

    unit = torch.nn.functional.normalize(first.weight, dim=-1)
    torch.testing.assert_close(unit, torch.nn.functional.normalize(expected, dim=-1))
    assert not first.bias.any()
    for other in (pairs, domains, second):
        assert other.bias.any()
    algorithm.featurizer(make_images())


def on_hidden_layers(dim, num_classes, num_domains):
    return networks.Classifier(dim, num_classes, True)


def linear(dim, num_classes, num_domains):
    return torch.nn.Linear(dim, num_classes)


def test_nonlinear_classifier_cannot_start_from_text_features(zero_shot, hparams):
    with pytest.raises(CarftError, match="nonlinear classifier.*Set clip_head to 'random'"):
        build_featurized(zero_shot, on_hidden_layers)
    build_featurized(hparams, on_hidden_layers).predict(make_images())


@pytest.mark.parametrize("classifier", [on_pairs, on_domains, linear])
def test_job_ends_before_first_step_if_no_classifier_takes_text_features(zero_shot, classifier):
    algorithm = build_featurized(zero_shot, classifier, num_domains=4)
    for use in (lambda: algorithm.to("cpu"), lambda: algorithm.featurizer(make_images())):
        with pytest.raises(CarftError, match="Featurized has built no classifier from 128 feat"):
            use()


# Refused


@pytest.mark.parametrize("shape", [(4, 48, 48), (1, 28, 28), (2,)])
def test_inputs_that_are_no_images_in_rgb_are_refused(hparams, shape):
    with pytest.raises(CarftError, match=r"ERM cannot train a CLIP model: .*CLIP reads images in"):
        algorithms.ERM(shape, 3, 3, hparams)


def test_zero_shot_head_needs_class_names(zero_shot, hparams):
    del zero_shot["class_names"], hparams["class_names"]
    with pytest.raises(CarftError, match="no class names are given"):
        algorithms.ERM((3, 48, 48), 3, 3, zero_shot)
    algorithms.ERM((3, 48, 48), 3, 3, hparams)

    with pytest.raises(CarftError, match="no class names are known for the dataset 'Unheard'"):
        algorithms.ERM((3, 48, 48), 3, 3, {**zero_shot, "class_names": "dataset:Unheard"})


class WithItsOwnNetwork(algorithms.Algorithm):
    """An algorithm that builds its network in another way, like khanrc/miro's MIRO."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.network = networks.MNIST_CNN(input_shape)


def test_algorithm_that_builds_no_featurizer_is_refused(hparams):
    algorithm = WithItsOwnNetwork((3, 28, 28), 3, 3, hparams)
    with pytest.raises(CarftError, match="without networks.Featurizer, so clip_backbone would ha"):
        algorithm.to("cpu")
    WithItsOwnNetwork((3, 28, 28), 3, 3, HOST).to("cpu")


class URM(algorithms.ERM):
    """An algorithm with the name of one that DomainBed's featurizers alone can train."""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"clip_backbone": "ViT-Z"}, "clip_backbone is 'ViT-Z', expected an existing file"),
        ({"clip_backbone": 5}, "clip_backbone is 5, expected 'tiny'"),
        ({"clip_head": "zeroshot"}, "clip_head is 'zeroshot', expected one of 'random'"),
        ({"clip_head": "zero-shot", "contexts": ["no place"]}, "each with exactly one {}"),
        ({"clip_digest": "0" * 64}, "the hparam clip_digest is .* the CLIP weights differ"),
    ],
)
def test_invalid_values_are_refused(hparams, given, message):
    with pytest.raises(CarftError, match=message):
        algorithms.ERM((3, 48, 48), 3, 3, {**hparams, **given})


def test_algorithm_that_needs_featurizers_of_domainbed_is_refused(hparams):
    with pytest.raises(CarftError, match="URM cannot train a CLIP model: it accepts only"):
        URM((3, 48, 48), 3, 3, hparams)


# Hyperparameters


def registered(algorithm, dataset, seed):
    """Return the host's defaults, or its draws of a seed."""
    if seed is None:
        return hparams_registry.default_hparams(algorithm, dataset)
    return hparams_registry.random_hparams(algorithm, dataset, seed)


def test_defaults_and_draws_of_rates_are_those_of_the_methods():
    for seed in (None, 3):
        host = registered("ERM", "PACS", seed)
        expected = hparam_values("CLIPFineTune", "PACS", seed, clip_backbone="ViT-B/16")
        resolved = algorithms.ERM.resolve_hparams("PACS", {"clip_backbone": "ViT-B/16"}, seed)
        assert resolved.values["lr"] == expected["lr"] != host["lr"]
        same = host.keys() - {"lr"}
        assert {name: resolved.values[name] for name in same} == {n: host[n] for n in same}
        assert resolved.problems == []


@pytest.mark.parametrize(("dataset", "rate"), [("PACS", 5e-6), ("OfficeHome", 1e-5)])
def test_default_rate_is_that_of_the_dataset(dataset, rate):
    given = {"clip_backbone": "ViT-B/16"}
    assert algorithms.ERM.resolve_hparams(dataset, given).values["lr"] == rate


def test_given_rate_stays_and_other_names_of_rates_follow_the_methods():
    host = {"lr": 5e-5, "lr_d": 5e-5, "lr_g": 5e-5, "rdm_lr": 1e-5, "eqrm_lr": 1e-6}
    added = host_hparams.get_added_values(
        host, given={"clip_backbone": "tiny", "lr": 2e-5}, dataset="PACS"
    )
    assert {name: added.get(name) for name in host} == {
        **dict.fromkeys(("lr", "lr_d")),
        **dict.fromkeys(("lr_g", "rdm_lr", "eqrm_lr"), 3e-4),
    }


def test_misspelt_names_are_problems_and_unread_names_are_listed():
    given = {"clip_backbone": "tiny", "clip_haed": "zero-shot", "resnet18": True, "kl_weight": 1.0}
    resolved = algorithms.ERM.resolve_hparams("EmojiStyles", {**given, "contexts": "emoji"})
    (problem,) = map(str, resolved.problems)
    assert "'clip_haed'; did you mean clip_head" in problem
    assert resolved.unread == ["resnet18", "kl_weight", "contexts"]


def test_methods_of_package_accept_the_head_of_other_algorithms_in_a_sweep():
    resolved = algorithms.get_algorithm_class("CARFT").resolve_hparams(
        "EmojiStyles", {"clip_head": "zero-shot"}
    )
    assert (resolved.problems, resolved.unread) == ([], ["clip_head"])


# Jobs


def test_included_erm_trains_clip_model_and_records_its_facts(script, tmp_path):
    words = "--algorithm ERM --dataset EmojiStyles --test_envs 0 --steps 2 --checkpoint_freq 1"
    hparams = {"clip_backbone": "tiny", "clip_head": "zero-shot", "batch_size": 4, "kl_weight": 1.0}
    job = tmp_path / "job"
    done = script("train", *words.split(), "--hparams", json.dumps(hparams), "--output_dir", job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kl_weight has no effect on ERM" in done.stdout
    assert "cannot be resumed" not in done.stdout

    record = json.loads((job / "results.jsonl").read_text().splitlines()[-1])
    saved = torch.load(job / "model.pkl", weights_only=True)
    for content in (record, saved):
        assert content["clip_digest"] == openai.TINY_SHA256
        assert content["preprocessing"] == "48 bicubic shortest"
        assert content["protocol"] == "domainbed"
        assert content["amp"] == "off"
    assert record["hparams"]["lr"] == 3e-4 and record["hparams"]["clip_head"] == "zero-shot"
