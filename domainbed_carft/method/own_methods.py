"""The classes of a user's own methods: their files are run, checked, and identified by a digest.

Each public class at the top level of such a file that derives from `CLIPAlgorithm` is an algorithm.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from domainbed_carft.errors import CarftError, brief
from domainbed_carft.images.dataset_facts import takes_dataset_facts
from domainbed_carft.jobs.own_methods import MethodFile
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.hparams import Conditions, Hparam
from domainbed_carft.method.resolution import get_hparams
from domainbed_carft.styles import Style

# A dataset for each kind of default.
_EXAMPLE_DATASETS = ("EmojiStyles", "PACS")


class OwnMethods(NamedTuple):
    """The classes of a user's own methods by name, and the problems of their files."""

    classes: dict[str, type[CLIPAlgorithm]]
    problems: list[str]


def load(used_names: Collection[str], files: Iterable[MethodFile]) -> OwnMethods:
    """Run the ``files`` with a user's own methods, whose names must not be in ``used_names``."""
    classes: dict[str, type[CLIPAlgorithm]] = {}
    problems: list[str] = []
    for file in files:
        try:
            loaded = _load_classes(file)
        except CarftError as error:
            problems += error.problems
            continue

        for algorithm in loaded:
            name = algorithm.__name__
            if name in used_names:
                problems.append(format_name_conflict(algorithm, "an algorithm of domainbed-carft"))
            elif name in classes:
                problems.append(
                    format_name_conflict(algorithm, f"one in {_get_source_path(classes[name])}")
                )
            else:
                classes[name] = algorithm
                problems += _hparam_problems(algorithm)
                if not takes_dataset_facts(algorithm):
                    problems.append(
                        f"{_get_source_path(algorithm)}: {name}.__init__ does not take the facts "
                        "of the dataset; add **options to its arguments, and pass them to "
                        "super().__init__"
                    )

    if not problems:  # otherwise no job starts
        for algorithm in classes.values():
            algorithm.method_declarations = get_declarations(algorithm)
    return OwnMethods(classes, problems)


def get_declarations(algorithm: type[CLIPAlgorithm]) -> dict[str, Any]:
    """Return the style of an algorithm, and the hyperparameters that not all algorithms have.

    The values are as in JSON, so that they are equal in records and weights.
    """
    style = vars(algorithm).get("STYLE")  # an inherited style belongs to another algorithm
    hparams = get_hparams(algorithm).keys() - get_hparams(CLIPAlgorithm).keys()
    plain_style = None
    if isinstance(style, Style):
        plain_style = json.loads(json.dumps(dataclasses.asdict(style)))
    return {"style": plain_style, "hparams": sorted(hparams)}


def format_name_conflict(algorithm: type[CLIPAlgorithm], owner: str) -> str:
    """Return the message for a user's algorithm whose name is already used by ``owner``."""
    file = _get_source_path(algorithm)
    return f"{file}: the name {algorithm.__name__} is taken by {owner}; rename the class"


def _get_source_path(algorithm: type[CLIPAlgorithm]) -> str:
    return str(sys.modules[algorithm.__module__].__file__)


def _load_classes(file: MethodFile) -> list[type[CLIPAlgorithm]]:
    """Return the algorithms in a file; CarftError if the file is missing, broken or has none."""
    if file.path is None:
        raise CarftError(
            f"{file.named_by}: the module has no source file; expected the name of an importable "
            "module, such as my_package.my_method"
        )
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise CarftError(
            f"{file.named_by} names {file.path}, which cannot be read: {error.strerror}; correct "
            "or remove the path"
        ) from error

    module = _run(file, file.path, content)
    classes = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, CLIPAlgorithm)
        and (value.__module__, value.__name__) == (module.__name__, name)  # not an import
        and not name.startswith("_")
    ]
    if not classes:
        raise CarftError(
            f"{file.path} has no public class that derives from CLIPAlgorithm; expected one, such "
            "as class MyMethod(CLIPFineTune)"
        )
    for algorithm in classes:
        algorithm.method_digest = hashlib.sha256(content).hexdigest()
        algorithm.method_file = file.path.name
    return classes


def _run(file: MethodFile, path: Path, content: bytes) -> ModuleType:
    """Run a file as a separate module, even if the user also imports it by name.

    The user's import can be incomplete at this moment, and the digest must match the executed code.
    """
    module = ModuleType(f"domainbed_carft_methods.{file.module or path.stem}")
    if module.__name__ in sys.modules:  # a file of the same name in another folder
        module.__name__ += f"_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    module.__file__ = str(path)
    module.__package__ = file.module.rpartition(".")[0]
    sys.modules[module.__name__] = module
    try:
        if module.__package__:
            importlib.import_module(module.__package__)
        exec(compile(content, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        line = _format_error_line(error, str(path))
        raise CarftError(f"{path}{line} cannot be loaded: {brief(error)}") from error
    return module


def _format_error_line(error: BaseException, path: str) -> str:
    """Return ``, line 3,`` for the line of a file that raised an error, "" if there is none."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    return f", line {lines[-1]}," if lines else ""


def _hparam_problems(algorithm: type[CLIPAlgorithm]) -> Iterator[str]:
    """Yield the problems of HPARAMS: wrong types, and hyperparameters without a valid default."""
    place = f"{_get_source_path(algorithm)}: {algorithm.__name__}.HPARAMS"
    declared = vars(algorithm).get("HPARAMS", ())
    if not isinstance(declared, (tuple, list)):
        yield f"{place} is not a tuple; write a comma after its only entry"
        return

    for hparam in declared:
        if not isinstance(hparam, Hparam):
            yield (
                f"{place} has {hparam!r:.80}, expected hyperparameters, such as "
                "nonnegative('my_weight', 1.0)"
            )
        elif not all(_has_default(hparam, dataset) for dataset in _EXAMPLE_DATASETS):
            yield f"{place}: {hparam.name} has no valid default, expected {hparam.expected}"


def _has_default(hparam: Hparam, dataset: str) -> bool:
    try:
        return bool(hparam.valid(hparam.default_for(Conditions(dataset))))
    except Exception:  # the user's functions can raise any type
        return False
