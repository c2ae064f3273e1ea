"""Small training jobs on a user's own images, and helpers to read and change their runs."""

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
    """Write ``count`` images of each class and environment: noise with a tint for each class."""
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
    **overrides: Any,
) -> Path:
    """Train three steps, and return the job's folder."""
    hparams: dict[str, Any] = {"clip_backbone": "tiny", "batch_size": 4}
    hparams |= {"warmup_steps": 0, "total_steps": 5}
    hparams |= {"contexts": "emoji", "lr": 1e-3, **overrides}
    arguments = ["--algorithm", algorithm, "--dataset", str(images), "--steps", "3"]
    arguments += ["--test_envs", *test_envs, "--workers", "0", "--hparams", json.dumps(hparams)]
    assert train.main([*arguments, *further_arguments, "--output_dir", str(output)]) == 0
    return output


def carft(command: str, *words: object, status: int = 0) -> None:
    """Run a command on the CPU."""
    assert cli.main([command, *map(str, words), "--device", "cpu"]) == status


def evaluate_json(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """Return the document that `carft evaluate --json` prints."""
    capsys.readouterr()
    carft("evaluate", *words, "--json")
    return json.loads(capsys.readouterr().out)


def accuracies_by_split(document: Any) -> dict[str, float]:
    return {name: split["accuracy"] for name, split in document["sets"].items()}


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model_dict"]
    return state


def copy_changed(job: Path, folder: Path, **parts: Any) -> Path:
    """Copy weights into a folder with other ``parts``; mappings update only some items.

    ``job``: a weights file, or a job's folder for the last weights.
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
    """Return the ECE of Guo et al. 2017, equation 3, with a loop over 15 bins."""
    confidences, predicted = logits.softmax(dim=1).max(dim=1)
    is_correct = (predicted == labels).double()
    error = 0.0
    for number in range(15):
        inside = (confidences > number / 15) & (confidences <= (number + 1) / 15)
        if inside.any():
            gap = is_correct[inside].mean() - confidences[inside].mean()
            error += float(inside.double().mean() * gap.abs())
    return error
