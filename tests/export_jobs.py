"""Jobs to export, and exports as clip, open_clip and readers of their page take them."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from domainbed.scripts import train

from domainbed_carft import cli
from domainbed_carft.runs import export

# What trains fast, and far enough from the original to tell the two apart.
FAST = {"batch_size": 8, "warmup_steps": 0, "total_steps": 4, "lr": 0.001}


def debug(folder: Path, algorithm: str, *further_arguments: str, **hparams: Any) -> Path:
    """The folder of a job on Debug28."""
    arguments = ["--algorithm", algorithm, "--dataset", "Debug28", "--output_dir", str(folder)]
    arguments += ["--hparams", json.dumps({**FAST, **hparams}), "--workers", "0", "--steps", "2"]
    assert (
        train.main([*arguments, "--checkpoint_freq", "3", "--test_envs", "2", *further_arguments])
        == 0
    )

    return folder


def exported(job: Path, folder: Path) -> export.ExportedFiles:
    """An export by the command, in a folder."""
    weights = folder / "it's.pt"
    assert cli.main(["export", str(job), "--which", "last", "-o", str(weights)]) == 0
    return export.ExportedFiles.named_after(weights)


def blocks(markdown: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)


def exact(files: export.ExportedFiles) -> tuple[Any, Any]:
    """The export in clip and in open_clip, as the card says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import clip
        import open_clip

    state = torch.load(files.weights, weights_only=True)
    clip_model = clip.model.build_model(dict(state)).float()
    clip_model.load_state_dict(state)
    open_clip_model = open_clip.CLIP(**json.loads(files.card.read_text())["open_clip_config"])
    open_clip.load_checkpoint(open_clip_model, str(files.weights))
    return clip_model.eval(), open_clip_model.eval()
