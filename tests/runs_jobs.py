"""Small jobs of real training on a user's own images, for the tests of what is done with them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from domainbed.scripts import train
from PIL import Image

from domainbed_carft import cli

ENVIRONMENTS = ("art", "photo", "sketch")
CLASSES = ("cat", "wild dog")


def write_images(folder: Path, count: int = 10) -> Path:
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


def train_job(
    output: Path,
    images: Path,
    algorithm: str,
    *further_arguments: str,
    test_envs: Sequence[str] = ("0",),
    **changed: Any,
) -> Path:
    """Train three steps; the job's folder."""
    hparams: dict[str, Any] = {"clip_backbone": "tiny", "batch_size": 4}
    hparams |= {"warmup_steps": 0, "total_steps": 5}
    hparams |= {"contexts": "emoji", "lr": 1e-3, **changed}
    arguments = ["--algorithm", algorithm, "--dataset", str(images), "--steps", "3"]
    arguments += ["--test_envs", *test_envs, "--workers", "0", "--hparams", json.dumps(hparams)]
    assert train.main([*arguments, *further_arguments, "--output_dir", str(output)]) == 0
    return output


def carft(command: str, *words: object, status: int = 0) -> None:
    """A command on the CPU."""
    assert cli.main([command, *map(str, words), "--device", "cpu"]) == status


def evaluated(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """The document of `carft evaluate`."""
    capsys.readouterr()
    carft("evaluate", *words, "--json")
    return json.loads(capsys.readouterr().out)


def by_split(document: Any) -> dict[str, float]:
    return {split["name"]: split["accuracy"] for split in document["splits"]}


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model_dict"]
    return state


def changed(job: Path, folder: Path, **parts: Any) -> Path:
    """Copy a job's weights into a folder with other ``parts``, of mappings only some items.

    ``job``: its folder, for the last weights, or a weights file.
    """
    content = torch.load(job / "model.pkl" if job.is_dir() else job, weights_only=True)
    for name, part in parts.items():
        content[name] = {**content[name], **part} if isinstance(part, Mapping) else part

    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "model.pkl")
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def accuracies(record: Mapping[str, Any]) -> dict[str, float]:
    return {key[:-4]: value for key, value in record.items() if key.endswith("_acc")}


def calibration_error(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Calibration as Guo et al. 2017, equation 3, has it, one of 15 bins after another."""
    confidences, predicted = logits.softmax(dim=1).max(dim=1)
    is_correct = (predicted == labels).double()
    error = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            gap = is_correct[inside].mean() - confidences[inside].mean()
            error += float(inside.double().mean() * gap.abs())
    return error
