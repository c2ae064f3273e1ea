"""Saved runs: which file of a job's folder holds the weights, and the run that is in it.

The file may be a stranger's: nothing in it is run, and no path in it is opened.
"""

from __future__ import annotations

import functools
import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from domainbed.algorithms import Algorithm
from torch import Tensor

from domainbed_carft import files
from domainbed_carft.clips import backbone, open_clip, openai
from domainbed_carft.errors import CarftError, CarftWarning, brief, invalid
from domainbed_carft.files import weights
from domainbed_carft.jobs import records
from domainbed_carft.jobs.facts import hparams_and_facts
from domainbed_carft.jobs.folder import RECORDS, WEIGHTS
from domainbed_carft.jobs.job import IDENTITY
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import ARGUMENTS
from domainbed_carft.method import algorithms, objective, prompts
from domainbed_carft.method.algorithm import TRAINING_PREFIXES, CLIPAlgorithm
from domainbed_carft.paths import AnyPath, as_path
from domainbed_carft.runs.predictions import choose_device
from domainbed_carft.runs.run import Run as Run
from domainbed_carft.runs.saved_checks import require_run, with_facts_among_hparams
from domainbed_carft.text import printable, quantity

_ENCODER = "encoder."  # how the names of the encoder's weights begin

# The functions by which an algorithm predicts, and how the names of the weights begin that it does
# it with. A user's own method may override the former, and add to the latter.
_PREDICTING = ("predict", "forward", "features", "class_logits", "context_logits", "logits_over")
_PREDICTING_WEIGHTS = (
    _ENCODER,
    "head.",
    "head_factor",
    "context_weights",
    "logit_scale",
    "input.",
    "words",
    "architecture",
)

# The arguments by which weights belong to the records in their folder, beside the hparams.
_SHARED_ARGUMENTS = (*IDENTITY, "test_envs", "seed", *ARGUMENTS)

# A run that is loaded, or the folder of its job, or a weights file.
AnyRun: TypeAlias = Run | AnyPath


def load_run(path: AnyPath, which: str | None = None, device: str | None = None) -> Run:
    """The run in a job's folder or a weights file.

    ``which``: in a folder "last" for model.pkl or "best" for model_best.pkl; by default the weights
    that the tables are of, which is "best" if the job left environments out and has that file.
    ``device``: where to predict, such as "cpu" or "cuda:1"; by default the GPU if there is one.

    Nothing in the file is executed. Raises CarftError for a folder without the weights, a file that
    is not a run of one of our algorithms, weights that are not finite, and an unknown device.

    >>> run = load_run(job, device="cpu")
    >>> run.classes
    ['cat', 'wild dog']
    >>> len(run.contexts) > 1
    True
    """
    chosen_device = choose_device(device)
    run = open_run(choose_weights(as_path(path), which))
    run.algorithm.to(chosen_device)
    return run


def as_run(run: AnyRun, device: str | None = None) -> Run:
    """The run, loaded if it is a path, and on ``device`` if that is given."""
    if not isinstance(run, Run):
        return load_run(run, device=device)
    if device is not None:
        run.algorithm.to(choose_device(device))
    return run


def choose_weights(path: Path, which: str | None) -> Path:
    """The file that a command reads: in a folder ``which``, else the one that the tables are of.

    That is model_best.pkl if the job left environments out and has that file, else model.pkl.
    Raises CarftError for a folder without the file.
    """
    best = path / WEIGHTS["best"]
    if which is None and os.path.isdir(path) and best.exists():
        # Without records the weights themselves say what was left out.
        arguments: Mapping[str, Any] = records.recorded_arguments(path) or open_run(best).args
        which = "best" if arguments["test_envs"] else None
    return weights_file(path, which)


def describe_choice(path: Path, which: str | None, file: Path) -> str:
    """A sentence on the ``file`` that `choose_weights` took; "" if the user named it."""
    if which is not None or path == file:
        return ""

    if file.name == WEIGHTS["best"]:
        reason = "selected by training-domain validation"
        alternative = "last"
    else:
        reason = "of the last step"
        alternative = "best"

    alternative_file = WEIGHTS[alternative]
    hint = ""
    if (path / alternative_file).exists():
        hint = f" (for {alternative_file}: --which {alternative})"
    return printable(f"Weights: {file.name} of {path}, {reason}{hint}")


def weights_file(path: Path, which: str | None) -> Path:
    """The file that `open_run` reads; CarftError for a folder without it."""
    if which not in (None, *WEIGHTS):
        raise CarftError(invalid("which", which, f"one of {', '.join(WEIGHTS)}"))
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


def open_step(recorded: RecordedRun, step: int) -> Run | None:
    """The recorded run with its weights of a step, on the CPU; None if no file has them.

    Another step never stands in. Raises CarftError for a file that cannot be read as `open_run`, or
    is not of the job that the records are of.
    """
    folder = Path(recorded.folder)
    # Those first whose name or place says the step.
    names = [f"model_step{step}.pkl", WEIGHTS["best"]]
    if step == max(recorded.steps) and recorded.done:
        names.insert(1, WEIGHTS["last"])

    for file in (folder / name for name in names if (folder / name).exists()):
        run = open_run(file)
        is_last = file.name == WEIGHTS["last"]
        if step == (max(recorded.steps) if is_last else run.step):
            _require_same_job(run, recorded)
            return run
    return None


def _require_same_job(run: Run, recorded: RecordedRun) -> None:
    """Raise CarftError if the weights are not of the job that the records are of."""
    difference = _difference(run, recorded.job.args, recorded.recorded)
    if difference:
        raise _not_of_records(run, difference)


def _require_recorded(run: Run) -> None:
    """Raise CarftError if there are records beside the weights, all of other jobs."""
    file = run.path.parent / RECORDS
    if run.soup is not None or not file.is_file():
        return
    jobs = dict(records.keyed_records(file, warnings=[])).values()  # a record of each
    differences = [
        _difference(run, record["args"], hparams_and_facts(record, record.get("hparams")))
        for record in jobs
    ]
    if differences and all(differences):
        raise _not_of_records(run, differences[-1])


def _difference(run: Run, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> str:
    """The first setting that differs between weights and records; "" if they are of one job.

    ``hparams``: the recorded ones, and the facts of the job.
    """
    pairs = {name: (run.args.get(name), args.get(name)) for name in _SHARED_ARGUMENTS}
    for name in sorted(run.hparams.keys() & hparams.keys()):
        pairs[f"hparam {name}"] = (run.hparams[name], hparams[name])

    for name, (in_weights, in_records) in pairs.items():
        if json.loads(json.dumps(in_weights)) != in_records:
            return f"{name} is {in_weights!r} in the weights and {in_records!r} in the records"
    return ""


def _not_of_records(run: Run, difference: str) -> CarftError:
    return CarftError(
        f"{run.path} does not belong to the records in its folder: {difference}. Put the job's own "
        "file there, or move this one to another folder"
    )


def open_run(path: Path | str, which: str | None = None) -> Run:
    """The run in a job's folder or a weights file; ``which`` of WEIGHTS to read in a folder.

    In a folder the default is "last". The run can predict but not train: the file has neither the
    original encoder nor the optimizer. Raises CarftError for a folder without the weights, a file
    that `load_weights` refuses, that is not a run of one of our algorithms or not of the job whose
    records are in its folder, and weights that are not finite.
    """
    file = weights_file(Path(path), which)
    run = run_of(weights.load_weights(file), file)
    _require_recorded(run)
    return run


def run_of(content: Any, file: Path) -> Run:
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

    soup = content.get("soup")
    step = content.get("best_step", content.get("wise_ft_step"))
    step_in_name = re.fullmatch(r"model_step(\d+)\.pkl", file.name)
    if step is None and step_in_name and soup is None:  # by --save_model_every_checkpoint
        step = int(step_in_name[1])

    return Run(
        path=file,
        algorithm=algorithm,
        args=content["args"],
        hparams=content["model_hparams"],
        classes=classes,
        contexts=contexts,
        step=step,
        alpha=content.get("wise_ft_alpha"),
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


def require_clip_with_head(run: Run) -> None:
    """Raise CarftError if the run predicts by more than a CLIP's image encoder and the heads.

    The original CLIP has no counterpart to what a user's own method adds, and an export no place.
    """
    method = type(run.algorithm)
    additions = [
        f"a {name} of its own"
        for name in _PREDICTING
        if getattr(method, name) is not getattr(CLIPAlgorithm, name)
    ]
    additions += [
        name for name in run.algorithm.state_dict() if not name.startswith(_PREDICTING_WEIGHTS)
    ]
    if additions:
        raise CarftError(
            f"{run.path} is a run of {method.__name__}, which predicts by more than CLIP's image "
            f"encoder and a head: it has {', '.join(additions)}. The original CLIP has no "
            "counterpart to that, and an exported CLIP has no place for it"
        )


def original_clip(run: Run, file: str | None = None) -> backbone.Backbone:
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


def original_weights(run: Run, original: str | None) -> dict[str, Tensor]:
    """The zero-shot CLIP's encoder and head, under the names of the run's state dict.

    The head has the scale of the run's. ``original`` and what is raised: as `original_clip`.
    """
    clip = original_clip(run, original)
    text_features = backbone.encode_prompts(clip, prompts.fill_templates(run.contexts, run.classes))
    head_scale = float(run.algorithm.logit_scale / run.algorithm.head_factor)

    weights = {f"encoder.{name}": w for name, w in clip.model.visual.state_dict().items()}
    weights["head.weight"] = head_scale * objective.zero_shot_weights(text_features).classes
    weights["head.bias"] = torch.zeros(len(run.classes))
    return weights


def _shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def architecture_of(run: Run) -> str:
    """open_clip's configuration of the run's CLIP as JSON; "" for OpenAI's format."""
    characters = run.algorithm.state_dict().get("architecture", torch.empty(0))
    return bytes(characters.tolist()).decode()


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
        open_clip.import_package()
    try:
        templates, classes = prompts.from_json(bytes(state["words"].tolist()).decode())
        contexts = prompts.parse_contexts(templates, minimum=1)
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
        encoder, preprocessing, dim = backbone.build_image_encoder(shapes, architecture)
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


def new_folder(output: AnyPath | None, names: Iterable[str]) -> Path | None:
    """The folder for results; CarftError if one of the files is in it already."""
    if output is None:
        return None
    folder = as_path(output)
    existing = [name for name in names if os.path.lexists(folder / name)]
    if existing:
        raise CarftError(
            f"{folder} already has {', '.join(existing)}; choose another --output, or remove them"
        )
    return folder


def save_weights(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of weights, whole or not at all."""
    files.save(path, functools.partial(torch.save, dict(content)))
