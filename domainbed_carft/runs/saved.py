"""Find and open the weights file of a saved run.

The file can be untrusted: nothing in it is executed, and no path in it is opened.
"""

from __future__ import annotations

import copy
import dataclasses
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
from domainbed_carft.escaping import printable
from domainbed_carft.files import weights
from domainbed_carft.jobs import records
from domainbed_carft.jobs.facts import get_hparams_and_facts
from domainbed_carft.jobs.job import IDENTITY
from domainbed_carft.jobs.job_folder import RECORDS, WEIGHTS
from domainbed_carft.jobs.records import RecordedRun
from domainbed_carft.jobs.setting import ARGUMENTS, label_recorded
from domainbed_carft.machine.devices import choose_device
from domainbed_carft.method import algorithms, objective, prompts
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.paths import AnyPath, as_path, as_text
from domainbed_carft.runs.run import Run as Run
from domainbed_carft.runs.saved_checks import add_facts_to_hparams, require_run
from domainbed_carft.wording import quantity

_ENCODER = "encoder."  # prefix of the encoder's weights

# Functions that predict, and prefixes of the weights that they use. A user's own method can
# override the functions and add weights.
_PREDICTION_FUNCTIONS = (
    "predict",
    "forward",
    "features",
    "class_logits",
    "context_logits",
)
_PREDICTION_WEIGHTS = (
    _ENCODER,
    "head.",
    "head_factor",
    "context_weights",
    "logit_scale",
    "input.",
    "words",
    "architecture",
)

# The parts of a weights file that are the weights and describe them.
_WEIGHTS = ("model_dict", "training_only_names")

# The arguments that must be equal in weights and in the records in their folder.
_SHARED_ARGUMENTS = (*IDENTITY, "test_envs", "seed", *ARGUMENTS)

# A loaded run, a job's folder, or a weights file.
AnyRun: TypeAlias = Run | AnyPath


def load_run(path: AnyPath, which: str | None = None, device: str | None = None) -> Run:
    """Load a run from a job's folder or a weights file.

    Nothing in the file is executed. The run can predict but not train, since the file has neither
    the original encoder nor the optimizer.

    Args:
        path: a job's folder, or a weights file.
        which: the weights in a folder, "last" (model.pkl) or "best" (model_best.pkl). Default: the
            weights reported in tables, which is "best" if the job held environments out and has
            that file.
        device: such as "cpu" or "cuda:1". Default: the GPU if there is one.

    Returns:
        The run, ready to predict.

    Raises:
        CarftError: if the folder has no weights, the file cannot be loaded, is not a run of an
            algorithm of this package or does not belong to the records in its folder, the weights
            are not finite, or the device is unknown.

    Examples:
        >>> run = load_run(job, device="cpu")
        >>> run.classes
        ['cat', 'wild dog']
        >>> len(run.contexts) > 1
        True
    """
    chosen_device = choose_device(device)
    file = choose_weights(as_path(path), which)
    run = build_run(weights.load_weights(file), file)
    _require_recorded(run)
    run.algorithm.to(chosen_device)
    return run


def as_run(run: AnyRun, device: str | None = None) -> Run:
    """Return the run, loaded if ``run`` is a path, on ``device`` if it is not None."""
    if not isinstance(run, Run):
        return load_run(run, device=device)
    if device is not None:
        run.algorithm.to(choose_device(device))
    return run


def load_original(run: AnyRun, original: AnyPath | None = None) -> Run:
    """Return a run with the weights of the CLIP model that a run started from.

    It has the same prompts and the same test transform, so its features and predictions are those
    of zero-shot CLIP for the same images. The given run is not changed.

    Args:
        run: a `Run`, a job's folder, or a weights file.
        original: the CLIP checkpoint that the run started from; required unless it is a published
            one.

    Returns:
        A run with alpha 0, as ``carft wise-ft`` saves it, on the device of the given run.

    Raises:
        CarftError: if the checkpoint is not the one that the run started from, or if the run
            predicts with parts that CLIP does not have.

    Examples:
        >>> load_original(job).predict(image).class_probabilities.shape
        torch.Size([1, 2])
    """
    run = as_run(run)
    require_clip_with_head(run)
    algorithm = copy.deepcopy(run.algorithm)
    algorithm.load_state_dict(load_original_weights(run, as_text(original)), strict=False)
    return dataclasses.replace(run, algorithm=algorithm, alpha=0.0)


def choose_weights(path: Path, which: str | None) -> Path:
    """Return the weights file that a command reads.

    Args:
        path: a job's folder, or a weights file.
        which: "last" or "best" in a folder. Default: the weights reported in tables, which is
            model_best.pkl if the job held environments out and has that file, otherwise model.pkl.

    Raises:
        CarftError: if the folder does not contain the file.
    """
    if which not in (None, *WEIGHTS):
        raise CarftError(invalid("which", which, f"one of {', '.join(WEIGHTS)}"))
    if not os.path.isdir(path):
        if which is not None and os.path.exists(path):
            raise CarftError(f"--which chooses a file in a folder, but {path} is a file; omit it")
        return path

    best = path / WEIGHTS["best"]
    if which is None and best.exists():
        # Without records, the weights themselves contain the targets.
        arguments = records.read_recorded_arguments(path) or load_run(best, device="cpu").args
        which = "best" if arguments["test_envs"] else None
    file = path / WEIGHTS[which or "last"]
    if not file.exists():
        hint = "expected the folder of a finished job that kept its weights"
        for alternative, name in reversed(WEIGHTS.items()):
            if (path / name).exists():
                hint = f"use --which {alternative} for its {name}"
        raise CarftError(f"{path} has no {file.name}; {hint}")
    return file


def describe_choice(path: Path, which: str | None, file: Path) -> str:
    """Return a sentence about the ``file`` that `choose_weights` chose; "" if the user named it."""
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
    return f"Weights: {file.name} of {path}, {reason}{hint}"


def open_step(recorded: RecordedRun, step: int) -> Run | None:
    """Open the weights of a recorded run at a step, on the CPU; None if no file contains them.

    Weights of another step are never used instead. Raises CarftError as `load_run` does, and if the
    weights and the records belong to different jobs.
    """
    folder = Path(recorded.folder)
    # Files whose name or position shows the step come first.
    names = [f"model_step{step}.pkl", WEIGHTS["best"]]
    if step == max(recorded.steps) and recorded.done:
        names.insert(1, WEIGHTS["last"])

    for file in (folder / name for name in names if (folder / name).exists()):
        run = build_run(weights.load_weights(file), file)
        weights_step = max(recorded.steps) if file.name == WEIGHTS["last"] else run.step
        if step == weights_step:
            difference = _find_difference(run, recorded.job.args, recorded.recorded)
            if difference:
                raise _make_records_error(run, difference)
            return run
    return None


def _require_recorded(run: Run) -> None:
    """Raise CarftError if the folder of the weights has records, but only of other jobs."""
    file = run.path.parent / RECORDS
    if run.soup is not None or not file.is_file():
        return
    record_of_each_job = dict(records.read_keyed_records(file, warnings=[])).values()
    differences = [
        _find_difference(run, record["args"], get_hparams_and_facts(record, record.get("hparams")))
        for record in record_of_each_job
    ]
    if differences and all(differences):
        raise _make_records_error(run, differences[-1])


def _find_difference(run: Run, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> str:
    """Return the first setting or fact that differs between weights and records, or ""."""
    pairs = {name: (run.args.get(name), args.get(name)) for name in _SHARED_ARGUMENTS}
    for name in sorted(run.hparams.keys() & hparams.keys()):
        pairs[label_recorded(name)] = (run.hparams[name], hparams[name])

    for name, (in_weights, in_records) in pairs.items():
        if json.loads(json.dumps(in_weights)) != in_records:
            return f"{name} is {in_weights!r} in the weights and {in_records!r} in the records"
    return ""


def _make_records_error(run: Run, difference: str) -> CarftError:
    return CarftError(
        f"{run.path} does not belong to the records in its folder: {difference}. Replace it with "
        "the job's weights, or move it to another folder"
    )


def build_run(content: Any, file: Path) -> Run:
    """Build a run from the ``content`` of the weights file ``file``; raises as `load_run` does."""
    content = add_facts_to_hparams(content)
    require_run(content, file)
    algorithm, contexts, classes = _restore(content, file)
    _require_finite(algorithm, file)
    digest = content["model_hparams"].get("method_digest", "")
    if digest != algorithm.method_digest:
        message = (
            f"{file} was trained by another version of the file that declares "
            f"{type(algorithm).__name__}: its SHA-256 was {digest or 'not recorded'} then and is "
            f"{algorithm.method_digest or 'none'} now"
        )
        warnings.warn(printable(message), CarftWarning, stacklevel=3)

    soup = content.get("soup")
    step = content.get("best_step", content.get("wise_ft_step"))
    step_in_name = re.fullmatch(r"model_step(\d+)\.pkl", file.name)
    if step is None and step_in_name and soup is None:  # --save_model_every_checkpoint
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
        content={key: value for key, value in content.items() if key not in _WEIGHTS},
        soup=soup,
    )


def _require_finite(algorithm: CLIPAlgorithm, file: Path) -> None:
    state = algorithm.state_dict()
    not_finite = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if not_finite:
        raise CarftError(
            f"{file} has values that are not finite in {quantity(len(not_finite), 'tensor')}, "
            f"first in {not_finite[0]}: the training diverged. Use --which best, or train with a "
            "smaller lr"
        )


def require_clip_with_head(run: Run) -> None:
    """Raise CarftError if the run predicts with more than CLIP's image encoder and the heads.

    The original CLIP has no counterpart to parts that a user's own method adds, and an exported
    checkpoint has no place for them.
    """
    method = type(run.algorithm)
    additions = [
        f"a {name} of its own"
        for name in _PREDICTION_FUNCTIONS
        if getattr(method, name) is not getattr(CLIPAlgorithm, name)
    ]
    additions += [
        name for name in run.algorithm.state_dict() if not name.startswith(_PREDICTION_WEIGHTS)
    ]
    if additions:
        raise CarftError(
            f"{run.path} is a run of {method.__name__}, which needs more than CLIP's image encoder "
            f"and a head to predict: it has {', '.join(additions)}. The original CLIP "
            "model has no such part, and an exported CLIP model cannot contain it"
        )


def load_original_clip(run: Run, file: str | None = None) -> backbone.Backbone:
    """Load the CLIP model that the run started from.

    Args:
        run: the run.
        file: a name for `backbone.load`. Default: the checkpoint that the run names, if it is a
            published one.

    Raises:
        CarftError: if the run names a path or an open_clip checkpoint and ``file`` is None, or if
            SHA-256, configuration or shapes differ from the run's.
    """
    name = file or run.hparams["clip_backbone"]
    if not file and name not in openai.PUBLISHED:
        raise CarftError(
            f"{run.path} started from the CLIP model {name!r}. Paths named in a run are not "
            "opened, and nothing is downloaded; pass the model as --original FILE or --original "
            "open_clip:..."
        )

    clip = backbone.load(name)
    expected_digest = run.hparams["clip_digest"]
    if clip.digest != expected_digest:
        raise CarftError(
            f"{clip.path} is not the CLIP model that {run.path} started from: its SHA-256 is "
            f"{clip.digest}, expected {expected_digest}. Pass the right file as --original FILE"
        )
    if clip.architecture != get_architecture(run):
        raise CarftError(
            f"{name} has the weights but not the configuration of the CLIP model that {run.path} "
            "started from; pass the same name as in training, or its export"
        )
    if _get_shapes(clip.model.visual) != _get_shapes(run.algorithm.encoder):
        raise CarftError(f"the image encoders of {run.path} and {clip.path} differ in shape")
    return clip


def load_original_weights(run: Run, original: str | None) -> dict[str, Tensor]:
    """Return the encoder and head of zero-shot CLIP, with the names of the run's state dict.

    The head has the same scale as the run's head. ``original`` is passed to `load_original_clip`.
    """
    clip = load_original_clip(run, original)
    text_features = backbone.encode_prompts(clip, prompts.fill_templates(run.contexts, run.classes))
    head_scale = float(run.algorithm.logit_scale / run.algorithm.head_factor)

    weights = {f"encoder.{name}": w for name, w in clip.model.visual.state_dict().items()}
    weights["head.weight"] = head_scale * objective.zero_shot_weights(text_features).classes
    weights["head.bias"] = torch.zeros(len(run.classes))
    return weights


def _get_shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def get_architecture(run: Run) -> str:
    """Return open_clip's configuration of the run's CLIP model as JSON, or "" for OpenAI's."""
    characters = run.algorithm.state_dict().get("architecture", torch.empty(0))
    return bytes(characters.tolist()).decode()


def _restore(content: Mapping[str, Any], path: Path) -> tuple[CLIPAlgorithm, list[str], list[str]]:
    """Return algorithm, contexts and classes from a checked ``content``."""
    algorithm_class = algorithms.CLASSES[content["args"]["algorithm"]]
    algorithm = algorithm_class.__new__(algorithm_class)  # its __init__ would load the original
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
        _build_for_state(algorithm, state, contexts, classes)
        _load_state(algorithm, state, content.get("training_only_names"))
    except Exception as error:  # unexpected tensors can raise any type
        raise CarftError(
            f"{path} does not hold the weights of a {algorithm_class.__name__} ({brief(error)}); "
            "was the file changed after training?"
        ) from error

    algorithm.restored = True
    return algorithm.eval(), contexts, classes


def _build_for_state(
    algorithm: CLIPAlgorithm,
    state: Mapping[str, Any],
    contexts: list[str],
    classes: list[str],
) -> None:
    """Build encoder and heads for the weights of a file; wrong tensors raise any exception."""
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
    algorithm.note_prediction_names()


def _load_state(
    algorithm: CLIPAlgorithm, state: Mapping[str, Tensor], training_only_names: list[str] | None
) -> None:
    """Load the weights that prediction needs; raises RuntimeError for missing or unknown names.

    Args:
        algorithm: the algorithm, built for prediction.
        state: the weights of the file.
        training_only_names: the recorded names that prediction does not need. None if the host that
            wrote the file does not record them: then no name is unknown.
    """
    ignored = {*state} if training_only_names is None else {*training_only_names}
    ignored -= {*algorithm.prediction_names}
    algorithm.load_state_dict({name: w for name, w in state.items() if name not in ignored})


def check_output_folder(output: AnyPath | None, names: Iterable[str]) -> Path | None:
    """Return the folder for results.

    Raises CarftError if it is a file or already contains one of the files.
    """
    if output is None:
        return None
    folder = as_path(output)
    files.require_folder(folder)
    existing = [name for name in names if os.path.lexists(folder / name)]
    if existing:
        raise CarftError(
            f"{folder} already has {', '.join(existing)}; choose another --output, or delete these "
            "files"
        )
    files.require_space(folder)
    return folder


def save_weights(path: Path, content: Mapping[str, Any]) -> None:
    """Write a weights file of a restored algorithm, which has only what predicts, atomically."""
    content = {**content, "training_only_names": []}
    files.save(path, functools.partial(torch.save, content))
