"""What an algorithm takes over from the job it is in: words, normalisation, the host's calls."""

import hashlib
import json
import re

import pytest
import torch
from data_trees import even, grow, jpeg, report_on
from domainbed import datasets
from domainbed.scripts import train
from test_algorithms import (
    CLASSES,
    CONTEXTS,
    build,
    make,
    minibatches,
    reopened,
    same_state,
    settings,
)

from domainbed_carft.data import benchmarks, verify
from domainbed_carft.errors import CarftError
from domainbed_carft.method import algorithms, dataset_facts, prompts
from domainbed_carft.pictures.preprocessing import CLIP_MEAN, CLIP_STD, IMAGENET

CLIPS = (CLIP_MEAN, CLIP_STD)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def in_environments(weights, normalisations, **overrides):
    """CARFT in a job whose environments show these normalisations."""
    values = settings(weights, class_names="dataset:Mine", **overrides)
    environments = [
        dataset_facts.EnvironmentFacts(f"env {i}", ["Alarm_Clock", "Bike", "TV"], normalisation)
        for i, normalisation in enumerate(normalisations)
    ]
    dataset_facts.remember(values, "Mine", environments)
    return build(algorithms.CARFT, (3, 28, 28), 3, 2, values)


def test_the_prompt_digest_is_a_fact_that_can_be_demanded(random_tiny):
    algorithm = make(random_tiny)
    expected = prompts.digest(CONTEXTS, CLASSES)
    assert algorithm.facts["prompts_digest"] == expected
    assert make(random_tiny, prompts_digest=expected).facts["prompts_digest"] == expected
    with pytest.raises(CarftError, match=f"is '0123456789abcdef', but .* has '{expected}'"):
        make(random_tiny, prompts_digest="0123456789abcdef")


@pytest.mark.parametrize("normalisation", [IMAGENET, CLIPS, HALF, None])
def test_the_encoder_gets_the_same_picture_under_any_normalisation(
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


def test_all_call_signatures_of_update_and_predict_agree(random_tiny):
    ways = [make(random_tiny) for _ in range(4)]
    for seed in range(3):
        batches = minibatches(seed)
        xs, ys = ([pair[i] for pair in batches] for i in (0, 1))
        unlabeled = [torch.randn(4, 3, 28, 28)]
        values = [
            ways[0].update(batches),
            ways[1].update(batches, unlabeled),
            ways[2].update(batches, unlabeled=None, step=seed, writer=None),
            ways[3].update(x=xs, y=ys, step=seed),
        ]
        assert values.count(values[0]) == 4

    assert all(same_state(ways[0], way) for way in ways[1:])

    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(ways[0](x), ways[0].predict(x))


def pets(weights, counts, **overrides):
    """CARFT in a job on PACS that found ``counts`` (environment -> pictures a class)."""
    pacs = benchmarks.get("PACS")
    values = settings(weights, class_names="dataset:PACS", **overrides)
    environments = [dataset_facts.EnvironmentFacts(name, pacs.classes) for name in counts]
    found_counts = {name: dict(zip(pacs.classes, number)) for name, number in counts.items()}
    dataset_facts.remember(values, "PACS", environments, report_on("PACS", found_counts))
    return build(algorithms.CARFT, (3, 28, 28), 7, 3, values)


def published():
    (edition,) = benchmarks.get("PACS").editions
    return {name: list(classes.values()) for name, classes in edition.by_class.items()}


def test_the_data_verdict_is_recorded_and_can_be_required(random_tiny, capsys):
    counts = published()
    algorithm = pets(random_tiny, counts)
    assert algorithm.facts["data_edition"] == "verified: as published"
    assert "Data: verified: as published\n" in capsys.readouterr().out

    pets(random_tiny, counts, data_edition="verified: as published")
    counts["photo"][0] -= 1
    edition = pets(random_tiny, counts).facts["data_edition"]

    assert re.fullmatch("differs: [0-9a-f]{8}", edition)
    with pytest.raises(
        CarftError, match="is 'verified: as published', but this job has 'differs: "
    ):
        pets(random_tiny, counts, data_edition="verified: as published")


def test_a_job_verifies_the_data_folders(random_tiny, tmp_path):
    """What no count shows: an empty file."""
    grow(tmp_path, even(["cat", "dog"], pictures=4), jpeg(size=(8, 8)))
    (tmp_path / "photo" / "dog" / "4.png").touch()
    values = settings(random_tiny, class_names=f"dataset:{tmp_path}")
    cls = datasets.get_dataset_class(str(tmp_path))
    dataset = cls(None, [0], values)

    with pytest.raises(CarftError, match=r" is broken: .*empty.*4\.png"):
        build(algorithms.CLIPZeroShot, dataset.input_shape, 2, 1, values)

    (tmp_path / "photo" / "dog" / "4.png").unlink()
    dataset = cls(None, [0], values)
    algorithm = build(algorithms.CLIPZeroShot, dataset.input_shape, 2, 1, values)
    content = json.dumps({e: {"cat": 4, "dog": 4} for e in ("art", "photo")}, sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]

    assert algorithm.facts["data_edition"] == f"consistent: {digest}"
    assert verify.verify(str(tmp_path)).data_edition == f"consistent: {digest}"


def test_a_job_reads_its_domain_names(random_tiny, tmp_path):
    grow(tmp_path, even(["cat", "dog"], ["oil", "pencil", "photo"], 5), jpeg(size=(8, 8)))
    for spec, names in (("domains", "oil pencil photo"), ("domains-without-target", "oil photo")):
        values = settings(random_tiny, class_names=f"dataset:{tmp_path}", contexts=spec)
        dataset = datasets.get_dataset_class(str(tmp_path))(None, [1], values)
        algorithm = build(algorithms.CARFT, dataset.input_shape, 2, 2, values)
        expected = [f"a {name} of a {{}}." for name in names.split()]
        assert algorithm.facts["prompts_digest"] == prompts.digest(expected, ["cat", "dog"])
        assert algorithm.hparams["contexts"] == spec


def test_data_of_a_single_domain_trains(random_tiny, tmp_path):
    grow(tmp_path, even(["cat", "dog"], ["only"], 5), jpeg(size=(8, 8)))
    hparams = {"clip_backbone": str(random_tiny), "batch_size": 2, "warmup_steps": 0}
    arguments = ["--algorithm", "CARFT", "--dataset", str(tmp_path), "--test_envs", "--steps", "2"]
    more = ["--workers", "0", "--hparams", json.dumps(hparams)]
    output = tmp_path.parent / "output"

    assert train.main([*arguments, *more, "--output_dir", str(output)]) == 0

    record = json.loads((output / "results.jsonl").read_text().splitlines()[-1])
    assert record["environments"] == ["only"]
    assert record["data_edition"].startswith("consistent: ")
    assert "data_edition" not in record["hparams"]
