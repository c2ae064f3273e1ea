"""A saved run: its weights, arguments, hyperparameters, class names and contexts.

The file may be a stranger's: nothing in it is run, and no path in it is opened.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from domainbed.algorithms import Algorithm

from domainbed_carft.clips import backbone, open_clip_models
from domainbed_carft.errors import CarftError, brief
from domainbed_carft.files import weights
from domainbed_carft.jobs.folder import WEIGHTS
from domainbed_carft.method import algorithms, clip_algorithm, objective, prompts
from domainbed_carft.method.hparams import ALGORITHMS, HPARAMS
from domainbed_carft.text import counted

LARGEST = 4096  # pixels a side of a picture; a number in a file must not take all memory
_ENCODER = "encoder."


@dataclass(frozen=True)
class TrainedRun:
    """A run of one of our algorithms, read from the file ``path``, on the CPU and in eval mode.

    ``classes``: the names of the prompts, in label order; ``contexts``: the templates, in the order
    of ``context_logits``. ``step``: after which the weights were saved, None for the run's last.
    ``alpha``: of ``carft wise-ft``, else None. ``content``: what the file holds besides weights.
    ``soup``: of ``carft soup``, how it was made (as `runs.soup` writes it), else None; a soup has
    neither seed nor step.
    """

    path: Path
    algorithm: clip_algorithm.CLIPAlgorithm
    args: Mapping[str, Any]
    hparams: Mapping[str, Any]
    classes: list[str]
    contexts: list[str]
    step: int | None
    alpha: float | None
    content: Mapping[str, Any]
    soup: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """Its algorithm; of a soup the number of its runs and their algorithms."""
        if self.soup is None:
            return str(self.args["algorithm"])

        members = self.soup["members"]
        if not members:
            return "soup"
        names = sorted({member["algorithm"] for member in members})
        return f"soup of {counted(len(members), 'run')} ({', '.join(names)})"


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
    _require_run(content, file)
    algorithm, contexts, classes = _restored(content, file)
    state = algorithm.state_dict().items()
    if wrong := [name for name, tensor in state if not tensor.isfinite().all()]:
        raise CarftError(
            f"{file} has values that are not finite in {counted(len(wrong), 'tensor')}, the first "
            f"in {wrong[0]}: the training diverged. Use --which best, or train with a smaller lr"
        )
    soup = _soup_of(content)
    step = content.get("best_step", content.get("wise_ft_step"))
    named = re.fullmatch(r"model_step(\d+)\.pkl", file.name)  # by --save_model_every_checkpoint
    return TrainedRun(
        path=file,
        algorithm=algorithm,
        args=content["args"],
        hparams=content["model_hparams"],
        classes=classes,
        contexts=contexts,
        step=int(named[1]) if step is None and named and soup is None else step,
        alpha=content.get("wise_ft_alpha"),
        content={key: value for key, value in content.items() if key != "model_dict"},
        soup=soup,
    )


def original_clip(run: TrainedRun, file: str | None = None) -> backbone.Backbone:
    """The CLIP that the run started from: ``file`` if given, else the published one it names.

    ``file`` may be any name of `backbone.load`. Raises CarftError where the run names a path or one
    of open_clip's and no ``file`` is given, where its SHA-256 or architecture is not the one that
    the run recorded, and as `backbone.load`.
    """
    name = file or run.hparams["clip_backbone"]
    if not file and name not in backbone.PUBLISHED:
        raise CarftError(
            f"{run.path} started from the CLIP {name!r}. Paths named in a run are not opened, and "
            "no hub is asked; give that CLIP with --original FILE or --original open_clip:..."
        )
    loaded, expected = backbone.load(name), run.hparams["clip_digest"]
    if loaded.digest != expected:
        raise CarftError(
            f"{loaded.path} is not the CLIP that {run.path} started from: its SHA-256 is "
            f"{loaded.digest}, expected {expected}. Give the right file with --original FILE"
        )
    if loaded.architecture != architecture_of(run):
        raise CarftError(
            f"{name} has the weights but not the configuration of the CLIP that {run.path} started "
            "from; give it by the same name as for training, or by its export"
        )
    there, here = (one.state_dict() for one in (loaded.model.visual, run.algorithm.encoder))
    if {k: v.shape for k, v in there.items()} != {k: v.shape for k, v in here.items()}:
        raise CarftError(f"the image encoders of {run.path} and {loaded.path} differ in shape")
    return loaded


def architecture_of(run: TrainedRun) -> str:
    """open_clip's configuration of the run's CLIP as JSON; "" for OpenAI's format."""
    kept = run.algorithm.state_dict().get("architecture", torch.empty(0))
    return bytes(kept.tolist()).decode()


def weights_file(path: Path, which: str | None) -> Path:
    """The file that `open_run` reads; CarftError for a folder without it."""
    if not os.path.isdir(path):
        if which is not None and os.path.exists(path):
            raise CarftError(f"--which chooses a file in a folder; omit it, since {path} is a file")
        return path
    file = path / WEIGHTS[which or "last"]
    there = [f"use --which {one} for its {f}" for one, f in WEIGHTS.items() if (path / f).exists()]
    if not file.exists():
        hint = there or ["expected the folder of a finished job that kept its weights"]
        raise CarftError(f"{path} has no {file.name}; {hint[0]}")
    return file


def _is_step(value: Any) -> bool:
    """Whether it is a number of steps, which random numbers are drawn by, or None."""
    return value is None or (type(value) is int and 0 <= value < 2**63)


def _is_share(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


# Whether an argument in the file, None where it is missing, is as `domainbed.scripts.train` takes
# it; `splits` divides and draws by the last ones.
_ARGUMENT_FITS: dict[str, Callable[[Any], bool]] = {
    "algorithm": lambda name: name in ALGORITHMS,
    "dataset": lambda name: type(name) is str,
    "test_envs": lambda envs: {*map(type, envs)} <= {int},
    "data_dir": lambda folder: folder is None or type(folder) is str,
    **dict.fromkeys(("seed", "trial_seed"), lambda seed: seed is None or type(seed) is int),
    "steps": _is_step,
    **dict.fromkeys(("holdout_fraction", "uda_holdout_fraction"), _is_share),
}
# The same of the other parts of the file; each is JSON besides, as in the records.
_FITS: dict[str, Callable[[Any], bool]] = {
    **_ARGUMENT_FITS,
    "model_input_shape": lambda shape: (
        [type(n) for n in shape] == [int] * 3 and 0 < min(shape) <= max(shape) <= LARGEST
    ),
    **dict.fromkeys(("model_num_classes", "model_num_domains"), lambda n: type(n) is int),
    "args": lambda args: True,
    # With "preprocessing" the data set need not look for the CLIP that the file names.
    "model_hparams": lambda hparams: (
        all(h.valid(hparams[h.name]) for h in HPARAMS) and hparams["preprocessing"]
    ),
    **dict.fromkeys(("best_step", "wise_ft_step"), _is_step),
    "wise_ft_alpha": lambda alpha: alpha is None or (type(alpha) is float and 0 <= alpha <= 1),
    "soup": lambda soup: soup is None or _is_soup(soup),
}

# Of a soup that carft 0.1.0 has saved, which does not say what it is made of.
UNKNOWN_SOUP: Mapping[str, Any] = {"kind": "unknown", "members": []}
_NONE = type(None)
SOUPS = ("uniform", "greedy", UNKNOWN_SOUP["kind"])


# The fields of a soup and of its members, and the types that they may have.
_OF_SOUP = {"chosen_by": (str,), **dict.fromkeys(("in_domain", "out_of_domain"), (float, _NONE))}
_OF_MEMBER = {
    **dict.fromkeys(("run", "sha256", "algorithm"), (str,)),
    **dict.fromkeys(("hparams_seed", "seed", "step"), (int, _NONE)),
    **dict.fromkeys(("wise_ft_alpha", "validation"), (float, _NONE)),
    "weight": (float,),
}


def _is_soup(soup: Any) -> bool:
    members = soup["members"]
    return (
        type(members) is list
        and soup["kind"] in SOUPS
        and (not members or all(type(soup[name]) in types for name, types in _OF_SOUP.items()))
        and all(type(one[name]) in types for one in members for name, types in _OF_MEMBER.items())
    )


def _soup_of(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the soup in a weights file was made; None for any other file."""
    soup: Mapping[str, Any] | None = content.get("soup")
    # 0.1.0 wrote this key, but no alpha, only into soups.
    if soup is None and "wise_ft_step" in content and "wise_ft_alpha" not in content:
        return UNKNOWN_SOUP
    return soup


def _require_run(content: Any, path: Path) -> None:
    parts = content if isinstance(content, dict) else {}
    args = parts["args"] if isinstance(parts.get("args"), dict) else {}
    for part, fits in _FITS.items():
        source = args if part in _ARGUMENT_FITS else parts
        value, fitting = source.get(part), False
        with contextlib.suppress(Exception):  # a tensor compares to no truth, say
            fitting = bool(json.dumps(value)) and fits(value)
        if not fitting:
            raise CarftError(
                f"{path} is not a run of {', '.join(ALGORITHMS)}: its {part} is "
                f"{reprlib.repr(value)[:200]}. Expected a weights file from domainbed.scripts.train"
            )


def _restored(
    content: Mapping[str, Any], path: Path
) -> tuple[clip_algorithm.CLIPAlgorithm, list[str], list[str]]:
    cls: type[clip_algorithm.CLIPAlgorithm] = getattr(algorithms, content["args"]["algorithm"])
    algorithm = cls.__new__(cls)  # its __init__ would ask for the CLIP
    numbers = (content["model_num_classes"], content["model_num_domains"])
    Algorithm.__init__(algorithm, content["model_input_shape"], *numbers, content["model_hparams"])
    state: Any = content.get("model_dict")
    if isinstance(state, dict) and "architecture" in state:
        open_clip_models.package()
    try:
        found, classes = prompts.from_json(bytes(state["words"].tolist()).decode())
        contexts = prompts.contexts(found, least=1)
        shapes = {k[len(_ENCODER) :]: v.shape for k, v in state.items() if k.startswith(_ENCODER)}
        heads = objective.ZeroShotWeights(state["head.weight"], state["context_weights"])
        with torch.random.fork_rng(devices=[]):
            text = bytes(state["architecture"].tolist()).decode() if "architecture" in state else ""
            encoder, wanted, dim = backbone.empty_image_encoder(shapes, text)
            expected = [(len(classes), dim), (len(contexts), dim)]
            if not classes or [tuple(weight.shape) for weight in heads] != expected:
                raise ValueError(f"expected class and context weights of shapes {expected}")
            algorithm.set_up(encoder, heads, float(state["logit_scale"]), wanted)
        for name in {"words", "architecture"} & state.keys():
            algorithm.register_buffer(name, torch.empty_like(state[name]))
        own = {k: v for k, v in state.items() if not k.startswith(clip_algorithm.TRAINING_PREFIXES)}
        algorithm.load_state_dict(own)
    except Exception as error:  # what other tensors make of the encoder: any type
        told = f"{path} does not hold the weights of a {cls.__name__} ({brief(error)})"
        raise CarftError(f"{told}; was the file changed after training?") from error
    algorithm.restored = True
    return algorithm.eval(), contexts, classes
