"""Every word that CLIP's text encoder reads: contexts, class names, prompts. No torch.

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
from domainbed_carft.errors import CarftError
from domainbed_carft.method import dataset_facts
from domainbed_carft.method.dataset_facts import DATASET_PREFIX, DatasetFacts, parse_dataset_name
from domainbed_carft.text import quantity, shortened

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

# Contexts of the names of a dataset's own domains, all of them or those trained on. The template
# is ours, after the "a [CONTEXT] of [CLASS]" of CAR-FT's abstract.
WITHOUT_TARGET = "domains-without-target"
DOMAIN_LISTS = ("domains", WITHOUT_TARGET)
DOMAIN_TEMPLATE = "a {domain} of a {}."

# What is known without looking at the data, in label order.
BUILT_IN_CLASSES: dict[str, tuple[str, ...]] = {
    **{name: benchmark.classes for name, benchmark in benchmarks.BENCHMARKS.items()},
    # Random noise under random labels: any two words serve.
    **dict.fromkeys(("Debug28", "Debug224"), ("zero", "one")),
}

DIGEST_LENGTH = 16  # hexadecimal digits


@dataclass(frozen=True)
class Prompts:
    """All that CLIP reads in a run: the context templates, and the class names in label order."""

    contexts: Sequence[str]
    classes: Sequence[str]

    @property
    def digest(self) -> str:
        """The prompt digest, as in the records."""
        return digest(self.contexts, self.classes)

    @property
    def rows(self) -> list[list[str]]:
        """Every context with every class: M lists of K prompts."""
        return fill_templates(self.contexts, self.classes)

    def as_json(self) -> str:
        """The JSON text that a saved run holds."""
        return as_json(self.contexts, self.classes)


def build_prompts(
    hparams: Mapping[str, Any], num_classes: int, facts: DatasetFacts, has_kl: bool
) -> Prompts:
    """The prompts of a run on a dataset with these ``facts``.

    ``has_kl``: whether the loss has the KL term, which takes two contexts. Raises CarftError as
    `class_names` and `find_contexts`.
    """
    names = find_class_names(hparams, num_classes, facts)
    return Prompts(find_contexts(hparams, 2 if has_kl else 1, facts), names)


def parse_contexts(spec: str | Sequence[str], least: int = 2) -> list[str]:
    """The context templates that ``spec`` stands for.

    ``spec``: one of CONTEXT_LISTS, the path of a text file with a template a line, or the templates
    themselves. Raises CarftError, naming a template, unless each has exactly one ``{}``, all
    differ, and there are at least ``least``: two for the KL, one where none is computed.
    """
    templates = _entries("contexts", spec, (*DOMAIN_LISTS, *CONTEXT_LISTS))
    invalid = [
        template
        for template in templates
        if template.count("{}") != 1 or templates.count(template) > 1
    ]

    if invalid or len(templates) < least:
        name = f"{spec!r}, " if isinstance(spec, str) else ""
        example = f", such as {invalid[0]!r}" if invalid else ""
        fewest = "two" if least > 1 else "one"
        reason = " (over a single one the KL term is always zero)" if least > 1 else ""
        raise CarftError(
            f"contexts is {name}a list of {quantity(len(templates), 'template')}{example}; "
            f"expected at least {fewest}, all different, each with exactly one {{}}, as in "
            f"'a sketch of a {{}}.'{reason}. 'imagenet7' and 'imagenet' fit any classes"
        )
    return templates


def find_contexts(
    hparams: Mapping[str, Any], least: int = 2, facts: DatasetFacts | None = None
) -> list[str]:
    """The templates of a run, at least ``least``.

    ``facts``: of its dataset; None for those of the one that ``class_names`` names. Raises
    CarftError as `contexts`, and for DOMAIN_LISTS in a host that shows no environments.
    """
    spec = hparams["contexts"]
    if spec not in DOMAIN_LISTS:
        return parse_contexts(spec, least)

    facts = facts or dataset_facts.recall(hparams)
    left_out = facts.test_envs if spec == WITHOUT_TARGET else ()
    if left_out is None or not facts.environments:
        missing = "which environments are left out" if facts.environments else "its environments"
        raise CarftError(
            f"contexts is {spec!r}, but this host's dataset does not show {missing}; give the "
            f"templates as a list, such as ['a photo of a {{}}.', 'a sketch of a {{}}.']"
        )
    names = [
        environment.name
        for number, environment in enumerate(facts.environments)
        if number not in left_out
    ]
    return domain_contexts(spec, names, least)


def domain_contexts(spec: str, names: Sequence[str], least: int = 2) -> list[str]:
    """A template per domain: "art_painting" -> "a art painting of a {}."

    Raises CarftError for names with digits, which are no words, and as `contexts`.
    """
    odd_names = [name for name in names if any(map(str.isdigit, name)) or not clean(name)]
    if odd_names:
        raise CarftError(
            f"contexts is {spec!r}, but domains here are called "
            f"{', '.join(map(repr, odd_names))}, which are no words; use 'imagenet7' or "
            "'imagenet', or a list of templates"
        )
    templates = [DOMAIN_TEMPLATE.replace("{domain}", clean(name)) for name in names]
    return parse_contexts(templates, least)


def clean(name: str) -> str:
    """A class name as a prompt says it: "Alarm_Clock" -> "alarm clock".

    A word all in capitals ("TV") keeps them: CLIP's tokenizer lowers every letter anyway.
    """
    words = name.replace("_", " ").replace("-", " ").split()
    return " ".join(w if w.isupper() and len(w) > 1 else w.lower() for w in words)


def fill_templates(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Every context with every class: M lists of K prompts."""
    return [[template.replace("{}", name) for name in class_names] for template in templates]


def digest(templates: Sequence[str], class_names: Sequence[str]) -> str:
    """16 hexadecimal digits of the SHA-256 over `as_json`, all that CLIP reads in a run."""
    text = as_json(templates, class_names)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def as_json(templates: Sequence[str], class_names: Sequence[str]) -> str:
    """The prompts of a run as the JSON text of ``{"classes": [...], "contexts": [...]}``."""
    return json.dumps({"classes": list(class_names), "contexts": list(templates)})


def from_json(text: str) -> tuple[list[str], list[str]]:
    """Templates and class names of what `as_json` returned; any exception for other text."""
    content = json.loads(text)
    templates = [str(template) for template in content["contexts"]]
    class_names = [str(name) for name in content["classes"]]
    return templates, class_names


def find_class_names(
    hparams: Mapping[str, Any], num_classes: int, facts: DatasetFacts | None = None
) -> list[str]:
    """The ``num_classes`` class names in label order.

    From the hparam ``class_names`` where it is a list, a file or one of CLASS_LISTS, as they are;
    else from the folders of the dataset that the hparam names ("dataset:PACS"), or the built-in
    table of it, cleaned. ``facts``: of the dataset; None for those of the one that it names.

    Raises CarftError naming the conflict, or if there are no names, the three ways to give them.
    """
    spec = hparams["class_names"]
    dataset = parse_dataset_name(spec)
    environments = (facts or dataset_facts.recall(hparams)).environments
    folders = {e.name: list(e.classes) for e in environments if e.classes}
    if dataset is None:
        names = _entries("class_names", spec, (f"{DATASET_PREFIX}NAME", *CLASS_LISTS))
        _require_folder_order(names, folders)
    elif folders:
        names = _shared_classes(folders)
    elif dataset in BUILT_IN_CLASSES:
        names = list(BUILT_IN_CLASSES[dataset])
    else:
        raise CarftError(
            f"no class names are known for the dataset {dataset!r}; CLIP needs them. Give "
            '--hparams \'{"class_names": ["dog", ...]}\', or there the path of a text file with '
            "one name per line, or load the data through MultipleEnvironmentImageFolder, which "
            "names classes after their folders"
        )

    if len(names) != num_classes:
        raise CarftError(
            f"class_names {shortened(spec)} gives {len(names):,} class names {shortened(names)}, "
            f"but the dataset has {num_classes} classes; give one name per class, in label order"
        )
    # Python reads the bytes of a folder's name that are not UTF-8 as halves of characters.
    odd = [name for name in names if re.search("[\ud800-\udfff]", name)]
    if odd:
        raise CarftError(
            f"the class name {odd[0]!r} is not UTF-8, so no prompt can have it; rename the class "
            "folders, or give names by the hparam class_names"
        )
    return names if dataset is None else [clean(name) for name in names]


def _shared_classes(folders: Mapping[str, list[str]]) -> list[str]:
    """The class folders that all environments have; CarftError if they do not have the same."""
    first, names = next(iter(folders.items()))
    for environment, classes in folders.items():
        if classes != names:
            not_shared = sorted({*names} ^ {*classes})
            raise CarftError(
                f"the environments {first!r} and {environment!r} have different classes: "
                f"{shortened(not_shared)} are not in both. Make the class folders equal, so that a "
                "label means the same class everywhere"
            )
    return names


def _require_folder_order(names: Sequence[str], folders: Mapping[str, Sequence[str]]) -> None:
    """Raise CarftError for the very names of the folders in another order than the labels'."""
    cleaned_names = [clean(name).lower() for name in names]
    for environment, classes in folders.items():
        cleaned_classes = [clean(name).lower() for name in classes]
        is_reordered = sorted(cleaned_names) == sorted(cleaned_classes)
        if cleaned_names == cleaned_classes or not is_reordered:
            continue

        pairs = zip(cleaned_names, cleaned_classes)
        label = next(number for number, (name, folder) in enumerate(pairs) if name != folder)
        raise CarftError(
            f"class_names has the names of the class folders in another order: the class with "
            f"label {label} is {classes[label]!r} in {environment!r}, but {names[label]!r} in "
            "class_names; give one name per class, in the order of the sorted folders"
        )


def _entries(hparam: str, spec: str | Sequence[str], shipped: Sequence[str]) -> list[str]:
    """The entries of a list, or the lines of a shipped file or of that at the path ``spec``."""
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
