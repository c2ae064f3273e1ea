"""Small jobs of real training on a user's own pictures, for the tests of what is done with them."""

import json

import numpy as np
import torch
from domainbed.scripts import train
from PIL import Image

from domainbed_carft import cli

ENVIRONMENTS = ("art", "photo", "sketch")
CLASSES = ("cat", "wild dog")


def write_pictures(folder, count=10):
    """Noise with a tint that tells the classes apart; ``count`` of each class and environment."""
    noise = np.random.default_rng(0)
    for environment in ENVIRONMENTS:
        for label, name in enumerate(CLASSES):
            place = folder / environment / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (30, 20, 3), dtype=np.uint8)
                pixels[..., label] //= 3
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def train_job(output, pictures, algorithm, *further_arguments, test_envs=("0",), **changed):
    """Train three steps; the job's folder."""
    hparams = {"clip_backbone": "tiny", "batch_size": 4, "warmup_steps": 0, "total_steps": 5}
    hparams |= {"contexts": "emoji", "lr": 1e-3, **changed}
    arguments = ["--algorithm", algorithm, "--dataset", str(pictures), "--steps", "3"]
    arguments += ["--test_envs", *test_envs, "--workers", "0", "--hparams", json.dumps(hparams)]
    assert train.main([*arguments, *further_arguments, "--output_dir", str(output)]) == 0
    return output


def carft(command, *words, status=0):
    """A command on the CPU."""
    assert cli.main([command, *map(str, words), "--device", "cpu"]) == status


def evaluated(capsys, *words):
    """The document of `carft evaluate`."""
    capsys.readouterr()
    carft("evaluate", *words, "--json")
    return json.loads(capsys.readouterr().out)


def by_split(document):
    return {split["name"]: split["accuracy"] for split in document["splits"]}


def weights(path):
    return torch.load(path, weights_only=True)["model_dict"]


def records(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def accuracies(record):
    return {key[:-4]: value for key, value in record.items() if key.endswith("_acc")}
