"""The picture plan in records and files of weights, and of files that have none."""

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import clip_cache
import numpy as np
import pytest
import torch
from domainbed.scripts import train
from PIL import Image
from runs_jobs import evaluated

from domainbed_carft.clips import backbone
from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.pictures.preprocessing import CLIP_MEAN, CLIP_STD
from domainbed_carft.pictures.protocols import plan_for, recorded_plan
from domainbed_carft.runs import saved

CLIP = {
    "embed_dim": 64,
    "image_resolution": 32,
    "vision_layers": 1,
    "vision_width": 64,
    "vision_patch_size": 8,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 1,
}
opened_files = Counter()


def count_opened(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, Path)):
        opened_files[str(arguments[0])] += 1


def write_pets(folder):
    """Noise with a tint that tells two classes apart, in three environments."""
    noise = np.random.default_rng(0)
    for environment in ("art", "photo", "sketch"):
        for label, name in enumerate(("cat", "wild dog")):
            (folder / environment / name).mkdir(parents=True)
            for number in range(5):
                pixels = noise.integers(0, 256, (30, 20, 3), dtype=np.uint8)
                pixels[..., label] //= 3
                Image.fromarray(pixels).save(folder / environment / name / f"{number}.png")


def write_clip(path):
    """A CLIP with random weights, as a user's file."""
    from clip.model import CLIP as OpenAICLIP

    torch.manual_seed(0)
    torch.save(OpenAICLIP(**CLIP).state_dict(), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trained job in "job", its "pets" and its CLIP."""
    folder = tmp_path_factory.mktemp("sweep")
    write_pets(folder / "pets")
    write_clip(folder / "clip.pt")
    hparams = {"clip_backbone": "clip.pt", "batch_size": 4, "contexts": "imagenet7", "amp": "off"}
    arguments = ["--algorithm", "CARFT", "--dataset", "./pets", "--steps", "3", "--workers", "0"]
    arguments += ["--checkpoint_freq", "2", "--hparams", json.dumps(hparams)]
    arguments += ["--test_envs", "0", "--trial_seed", "1", "--output_dir", "job"]
    sys.addaudithook(count_opened)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        clip_cache.uninstall(patch)
        assert train.main(arguments) == 0
    return folder


def read(folder):
    content = torch.load(folder / "job" / "model.pkl", weights_only=True)
    records = [json.loads(line) for line in (folder / "job" / "results.jsonl").open()]
    return content, records


def test_words_and_plan_are_in_records_and_weights(folder):
    content, records = read(folder)
    for record in records:
        assert record["pictures"] == content["pictures"]
        assert record["picture_plan"] == content["picture_plan"]


def test_the_plan_is_the_protocols_for_the_clip(folder):
    content, _ = read(folder)
    plan = PicturePlan.from_json(content["picture_plan"])
    expected = plan_for("domainbed", 32, augment=True).for_model(32, CLIP_MEAN, CLIP_STD)
    assert plan == replace(expected, mode="fast", jitter=plan.jitter)
    assert plan.describe() == content["pictures"]


def test_a_file_without_a_plan_has_its_protocols(folder):
    run = saved.open_run(folder / "job")
    content = {name: value for name, value in run.content.items() if name != "picture_plan"}
    assert recorded_plan(content, run.algorithm.input) == plan_for("domainbed", 32, augment=True)


def test_a_job_measures_what_its_records_say(folder, monkeypatch, capsys):
    _, records = read(folder)
    monkeypatch.chdir(folder)
    document = evaluated(capsys, "job", "--workers", 0)
    for split in document["splits"]:
        assert split["accuracy"] == records[-1][f"{split['name']}_acc"]


def test_a_clip_given_as_a_file_is_loaded_for_its_facts_and_to_train_it(folder, monkeypatch):
    opened_in_job = opened_files["clip.pt"]
    monkeypatch.chdir(folder)
    clip_cache.uninstall(monkeypatch)
    backbone.load("clip.pt")  # whose digest is known
    opened_in_load = opened_files["clip.pt"] - opened_in_job
    assert opened_in_job == 2 * opened_in_load + 1
