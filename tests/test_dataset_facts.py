"""The facts that an algorithm takes from its job: prompts, normalisation, edition of the data."""

import pytest
import torch
from data_trees import even, grow, jpeg, make_report
from domainbed import datasets
from domainbed.algorithms import ERM
from helpers.algorithms import CLASSES, CONTEXTS, make, reopened, settings

from domainbed_carft.data import benchmarks, verification
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.images.dataset_facts import DatasetFacts, EnvironmentFacts, takes_dataset_facts
from domainbed_carft.images.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET
from domainbed_carft.method import algorithms, prompts

CLIP = (CLIP_MEAN, CLIP_STD)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_recorded_facts_describe_checkpoint_prompts_and_images(random_tiny):
    assert make(random_tiny).recorded_facts() == {
        "clip_digest": weights.sha256(random_tiny),
        "clip_revision": "",
        "prompts_digest": prompts.digest(CONTEXTS, CLASSES),
        "data_edition": "",
        "preprocessing": "48 bicubic shortest",
        "protocol": "domainbed",
        "amp": "off",
    }


def test_recorded_facts_name_the_hparams_that_differ_from_the_defaults(random_tiny):
    """Defaults depend on the dataset, which the hparam class_names names."""
    overrides = {"lr": 1, "kl_weight": 1, "weight_decay": 0.2, "drift_every": 5}
    changed = in_environments(random_tiny, [None], **overrides).facts["changed_hparams"]
    assert {*changed} & overrides.keys() == {"lr", "weight_decay"}
    assert "changed_hparams" not in make(random_tiny, **overrides).facts


def test_all_pinned_facts_that_differ_are_listed(random_tiny):
    pinned = {"clip_digest": "abad1dea", "prompts_digest": "feedfacefeedface"}
    with pytest.raises(CarftError) as raised:
        make(random_tiny, **pinned)
    for problem, (name, value) in zip(raised.value.problems, pinned.items(), strict=True):
        assert f"{name} is {value!r}, but this job has " in problem


def in_environments(weights, normalisations, **overrides):
    """Build CARFT in a job whose environments have these normalisations."""
    values = settings(weights, class_names="dataset:Mine", **overrides)
    environments = [
        EnvironmentFacts(f"env {i}", ["Alarm_Clock", "Bike", "TV"], normalisation)
        for i, normalisation in enumerate(normalisations)
    ]
    facts = DatasetFacts(environments)
    return algorithms.CARFT((3, 28, 28), 3, 2, values, dataset_facts=facts)


@pytest.mark.parametrize("normalisation", [IMAGENET, CLIP, HALF, None])
def test_encoder_gets_the_same_image_for_any_normalisation(random_tiny, normalisation, capsys):
    raw = torch.rand(2, 3, 48, 48)
    algorithm = in_environments(random_tiny, [None, normalisation, None]).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in normalisation or IMAGENET)
    clip_mean, clip_std = (torch.tensor(v).view(3, 1, 1) for v in CLIP)
    clip_input = algorithm.input((raw - mean) / std)

    torch.testing.assert_close(clip_input, (raw - clip_mean) / clip_std, rtol=1e-5, atol=1e-5)
    assert f"std {list((normalisation or IMAGENET)[1])}" in capsys.readouterr().out


def test_different_normalisations_are_rejected(random_tiny):
    with pytest.raises(CarftError, match=r"normalise .*0\.485.*0\.5.*equal"):
        in_environments(random_tiny, [IMAGENET, None, HALF])


def test_saved_run_keeps_its_normalisation(random_tiny, tmp_path):
    algorithm = in_environments(random_tiny, [HALF]).eval()
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        restored = reopened(algorithm, tmp_path).algorithm
        assert torch.equal(restored.predict(x), algorithm.predict(x))


def test_data_edition_is_recorded_and_can_be_pinned(random_tiny):
    pacs = benchmarks.get("PACS")
    (edition,) = pacs.editions
    counts = {name: dict(classes) for name, classes in edition.by_class.items()}
    environments = [EnvironmentFacts(name, pacs.classes) for name in counts]
    pinned = "verified: as published"
    values = settings(random_tiny, class_names="dataset:PACS", data_edition=pinned)

    facts = DatasetFacts(environments, make_report("PACS", counts))
    algorithm = algorithms.CARFT((3, 28, 28), 7, 3, values, dataset_facts=facts)
    assert algorithm.facts["data_edition"] == pinned

    counts["photo"]["dog"] -= 1
    facts = DatasetFacts(environments, make_report("PACS", counts))
    message = f"is '{pinned}', but this job has 'differs: [0-9a-f]{{8}}'"
    with pytest.raises(CarftError, match=message):
        algorithms.CARFT((3, 28, 28), 7, 3, values, dataset_facts=facts)


def test_broken_data_folder_is_rejected_and_repaired_one_recorded(random_tiny, tmp_path):
    grow(tmp_path, even(["cat", "dog"], images=4), jpeg(size=(8, 8)))
    (tmp_path / "photo" / "dog" / "4.png").touch()
    values = settings(random_tiny, class_names=f"dataset:{tmp_path}")
    cls = datasets.get_dataset_class(str(tmp_path))

    def build():
        facts = cls(None, [0], values).dataset_facts
        return algorithms.CLIPZeroShot((3, 28, 28), 2, 1, values, dataset_facts=facts)

    with pytest.raises(CarftError, match=r" is broken: .*empty.*4\.png"):
        build()

    (tmp_path / "photo" / "dog" / "4.png").unlink()
    edition = build().facts["data_edition"]
    assert edition.startswith("consistent: ")
    assert edition == verification.verify(str(tmp_path)).data_edition


def test_contexts_are_made_from_domain_names(random_tiny, tmp_path):
    grow(tmp_path, even(["cat", "dog"], ["oil", "pencil", "photo"], 5), jpeg(size=(8, 8)))
    for spec, names in (("domains", "oil pencil photo"), ("domains-without-target", "oil photo")):
        values = settings(random_tiny, class_names=f"dataset:{tmp_path}", contexts=spec)
        dataset = datasets.get_dataset_class(str(tmp_path))(None, [1], values)
        algorithm = algorithms.CARFT(
            dataset.input_shape, 2, 2, values, dataset_facts=dataset.dataset_facts
        )
        expected = [f"a {name} of a {{}}." for name in names.split()]
        assert algorithm.facts["prompts_digest"] == prompts.digest(expected, ["cat", "dog"])
        assert algorithm.hparams["contexts"] == spec


class WithFourArguments(algorithms.CARFT):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)


class WithOptions(algorithms.CARFT):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)


class ERMWithFourArguments(ERM):
    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)


class OfTheHarness(ERM):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)


def test_only_constructors_that_hand_on_the_facts_take_them():
    classes = [algorithms.CARFT, WithOptions, ERM, OfTheHarness]
    assert all(takes_dataset_facts(cls) for cls in classes)
    assert not any(map(takes_dataset_facts, [WithFourArguments, ERMWithFourArguments]))
