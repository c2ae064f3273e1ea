"""Contexts, class names and prompts, the input of CLIP's text encoder. No torch.

A context is a template with one ``{}`` for the class name: "a sketch of a {}.". The lists are text
files in ``assets/contexts`` and ``assets/class_names``; ``assets/README.md`` has their sources.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from domainbed_carft.data import benchmarks
from domainbed_carft.data.comparison import require_same_classes
from domainbed_carft.errors import CarftError
from domainbed_carft.images.dataset_facts import (
    DATASET_PREFIX,
    NO_FACTS,
    DatasetFacts,
    parse_dataset_name,
)
from domainbed_carft.wording import quantity, shorten

# OpenAI's lists for the datasets of CLIP's paper: class names, and templates for them.
CLASS_LISTS = (
    "imagenet",
    "aircraft",
    "caltech101",
    "cars",
    "cifar10",
    "cifar100",
    "dtd",
    "eurosat",
    "flowers",
    "food101",
    "pets",
    "sun397",
)
CONTEXT_LISTS = ("imagenet", "imagenet7", "emoji", *CLASS_LISTS[1:])

# Contexts made from the names of a dataset's domains: all of them, or only the training domains.
# The template follows "a [CONTEXT] of [CLASS]" in CAR-FT's abstract.
WITHOUT_TARGET = "domains-without-target"
DOMAIN_LISTS = ("domains", WITHOUT_TARGET)
DOMAIN_TEMPLATE = "a {domain} of a {}."

# Class names that are known without the data, in label order.
BUILT_IN_CLASSES: dict[str, tuple[str, ...]] = {
    **{name: benchmark.classes for name, benchmark in benchmarks.BENCHMARKS.items()},
    # Random noise with random labels: any two words will do.
    **dict.fromkeys(("Debug28", "Debug224"), ("zero", "one")),
}

DIGEST_LENGTH = 16  # hexadecimal digits


@dataclass(frozen=True)
class Prompts:
    """All texts of a run: the context templates, and the class names in label order."""

    contexts: Sequence[str]
    classes: Sequence[str]

    @property
    def digest(self) -> str:
        """The prompt digest in the records."""
        return digest(self.contexts, self.classes)

    @property
    def by_context(self) -> list[list[str]]:
        """Every context with every class: M lists of K prompts."""
        return fill_templates(self.contexts, self.classes)

    def as_json(self) -> str:
        """Return the JSON text stored in a saved run."""
        return as_json(self.contexts, self.classes)


def parse_contexts(spec: str | Sequence[str], minimum: int = 2) -> list[str]:
    """Return the context templates of ``spec``.

    Args:
        spec: one of CONTEXT_LISTS, the path of a text file with one template per line, or the
            templates themselves.
        minimum: minimum number of templates: two for the KL, one without it; a method can need
            more.

    Returns:
        The templates.

    Raises:
        CarftError: unless each template has exactly one ``{}``, all differ, and there are enough.
    """
    templates = _read_entries("contexts", spec, (*DOMAIN_LISTS, *CONTEXT_LISTS))
    invalid = [
        template
        for template in templates
        if template.count("{}") != 1 or templates.count(template) > 1
    ]

    if invalid or len(templates) < minimum:
        name = f"{spec!r}, " if isinstance(spec, str) else ""
        example = f", such as {invalid[0]!r}" if invalid else ""
        number = {1: "one", 2: "two"}.get(minimum, str(minimum))
        reason = " (over a single context, the KL term is always zero)" if minimum == 2 else ""
        fitting = "'imagenet7' and 'imagenet' fit" if minimum <= 7 else "'imagenet' fits"
        raise CarftError(
            f"contexts is {name}a list of {quantity(len(templates), 'template')}{example}; "
            f"expected at least {number}, all different, each with exactly one {{}}, such as "
            f"'a sketch of a {{}}.'{reason}. {fitting} any classes"
        )
    return templates


def find_contexts(hparams: Mapping[str, Any], facts: DatasetFacts, minimum: int = 2) -> list[str]:
    """Return the templates of a run, at least ``minimum``.

    Args:
        hparams: with ``contexts``.
        facts: facts of the dataset.
        minimum: minimum number of templates.

    Returns:
        The templates.

    Raises:
        CarftError: as `parse_contexts`, and for DOMAIN_LISTS in a host that does not show the
            environments.
    """
    spec = hparams["contexts"]
    if spec not in DOMAIN_LISTS:
        return parse_contexts(spec, minimum)

    targets = facts.test_envs if spec == WITHOUT_TARGET else ()
    if targets is None or not facts.environments:
        missing = "which environments are held out" if facts.environments else "its environments"
        raise CarftError(
            f"contexts is {spec!r}, but this host's dataset does not show {missing}; set contexts "
            f"to a list of templates, such as ['a photo of a {{}}.', 'a sketch of a {{}}.']"
        )
    names = [
        environment.name
        for number, environment in enumerate(facts.environments)
        if number not in targets
    ]
    return make_domain_contexts(spec, names, minimum)


def make_domain_contexts(spec: str, names: Sequence[str], minimum: int = 2) -> list[str]:
    """Return one template per domain: "art_painting" -> "a art painting of a {}."

    Raises CarftError for names that are not words, such as names with digits, and as
    `parse_contexts`.
    """
    invalid_names = [name for name in names if any(map(str.isdigit, name)) or not clean(name)]
    if invalid_names:
        raise CarftError(
            f"contexts is {spec!r}, but the domain names "
            f"{', '.join(map(repr, invalid_names))} are not words; use 'imagenet7', 'imagenet' "
            "or a list of templates"
        )
    templates = [DOMAIN_TEMPLATE.replace("{domain}", clean(name)) for name in names]
    return parse_contexts(templates, minimum)


def clean(name: str) -> str:
    """Return a class name as used in prompts: "Alarm_Clock" -> "alarm clock".

    A word in capitals ("TV") is kept: CLIP's tokenizer lowers every letter anyway.
    """
    words = name.replace("_", " ").replace("-", " ").split()
    return " ".join(w if w.isupper() and len(w) > 1 else w.lower() for w in words)


def fill_templates(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Return every context with every class: M lists of K prompts."""
    return [[template.replace("{}", name) for name in class_names] for template in templates]


def digest(templates: Sequence[str], class_names: Sequence[str]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of `as_json`, which covers all texts of a run."""
    text = as_json(templates, class_names)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def as_json(templates: Sequence[str], class_names: Sequence[str]) -> str:
    """Return the prompts of a run as the JSON text of ``{"classes": [...], "contexts": [...]}``."""
    return json.dumps({"classes": list(class_names), "contexts": list(templates)})


def from_json(text: str) -> tuple[list[str], list[str]]:
    """Return templates and class names of an `as_json` text; any exception for other text."""
    content = json.loads(text)
    templates = [str(template) for template in content["contexts"]]
    class_names = [str(name) for name in content["classes"]]
    return templates, class_names


def find_class_names(
    hparams: Mapping[str, Any], num_classes: int, facts: DatasetFacts = NO_FACTS
) -> list[str]:
    """Return the ``num_classes`` class names in label order.

    If the hparam ``class_names`` is a list, a file or one of CLASS_LISTS, the names are used
    unchanged. If it names a dataset ("dataset:PACS"), they are taken from the dataset's folders or
    from the built-in table, and cleaned.

    Args:
        hparams: with ``class_names``.
        num_classes: number of classes of the dataset.
        facts: facts of the dataset, by default unknown.

    Returns:
        The names.

    Raises:
        CarftError: if there are no names or they do not fit the dataset.
    """
    spec = hparams["class_names"]
    dataset = parse_dataset_name(spec)
    folders = {e.name: list(e.classes) for e in facts.environments if e.classes}
    if dataset is None:
        names = _read_entries("class_names", spec, (f"{DATASET_PREFIX}NAME", *CLASS_LISTS))
        _require_folder_order(names, folders)
    elif folders:
        require_same_classes(folders)
        names = next(iter(folders.values()))
    elif dataset in BUILT_IN_CLASSES:
        names = list(BUILT_IN_CLASSES[dataset])
    else:
        raise CarftError(
            f"no class names are known for the dataset {dataset!r}, but CLIP needs them. Pass "
            '--hparams \'{"class_names": ["dog", ...]}\' or the path of a text file with one name '
            "per line as class_names, or load the data through MultipleEnvironmentImageFolder, "
            "which names classes after their folders"
        )

    if len(names) != num_classes:
        raise CarftError(
            f"class_names {shorten(spec)} gives {len(names):,} class names {shorten(names)}, "
            f"but the dataset has {num_classes} classes; pass one name per class, in label order"
        )
    # Python decodes bytes of a folder's name that are not UTF-8 as surrogates.
    invalid_names = [name for name in names if re.search("[\ud800-\udfff]", name)]
    if invalid_names:
        raise CarftError(
            f"the class name {invalid_names[0]!r} is not UTF-8 and cannot be used in prompts; "
            "rename the class folders, or pass names by the hparam class_names"
        )
    return names if dataset is None else [clean(name) for name in names]


def _require_folder_order(names: Sequence[str], folders: Mapping[str, Sequence[str]]) -> None:
    """Raise CarftError if the names equal the folders' names, but not in label order."""
    cleaned_names = [clean(name).lower() for name in names]
    for environment, classes in folders.items():
        cleaned_classes = [clean(name).lower() for name in classes]
        if cleaned_names == cleaned_classes or sorted(cleaned_names) != sorted(cleaned_classes):
            continue

        pairs = zip(cleaned_names, cleaned_classes)
        label = next(number for number, (name, folder) in enumerate(pairs) if name != folder)
        raise CarftError(
            f"class_names has the names of the class folders in another order: the class with "
            f"label {label} is {classes[label]!r} in {environment!r}, but {names[label]!r} in "
            "class_names; pass one name per class, in the order of the sorted folders"
        )


def _read_entries(hparam: str, spec: str | Sequence[str], shipped: Sequence[str]) -> list[str]:
    """Return the entries of a list, or the lines of a shipped file or of the file at ``spec``."""
    if not isinstance(spec, str):
        return [str(entry) for entry in spec]

    asset = files("domainbed_carft") / "assets" / hparam / f"{spec}.txt"
    path = asset if spec in shipped else Path(spec)
    if not path.is_file():
        raise CarftError(
            f"{hparam} is {spec!r}, which is not a file; expected a list, the path of a text file "
            f"with one per line, or a shipped list ({', '.join(shipped)})"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
