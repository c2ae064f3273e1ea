"""What an algorithm takes over from the job it is in: words, normalisation, the host's calls."""

import pytest
import torch
from data_trees import even, grow, jpeg, make_report
from domainbed import datasets
from test_algorithms import CLASSES, CONTEXTS, build, make, reopened, same_state, settings

from domainbed_carft.data import benchmarks, verify
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.images.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET
from domainbed_carft.method import algorithms, dataset_facts, prompts
from domainbed_carft.plugin import foreign_jobs

CLIPS = (CLIP_MEAN, CLIP_STD)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_facts_are_found_by_hand(random_tiny):
    facts = algorithms.CARFT((3, 28, 28), 3, 2, settings(random_tiny)).recorded_facts()
    assert facts == {
        "clip_digest": weights.sha256(random_tiny),
        "clip_revision": "",
        "prompts_digest": prompts.digest(CONTEXTS, CLASSES),
        "data_edition": "",
        "preprocessing": "48 bicubic shortest",
        "protocol": "domainbed",
        "amp": "off",
    }


def test_all_facts_that_hparams_demand_in_vain_are_listed_at_once(random_tiny):
    demanded = {"clip_digest": "abad1dea", "prompts_digest": "feedfacefeedface"}

    with pytest.raises(CarftError) as raised:
        algorithms.CARFT((3, 28, 28), 3, 2, settings(random_tiny, **demanded))

    for problem, (name, value) in zip(raised.value.problems, demanded.items(), strict=True):
        assert f"{name} is {value!r}, but this job has " in problem
        assert f"or omit {name}" in problem


def test_in_a_foreign_host_the_constructor_adds_one_key(random_tiny):
    hparams = settings(random_tiny)
    in_checkout = foreign_jobs.make_foreign_class(algorithms.CARFT, "domainbed.algorithms")

    algorithm = in_checkout((3, 28, 28), 3, 2, hparams)

    assert hparams == {**settings(random_tiny), "facts": algorithm.recorded_facts()}
    assert same_state(algorithm, make(random_tiny))
    assert (in_checkout.__name__, in_checkout.__module__) == ("CARFT", "domainbed.algorithms")


def in_environments(weights, normalisations, **overrides):
    """CARFT in a job whose environments show these normalisations."""
    values = settings(weights, class_names="dataset:Mine", **overrides)
    environments = [
        dataset_facts.EnvironmentFacts(f"env {i}", ["Alarm_Clock", "Bike", "TV"], normalisation)
        for i, normalisation in enumerate(normalisations)
    ]
    dataset_facts.remember(values, "Mine", environments)
    return build(algorithms.CARFT, (3, 28, 28), 3, 2, values)


@pytest.mark.parametrize("normalisation", [IMAGENET, CLIPS, HALF, None])
def test_the_encoder_gets_the_same_image_under_any_normalisation(
    random_tiny, normalisation, capsys
):
    raw = torch.rand(2, 3, 48, 48)
    algorithm = in_environments(random_tiny, [None, normalisation, None]).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in normalisation or IMAGENET)
    clip_mean, clip_std = (torch.tensor(v).view(3, 1, 1) for v in CLIPS)
    clip_input = algorithm.input((raw - mean) / std)

    torch.testing.assert_close(clip_input, (raw - clip_mean) / clip_std, rtol=1e-5, atol=1e-5)
    assert f"std {list((normalisation or IMAGENET)[1])}" in capsys.readouterr().out


def test_environments_that_normalise_differently_are_refused(random_tiny):
    with pytest.raises(CarftError, match=r"normalise .*0\.485.*0\.5.*equal"):
        in_environments(random_tiny, [IMAGENET, None, HALF])


def test_a_saved_run_keeps_its_normalisation(random_tiny, tmp_path):
    algorithm = in_environments(random_tiny, [HALF]).eval()
    x = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        restored = reopened(algorithm, tmp_path).algorithm
        assert torch.equal(restored.predict(x), algorithm.predict(x))


def test_the_data_verdict_is_recorded_and_can_be_required(random_tiny):
    pacs = benchmarks.get("PACS")
    (edition,) = pacs.editions
    counts = {name: dict(classes) for name, classes in edition.by_class.items()}
    environments = [dataset_facts.EnvironmentFacts(name, pacs.classes) for name in counts]
    demanded = "verified: as published"
    values = settings(random_tiny, class_names="dataset:PACS", data_edition=demanded)

    dataset_facts.remember(values, "PACS", environments, make_report("PACS", counts))
    algorithm = build(algorithms.CARFT, (3, 28, 28), 7, 3, values)
    assert algorithm.facts["data_edition"] == demanded

    counts["photo"]["dog"] -= 1
    dataset_facts.remember(values, "PACS", environments, make_report("PACS", counts))
    with pytest.raises(
        CarftError, match=f"is '{demanded}', but this job has 'differs: [0-9a-f]{{8}}'"
    ):
        build(algorithms.CARFT, (3, 28, 28), 7, 3, values)


def test_a_job_verifies_the_data_folders(random_tiny, tmp_path):
    """What no count shows: an empty file."""
    grow(tmp_path, even(["cat", "dog"], images=4), jpeg(size=(8, 8)))
    (tmp_path / "photo" / "dog" / "4.png").touch()
    values = settings(random_tiny, class_names=f"dataset:{tmp_path}")
    cls = datasets.get_dataset_class(str(tmp_path))
    dataset = cls(None, [0], values)

    with pytest.raises(CarftError, match=r" is broken: .*empty.*4\.png"):
        build(algorithms.CLIPZeroShot, dataset.input_shape, 2, 1, values)

    (tmp_path / "photo" / "dog" / "4.png").unlink()
    dataset = cls(None, [0], values)
    algorithm = build(algorithms.CLIPZeroShot, dataset.input_shape, 2, 1, values)
    assert algorithm.facts["data_edition"].startswith("consistent: ")
    assert algorithm.facts["data_edition"] == verify.verify(str(tmp_path)).data_edition


def test_a_job_reads_its_domain_names(random_tiny, tmp_path):
    grow(tmp_path, even(["cat", "dog"], ["oil", "pencil", "photo"], 5), jpeg(size=(8, 8)))
    for spec, names in (("domains", "oil pencil photo"), ("domains-without-target", "oil photo")):
        values = settings(random_tiny, class_names=f"dataset:{tmp_path}", contexts=spec)
        dataset = datasets.get_dataset_class(str(tmp_path))(None, [1], values)
        algorithm = build(algorithms.CARFT, dataset.input_shape, 2, 2, values)
        expected = [f"a {name} of a {{}}." for name in names.split()]
        assert algorithm.facts["prompts_digest"] == prompts.digest(expected, ["cat", "dog"])
        assert algorithm.hparams["contexts"] == spec
