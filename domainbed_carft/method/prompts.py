"""Every word that CLIP's text encoder reads: contexts, class names, prompts. No torch.

A context is a template with one ``{}`` for the class name: "a sketch of a {}.". The included lists
are text files in ``assets/contexts``, one template per line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.errors import CarftError
from domainbed_carft.files import parsing
from domainbed_carft.method import observed
from domainbed_carft.text import counted

CONTEXT_LISTS = ("imagenet", "emoji")

# What is known without looking at the data, in label order.
BUILT_IN_CLASSES: dict[str, tuple[str, ...]] = {
    **{name: benchmark.classes for name, benchmark in benchmarks.BENCHMARKS.items()},
    # Random noise under random labels: any two words serve.
    "Debug28": ("zero", "one"),
    "Debug224": ("zero", "one"),
}

DATASET_PREFIX = "dataset:"


def contexts(spec: str | Sequence[str]) -> list[str]:
    """The context templates that ``spec`` stands for.

    ``spec``: the name of a shipped list (CONTEXT_LISTS), the path of a text file with a template a
    line, or the templates themselves. Empty lines are skipped.

    Raises CarftError, naming a template, unless each has exactly one ``{}``, all differ, and there
    are at least two.
    """
    if isinstance(spec, str) and spec in CONTEXT_LISTS:
        found = _lines(files("domainbed_carft") / "assets" / "contexts" / f"{spec}.txt")
    else:
        kinds = f"a shipped list ({', '.join(CONTEXT_LISTS)}), or a list like ['a sketch of {{}}']"
        found = _listed("contexts", spec, kinds)
    wrong = [template for template in found if template.count("{}") != 1]
    wrong += [template for template in dict.fromkeys(found) if found.count(template) > 1]
    if wrong or len(found) < 2:  # over a single context the KL term is always zero
        such = f", such as {wrong[0]!r}" if wrong else ""
        raise CarftError(
            f"contexts is a list of {counted(len(found), 'template')}{such}; expected at least "
            "two, all different, each with exactly one {}, as in 'a sketch of a {}.'"
        )
    return found


def clean(name: str) -> str:
    """A class name as a prompt says it: "Alarm_Clock" -> "alarm clock".

    Underscores and hyphens become spaces. A word all in capitals ("TV") keeps them, as CLIP's
    tokenizer lowers every letter anyway and the log should stay readable.
    """
    words = name.replace("_", " ").replace("-", " ").split()
    return " ".join(w if w.isupper() and len(w) > 1 else w.lower() for w in words)


def prompts(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Every context with every class: M lists of K prompts."""
    return [[template.replace("{}", name) for name in class_names] for template in templates]


def digest(templates: Sequence[str], class_names: Sequence[str]) -> str:
    """16 hexadecimal digits of the SHA-256 over ``as_json``, all that CLIP reads in a run."""
    return hashlib.sha256(as_json(templates, class_names).encode()).hexdigest()[:16]


def as_json(templates: Sequence[str], class_names: Sequence[str]) -> str:
    """All words of a run as the JSON text of ``{"classes": [...], "contexts": [...]}``."""
    return json.dumps({"classes": list(class_names), "contexts": list(templates)})


def from_json(text: str) -> tuple[list[str], list[str]]:
    """Templates and class names, in this order, of what ``as_json`` returned.

    Raises ValueError, KeyError or TypeError for any other text.
    """
    words = parsing.parse_json(text)
    templates, names = ([str(word) for word in words[key]] for key in ("contexts", "classes"))
    return templates, names


def class_names(hparams: Mapping[str, Any], num_classes: int) -> list[str]:
    """The ``num_classes`` class names, cleaned, in label order.

    Taken from, in this order: the hparam ``class_names`` where it is a list or a file; the folders
    of the data set that was built with this hparams object; the built-in table of the data set that
    the hparam names ("dataset:PACS").

    Raises CarftError naming the conflict, or if there are no names, the three ways to give them.
    """
    spec = hparams["class_names"]
    dataset = named_dataset(spec)
    environments = observed.recall(hparams, dataset).environments
    seen = {e.name: list(e.classes) for e in environments if e.classes}
    if dataset is None:
        found = _listed("class_names", spec, f"a list of names, or {DATASET_PREFIX}NAME")
        source = "hparam class_names"
    elif seen:
        found, source = next(iter(seen.values())), "the folders of the data set"
        for name, other in seen.items():
            if other != found:
                raise CarftError(
                    f"the environments {next(iter(seen))!r} and {name!r} have different classes: "
                    f"{sorted({*found} ^ {*other})} are not in both. Make the class folders equal, "
                    "so that a label means the same class everywhere"
                )
    elif dataset in BUILT_IN_CLASSES:
        found, source = list(BUILT_IN_CLASSES[dataset]), f"the built-in table of {dataset}"
    else:
        raise CarftError(
            f"no class names are known for the data set {dataset!r}; CLIP needs them. Give "
            '--hparams \'{"class_names": ["dog", ...]}\', or there the path of a text file with '
            "one name per line, or load the data through MultipleEnvironmentImageFolder, which "
            "names classes after their folders"
        )
    if len(found) != num_classes:
        raise CarftError(
            f"{len(found)} class names from {source} ({', '.join(found)}), but the data set has "
            f"{num_classes} classes; give one name per class, in label order"
        )
    return [clean(name) for name in found]


def named_dataset(spec: Any) -> str | None:
    """NAME where the hparam ``class_names`` is "dataset:NAME", else None."""
    if isinstance(spec, str) and spec.startswith(DATASET_PREFIX):
        return spec[len(DATASET_PREFIX) :]
    return None


def _listed(hparam: str, spec: str | Sequence[str], otherwise: str) -> list[str]:
    """The entries of a list, or the lines of the text file that ``spec`` is the path of."""
    if not isinstance(spec, str):
        return [str(entry) for entry in spec]
    if not Path(spec).is_file():
        raise CarftError(
            f"{hparam} is {spec!r}, which is not a file; expected the path of a text file with one "
            f"per line, {otherwise}"
        )
    return _lines(Path(spec))


def _lines(path: Any) -> list[str]:
    text: str = path.read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
