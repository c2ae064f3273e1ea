"""Check that a weights file contains a run in the format of `domainbed.scripts.train`.

The file can be untrusted, so no value is used before it is checked here.
"""

from __future__ import annotations

import contextlib
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from domainbed_carft.errors import CarftError
from domainbed_carft.images.plan import ImagePlan
from domainbed_carft.jobs import own_methods
from domainbed_carft.jobs.facts import get_hparams_and_facts
from domainbed_carft.jobs.job_folder import WEIGHTS_FORMAT
from domainbed_carft.method.algorithms import CLASSES, OWN_PROBLEMS
from domainbed_carft.method.hparams import is_preprocessing
from domainbed_carft.method.resolution import complete, get_hparams


def _is_step(value: Any) -> bool:
    # Steps seed random numbers, so they must fit into 63 bits.
    return value is None or (type(value) is int and 0 <= value < 2**63)


def _is_share(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


def _are_texts(names: Any) -> bool:
    return type(names) is list and {*map(type, names)} <= {str}


# Checks of the training arguments; a missing argument is None. `splits` uses the last ones to
# divide the data and to draw random numbers.
_ARGUMENT_CHECKS: dict[str, Callable[[Any], bool]] = {
    "algorithm": lambda name: name in CLASSES,
    "dataset": lambda name: type(name) is str,
    "test_envs": lambda envs: {*map(type, envs)} <= {int},
    "data_dir": lambda folder: folder is None or type(folder) is str,
    **dict.fromkeys(("seed", "trial_seed"), lambda seed: seed is None or type(seed) is int),
    "steps": _is_step,
    **dict.fromkeys(("holdout_fraction", "uda_holdout_fraction"), _is_share),
}
# Checks of all parts of the file, which must also be JSON, like the records.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    **_ARGUMENT_CHECKS,
    "model_input_shape": lambda shape: [type(n) for n in shape] == [int] * 3 and min(shape) > 0,
    **dict.fromkeys(("model_num_classes", "model_num_domains"), lambda n: type(n) is int),
    "args": lambda args: True,
    "format": lambda number: number in (None, WEIGHTS_FORMAT),  # missing in files of other hosts
    # Missing in files of other hosts.
    "training_only_names": lambda names: names is None or _are_texts(names),
    "image_plan": lambda plan: plan is None or bool(ImagePlan.from_json(plan)),
    **dict.fromkeys(("best_step", "wise_ft_step"), _is_step),
    "wise_ft_alpha": lambda alpha: alpha is None or (type(alpha) is float and 0 <= alpha <= 1),
    "soup": lambda soup: soup is None or _is_soup(soup),
}

_NONE = type(None)
_FILE_NAME = re.compile(r"[\w.-]{1,100}")
SOUP_KINDS = ("uniform", "greedy")


# Fields of a soup and of its members, with the allowed types.
_SOUP_TYPES = {
    "chosen_by": (str,),
    "in_domain": (float, _NONE),
    "out_of_domain": (float, _NONE),
}
_MEMBER_TYPES = {
    "run": (str,),
    "sha256": (str,),
    "algorithm": (str,),
    "hparams_seed": (int, _NONE),
    "seed": (int, _NONE),
    "step": (int, _NONE),
    "wise_ft_alpha": (float, _NONE),
    "validation": (float, _NONE),
    "weight": (float,),
}


def _has_types(fields: Any, types: Mapping[str, tuple[type, ...]]) -> bool:
    return all(type(fields[name]) in allowed for name, allowed in types.items())


def _is_soup(soup: Any) -> bool:
    members = soup["members"]
    if type(members) is not list or soup["kind"] not in SOUP_KINDS:
        return False
    fits = _has_types(soup, _SOUP_TYPES)
    return fits and all(_has_types(member, _MEMBER_TYPES) for member in members)


def add_facts_to_hparams(content: Any) -> Any:
    """Complete the ``model_hparams`` of a weights file with defaults and with the job's facts.

    Content that is not a run of this package is returned unchanged.
    """
    with contextlib.suppress(Exception):  # unexpected content can raise any type
        algorithm = CLASSES[content["args"]["algorithm"]]
        stored = get_hparams_and_facts(content, content["model_hparams"])
        return {**content, "model_hparams": complete(algorithm, stored)}
    return content


def _are_hparams_valid(parts: Mapping[str, Any]) -> bool:
    """Return True if all hparams are valid, including "preprocessing".

    With "preprocessing" the dataset does not need to load the CLIP checkpoint named in the file.
    """
    hparams = parts["model_hparams"]
    algorithm = CLASSES[parts["args"]["algorithm"]]
    are_valid = all(hparam.valid(hparams[name]) for name, hparam in get_hparams(algorithm).items())
    digests = ("clip_digest", "prompts_digest")
    return (
        are_valid
        and is_preprocessing(hparams["preprocessing"])
        and all(isinstance(hparams[name], str) for name in digests)
    )


def _require_own_method(parts: Mapping[str, Any], name: Any, path: Path) -> None:
    """Raise CarftError if ``parts`` belong to a user's own method that is not registered here."""
    facts = get_hparams_and_facts(parts, parts.get("model_hparams"))
    digest = facts.get("method_digest")
    if type(name) is not str or not name.isidentifier() or name in CLASSES:
        return
    if not re.fullmatch("[0-9a-f]{64}", str(digest)):
        return

    file_name = str(facts.get("method_file"))
    file = f"{file_name}, the file" if _FILE_NAME.fullmatch(file_name) else "the file"
    problem = (
        f"{path} is a run of the method {name}, which is not one of {', '.join(CLASSES)}; set the "
        f"process variable {own_methods.VARIABLE} to the path of {file} that declares {name}, "
        f"whose SHA-256 is {digest}"
    )
    raise CarftError(problem, *OWN_PROBLEMS)


def _require_package_algorithm(content: Mapping[str, Any], algorithm: Any, path: Path) -> None:
    """Raise CarftError if the run is one of a host's algorithm that trained a CLIP model."""
    hparams = content.get("model_hparams")
    is_on_clip = isinstance(hparams, dict) and "clip_head" in hparams
    if is_on_clip and isinstance(algorithm, str) and algorithm not in CLASSES:
        raise CarftError(
            f"{path} is a run of {algorithm[:200]}, an algorithm of DomainBed or a fork "
            "that trained a CLIP model; this command needs a run of an algorithm of this package, "
            "such as CARFT"
        )


def require_run(content: Any, path: Path) -> None:
    """Raise CarftError, naming the first invalid part, unless ``content`` is a run."""
    parts = content if isinstance(content, dict) else {}
    arguments = parts["args"] if isinstance(parts.get("args"), dict) else {}
    _require_own_method(parts, arguments.get("algorithm"), path)
    _require_package_algorithm(parts, arguments.get("algorithm"), path)

    checks = {**_CHECKS, "model_hparams": lambda hparams: _are_hparams_valid(parts)}
    for name, is_valid in checks.items():
        source = arguments if name in _ARGUMENT_CHECKS else parts
        value = source.get(name)
        passes = False
        with contextlib.suppress(Exception):  # such as a comparison with a tensor
            passes = bool(json.dumps(value)) and is_valid(value)
        if not passes:
            raise CarftError(
                f"{path} is not a run of {', '.join(CLASSES)}: its {name} is "
                f"{reprlib.repr(value)[:200]}. Expected a weights file from domainbed.scripts.train"
            )
