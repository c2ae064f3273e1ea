"""Four trained jobs, packed in tests/trained: `python tests/trained_jobs.py` trains and packs them.

The image encoder of a job is packed as its difference from the encoder of `tiny`, in at most 31
steps in each direction. Therefore the tool rounds the weights of a trained job to such steps,
evaluates them again, and writes the new accuracies into the records. Unpacking restores the rounded
weights to the bit. `tests/test_trained_jobs.py` trains the jobs again.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import runs_jobs
import torch
from domainbed.scripts import train

import domainbed_carft

TINY = Path(domainbed_carft.__file__).parent / "assets" / "tiny.pt"
PACKED = Path(__file__).parent / "trained"

# The jobs of the fixture `pets`, trained on the folder "my pets".
PETS = ("CARFT", "CLIPLinearProbe", "CLIPZeroShot")
ON_EMOJI_STYLES = "CARFT job"

WEIGHTS = ("model.pkl", "model_best.pkl")
MAX_STEPS = 31

# Placeholder for the folder of the jobs in their records and weights.
_FOLDER = "/folder/of/the/jobs"


def train_on_emoji_styles(folder: Path) -> None:
    """Train CARFT with a uda-split, and without recording the training in-splits.

    The learning rate is so high that the best step is not the last.
    """
    hparams = {"batch_size": 4, "warmup_steps": 0, "total_steps": 6, "lr": 0.003}
    arguments = (
        "--algorithm CARFT --dataset EmojiStyles --test_envs 0 --steps 4 --checkpoint_freq 3 "
        "--seed 3 --workers 0 --uda_holdout_fraction 0.25 --skip_training_in_splits"
    ).split()
    arguments += ["--hparams", json.dumps(hparams), "--output_dir", str(folder / ON_EMOJI_STYLES)]
    assert train.main(arguments) == 0


def train_on_pets(folder: Path) -> None:
    """Write a user's images into "my pets", and train a job of each algorithm on them."""
    images = runs_jobs.write_images(folder / "my pets")
    for algorithm in PETS:
        runs_jobs.train_job(folder / algorithm, images, algorithm)


def unpack_pets(folder: Path) -> None:
    """Write the files of `train_on_pets` into the folder, with rounded weights."""
    runs_jobs.write_images(folder / "my pets")
    for algorithm in PETS:
        unpack(algorithm, folder)


def unpack(name: str, folder: Path) -> None:
    """Unpack a job into ``folder/name``."""
    job = folder / name
    job.mkdir(parents=True)
    with tarfile.open(PACKED / f"{name}.tar.xz") as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file
            content = file.read()
            path = job / member.name
            if path.name in WEIGHTS:
                packed = torch.load(io.BytesIO(content), weights_only=True)
                torch.save(_replace_folder(_restore(packed), _FOLDER, str(folder)), path)
            else:
                path.write_text(content.decode().replace(_FOLDER, str(folder)))


def pack(job: Path) -> None:
    """Pack a job with rounded weights."""
    with tarfile.open(PACKED / f"{job.name}.tar.xz", "w:xz") as archive:
        for path in sorted(job.iterdir()):
            if path.name in WEIGHTS:
                buffer = io.BytesIO()
                content = torch.load(path, weights_only=True)
                torch.save(_replace_folder(_shorten(content), str(job.parent), _FOLDER), buffer)
                data = buffer.getvalue()
            else:
                data = path.read_text().replace(str(job.parent), _FOLDER).encode()

            member = tarfile.TarInfo(path.name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def round_weights(job: Path) -> None:
    """Round the weights so that they can be packed, and record their accuracies."""
    for name in WEIGHTS:
        content = torch.load(job / name, weights_only=True)
        torch.save(_restore(_shorten(content)), job / name)

    records = runs_jobs.records(job)
    for name in WEIGHTS:
        content = torch.load(job / name, weights_only=True)
        step = content.get("best_step", records[-1]["step"])
        (record,) = (record for record in records if record["step"] == step)
        scores = domainbed_carft.evaluate(job / name, device="cpu", workers=0)
        measured = runs_jobs.accuracies_by_split(dataclasses.asdict(scores))
        for split in runs_jobs.accuracies(record):
            record[f"{split}_acc"] = measured[split]

    lines = [json.dumps(record, sort_keys=True) + "\n" for record in records]
    (job / "results.jsonl").write_text("".join(lines))


def load_original_weights() -> dict[str, torch.Tensor]:
    """Return the image encoder of `tiny`, with the parameter names of a job."""
    state = torch.load(TINY, map_location="cpu", weights_only=True)
    return {
        name.replace("visual", "encoder", 1): weight
        for name, weight in state.items()
        if name.startswith("visual.")
    }


def step_size(weight: torch.Tensor, original: torch.Tensor) -> float:
    """The power of two in whose multiples a weight's difference is packed."""
    distance = float((weight.double() - original.double()).abs().max())
    return 2.0 ** math.ceil(math.log2(distance / MAX_STEPS)) if distance else 1.0


def _shorten(content: dict[str, Any]) -> dict[str, Any]:
    """Replace each weight of the image encoder by its numbers of steps, and their size."""
    weights = dict(content["model_dict"])
    for name, original in load_original_weights().items():
        size = step_size(weights[name], original)
        steps = (weights[name].double() - original.double()) / size
        weights[name] = {"steps": steps.round().to(torch.int8), "size": size}
    return {**content, "model_dict": weights}


def _restore(content: dict[str, Any]) -> dict[str, Any]:
    """Undo `_shorten`, in float64 so that each weight is rounded only once."""
    weights = dict(content["model_dict"])
    for name, original in load_original_weights().items():
        distance = weights[name]["steps"].double() * weights[name]["size"]
        weights[name] = (original.double() + distance).float()
    return {**content, "model_dict": weights}


def _replace_folder(content: dict[str, Any], earlier: str, folder: str) -> dict[str, Any]:
    """Replace the folder in the arguments and hyperparameters of a weights file."""
    moved = {
        key: json.loads(json.dumps(content[key]).replace(earlier, folder))
        for key in ("args", "model_hparams")
    }
    return {**content, **moved}


def main() -> None:
    """Train, round and pack the four jobs."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        train_on_emoji_styles(folder)
        train_on_pets(folder)
        for name in (ON_EMOJI_STYLES, *PETS):
            round_weights(folder / name)
            pack(folder / name)


if __name__ == "__main__":
    main()
