"""A saved run: its weights, arguments, hyperparameters, class names and contexts.

The file may be a stranger's: nothing in it is run, and no path in it is opened.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from domainbed.algorithms import Algorithm

from domainbed_carft.clips import backbone, open_clip, openai
from domainbed_carft.errors import CarftError, CarftWarning, brief
from domainbed_carft.files import weights
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.method import algorithms, objective, prompts
from domainbed_carft.method.algorithm import TRAINING_PREFIXES, CLIPAlgorithm
from domainbed_carft.pictures.plan import PicturePlan
from domainbed_carft.pictures.recorded import recorded_plan
from domainbed_carft.runs.saved_checks import require_run, soup_of, with_facts_among_hparams
from domainbed_carft.text import printable, quantity

_ENCODER = "encoder."  # how the names of the encoder's weights begin


@dataclass(frozen=True)
class TrainedRun:
    """A run of one of our algorithms, read from the file ``path``, on the CPU and in eval mode.

    ``classes``: the names of the prompts, in label order; ``contexts``: the templates, in the order
    of ``context_logits``. ``hparams``: of the run, and the facts of its job. ``step``: after which
    the weights were saved, None for the run's last. ``alpha`` and ``layers``: of ``carft wise-ft``,
    else None. ``content``: what the file holds besides weights. ``soup``: of ``carft soup``, how it
    was made (as `runs.soup` writes it), else None; a soup has neither seed nor step.
    """

    path: Path
    algorithm: CLIPAlgorithm
    args: Mapping[str, Any]
    hparams: Mapping[str, Any]
    classes: list[str]
    contexts: list[str]
    step: int | None
    alpha: float | None
    content: Mapping[str, Any]
    soup: Mapping[str, Any] | None = None
    layers: str | None = None

    @property
    def picture_plan(self) -> PicturePlan:
        """How the job made its training pictures; its test pictures are without augmentation."""
        return recorded_plan(self.content, self.algorithm.input)

    @property
    def title(self) -> str:
        """Its algorithm; of a soup the number of its runs and their algorithms."""
        if self.soup is None:
            return str(self.args["algorithm"])

        members = self.soup["members"]
        if not members:
            return "soup"
        names = sorted({member["algorithm"] for member in members})
        return f"soup of {quantity(len(members), 'run')} ({', '.join(names)})"


def open_run(path: Path | str, which: str | None = None) -> TrainedRun:
    """The run in a job's folder or a weights file; ``which`` of WEIGHTS to read in a folder.

    In a folder the default is "last". The run can predict but not train: the file has neither the
    original encoder nor the optimizer. Raises CarftError for a folder without the weights, a file
    that `load_weights` refuses or that is not a run of one of our algorithms, and weights that are
    not finite.
    """
    file = weights_file(Path(path), which)
    return run_of(weights.load_weights(file), file)


def run_of(content: Any, file: Path) -> TrainedRun:
    """The run that the ``content`` of the weights file ``file`` is; raises as `open_run`."""
    content = with_facts_among_hparams(content)
    require_run(content, file)
    algorithm, contexts, classes = _restore(content, file)
    _require_finite(algorithm, file)
    digest = content["model_hparams"].get("method_digest", "")
    if digest != algorithm.method_digest:
        message = (
            f"{file} was trained by another version of the file that declares "
            f"{type(algorithm).__name__}: its SHA-256 was {digest or 'not recorded'}, and is "
            f"{algorithm.method_digest or 'none'} now"
        )
        warnings.warn(printable(message), CarftWarning, stacklevel=3)

    soup = soup_of(content)
    step = content.get("best_step", content.get("wise_ft_step"))
    step_in_name = re.fullmatch(r"model_step(\d+)\.pkl", file.name)
    if step is None and step_in_name and soup is None:  # by --save_model_every_checkpoint
        step = int(step_in_name[1])

    return TrainedRun(
        path=file,
        algorithm=algorithm,
        args=content["args"],
        hparams=content["model_hparams"],
        classes=classes,
        contexts=contexts,
        step=step,
        alpha=content.get("wise_ft_alpha"),
        layers=content.get("wise_ft_layers"),
        content={key: value for key, value in content.items() if key != "model_dict"},
        soup=soup,
    )


def _require_finite(algorithm: CLIPAlgorithm, file: Path) -> None:
    state = algorithm.state_dict()
    not_finite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if not_finite:
        raise CarftError(
            f"{file} has values that are not finite in {quantity(len(not_finite), 'tensor')}, the "
            f"first in {not_finite[0]}: the training diverged. Use --which best, or train with a "
            "smaller lr"
        )


def original_clip(run: TrainedRun, file: str | None = None) -> backbone.Backbone:
    """The CLIP that the run started from: ``file`` if given, else the published one it names.

    ``file`` may be any name of `backbone.load`. Raises CarftError where the run names a path or one
    of open_clip's and no ``file`` is given, where its SHA-256 or architecture is not the one that
    the run recorded, and as `backbone.load`.
    """
    name = file or run.hparams["clip_backbone"]
    if not file and name not in openai.PUBLISHED:
        raise CarftError(
            f"{run.path} started from the CLIP {name!r}. Paths named in a run are not opened, and "
            "no hub is asked; give that CLIP with --original FILE or --original open_clip:..."
        )

    clip = backbone.load(name)
    expected_digest = run.hparams["clip_digest"]
    if clip.digest != expected_digest:
        raise CarftError(
            f"{clip.path} is not the CLIP that {run.path} started from: its SHA-256 is "
            f"{clip.digest}, expected {expected_digest}. Give the right file with --original FILE"
        )
    if clip.architecture != architecture_of(run):
        raise CarftError(
            f"{name} has the weights but not the configuration of the CLIP that {run.path} started "
            "from; give it by the same name as for training, or by its export"
        )
    if _shapes(clip.model.visual) != _shapes(run.algorithm.encoder):
        raise CarftError(f"the image encoders of {run.path} and {clip.path} differ in shape")
    return clip


def _shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def architecture_of(run: TrainedRun) -> str:
    """open_clip's configuration of the run's CLIP as JSON; "" for OpenAI's format."""
    characters = run.algorithm.state_dict().get("architecture", torch.empty(0))
    return bytes(characters.tolist()).decode()


def weights_file(path: Path, which: str | None) -> Path:
    """The file that `open_run` reads; CarftError for a folder without it."""
    if not os.path.isdir(path):
        if which is not None and os.path.exists(path):
            raise CarftError(f"--which chooses a file in a folder; omit it, since {path} is a file")
        return path

    file = path / WEIGHTS[which or "last"]
    if not file.exists():
        hint = "expected the folder of a finished job that kept its weights"
        for alternative, name in reversed(WEIGHTS.items()):
            if (path / name).exists():
                hint = f"use --which {alternative} for its {name}"
        raise CarftError(f"{path} has no {file.name}; {hint}")
    return file


def _restore(content: Mapping[str, Any], path: Path) -> tuple[CLIPAlgorithm, list[str], list[str]]:
    """Algorithm, contexts and classes of a checked ``content``; CarftError for odd weights."""
    algorithm_class = algorithms.CLASSES[content["args"]["algorithm"]]
    algorithm = algorithm_class.__new__(algorithm_class)  # its __init__ would ask for the CLIP
    Algorithm.__init__(
        algorithm,
        content["model_input_shape"],
        content["model_num_classes"],
        content["model_num_domains"],
        content["model_hparams"],
    )
    algorithm.bf16 = content["model_hparams"]["amp"] == "bf16"

    state: Any = content.get("model_dict")
    if isinstance(state, dict) and "architecture" in state:
        open_clip.package()
    try:
        templates, classes = prompts.from_json(bytes(state["words"].tolist()).decode())
        contexts = prompts.contexts(templates, least=1)
        _restore_state(algorithm, state, contexts, classes)
    except Exception as error:  # what other tensors make of the encoder: any type
        raise CarftError(
            f"{path} does not hold the weights of a {algorithm_class.__name__} ({brief(error)}); "
            "was the file changed after training?"
        ) from error

    algorithm.restored = True
    return algorithm.eval(), contexts, classes


def _restore_state(
    algorithm: CLIPAlgorithm,
    state: Mapping[str, Any],
    contexts: list[str],
    classes: list[str],
) -> None:
    """Give the algorithm its encoder, heads and weights; raises anything for unfit tensors."""
    heads = objective.ZeroShotWeights(state["head.weight"], state["context_weights"])
    architecture = ""
    if "architecture" in state:
        architecture = bytes(state["architecture"].tolist()).decode()
    shapes = {
        name[len(_ENCODER) :]: tensor.shape
        for name, tensor in state.items()
        if name.startswith(_ENCODER)
    }

    with torch.random.fork_rng(devices=[]):
        encoder, preprocessing, dim = backbone.empty_image_encoder(shapes, architecture)
        expected = [(len(classes), dim), (len(contexts), dim)]
        if not classes or [tuple(weight.shape) for weight in heads] != expected:
            raise ValueError(f"expected class and context weights of shapes {expected}")
        algorithm.build_for_prediction(encoder, heads, float(state["logit_scale"]), preprocessing)

    for name in {"words", "architecture"} & state.keys():
        algorithm.register_buffer(name, torch.empty_like(state[name]))
    trained_state = {
        name: tensor for name, tensor in state.items() if not name.startswith(TRAINING_PREFIXES)
    }
    algorithm.load_state_dict(trained_state)
