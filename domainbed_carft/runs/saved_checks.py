"""Whether a weights file holds a run: each part has to be as `domainbed.scripts.train` writes it.

The file may be a stranger's, so no value is used before it is checked here.
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
from domainbed_carft.jobs.facts import hparams_and_facts
from domainbed_carft.jobs.folder import WEIGHTS_FORMAT
from domainbed_carft.method.algorithms import CLASSES, OWN_PROBLEMS
from domainbed_carft.method.hparams import is_preprocessing


def _is_step(value: Any) -> bool:
    """Whether it is a number of steps, which random numbers are drawn by, or None."""
    return value is None or (type(value) is int and 0 <= value < 2**63)


def _is_share(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


# Whether an argument in the file, None where it is missing, is as `domainbed.scripts.train` takes
# it; `splits` divides and draws by the last ones.
_ARGUMENT_FITS: dict[str, Callable[[Any], bool]] = {
    "algorithm": lambda name: name in CLASSES,
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
    "model_input_shape": lambda shape: [type(n) for n in shape] == [int] * 3 and min(shape) > 0,
    **dict.fromkeys(("model_num_classes", "model_num_domains"), lambda n: type(n) is int),
    "args": lambda args: True,
    "format": lambda number: number in (None, WEIGHTS_FORMAT),  # None in a foreign host's
    "image_plan": lambda plan: plan is None or bool(ImagePlan.from_json(plan)),
    **dict.fromkeys(("best_step", "wise_ft_step"), _is_step),
    "wise_ft_alpha": lambda alpha: alpha is None or (type(alpha) is float and 0 <= alpha <= 1),
    "soup": lambda soup: soup is None or _is_soup(soup),
}

_NONE = type(None)
_FILE_NAME = re.compile(r"[\w.-]{1,100}")
SOUPS = ("uniform", "greedy")


# The fields of a soup and of its members, and the types that they may have.
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
    if type(members) is not list or soup["kind"] not in SOUPS:
        return False
    fits = _has_types(soup, _SOUP_TYPES)
    return fits and all(_has_types(member, _MEMBER_TYPES) for member in members)


def with_facts_among_hparams(content: Any) -> Any:
    """The ``content`` of a weights file, its ``model_hparams`` complete and with the job's facts.

    Anything that is not a run of ours is returned as it is.
    """
    with contextlib.suppress(Exception):  # of any type, by what the file has instead
        algorithm = CLASSES[content["args"]["algorithm"]]
        stored = hparams_and_facts(content, content["model_hparams"])
        return {**content, "model_hparams": algorithm.complete_hparams(stored)}
    return content


def _hparams_fit(parts: Mapping[str, Any]) -> bool:
    """Whether all hparams are valid, and "preprocessing" tells how the dataset makes images.

    With it the dataset need not look for the CLIP that the file names.
    """
    hparams = parts["model_hparams"]
    algorithm = CLASSES[parts["args"]["algorithm"]]
    are_valid = all(
        hparam.valid(hparams[name]) for name, hparam in algorithm.hparams_by_name().items()
    )
    digests = ("clip_digest", "prompts_digest")
    return (
        are_valid
        and is_preprocessing(hparams["preprocessing"])
        and all(isinstance(hparams[name], str) for name in digests)
    )


def _require_own_method(parts: Mapping[str, Any], name: Any, path: Path) -> None:
    """Raise CarftError if ``parts`` are of a user's own method that this process does not have."""
    facts = hparams_and_facts(parts, parts.get("model_hparams"))
    digest = facts.get("method_digest")
    is_of_own = type(name) is str and name.isidentifier()
    if not is_of_own or name in CLASSES or not re.fullmatch("[0-9a-f]{64}", str(digest)):
        return

    file_name = str(facts.get("method_file"))
    file = f"{file_name}, the file" if _FILE_NAME.fullmatch(file_name) else "the file"
    problem = (
        f"{path} is of the method {name}, which is none of {', '.join(CLASSES)}; set the process "
        f"variable {own_methods.VARIABLE} to the path of {file} that declares {name}, whose "
        f"SHA-256 is {digest}"
    )
    raise CarftError(problem, *OWN_PROBLEMS)


def require_run(content: Any, path: Path) -> None:
    """Raise CarftError, with the first part that does not fit, unless ``content`` is a run's."""
    parts = content if isinstance(content, dict) else {}
    arguments = parts["args"] if isinstance(parts.get("args"), dict) else {}
    _require_own_method(parts, arguments.get("algorithm"), path)

    fits_by_name = {**_FITS, "model_hparams": lambda hparams: _hparams_fit(parts)}
    for name, fits in fits_by_name.items():
        source = arguments if name in _ARGUMENT_FITS else parts
        value = source.get(name)
        is_fitting = False
        with contextlib.suppress(Exception):  # a tensor compares to no truth, say
            is_fitting = bool(json.dumps(value)) and fits(value)
        if not is_fitting:
            raise CarftError(
                f"{path} is not a run of {', '.join(CLASSES)}: its {name} is "
                f"{reprlib.repr(value)[:200]}. Expected a weights file from domainbed.scripts.train"
            )
