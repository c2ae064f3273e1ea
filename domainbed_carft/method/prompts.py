"""Every word that CLIP's text encoder reads: contexts, class names, prompts. No torch.

A context is a template with one ``{}`` for the class name: "a sketch of a {}.". The lists are text
files in ``assets/contexts`` and ``assets/class_names``; ``assets/README.md`` has their sources.
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
from domainbed_carft.method import dataset_facts
from domainbed_carft.text import counted, shortened

# OpenAI's lists for the data sets of CLIP's paper: class names, and templates for them.
CLASS_LISTS = (
    "imagenet", "aircraft", "caltech101", "cars", "cifar10", "cifar100", "dtd", "eurosat",
    "flowers", "food101", "pets", "sun397",
)  # fmt: skip
CONTEXT_LISTS = ("imagenet", "imagenet7", "emoji", *CLASS_LISTS[1:])

# Contexts of the names of a data set's own domains, all of them or those trained on. The template
# is ours, after the "a [CONTEXT] of [CLASS]" of CAR-FT's abstract.
DOMAIN_LISTS = ("domains", "domains-without-target")
DOMAIN_TEMPLATE = "a {domain} of a {}."

# What is known without looking at the data, in label order.
BUILT_IN_CLASSES: dict[str, tuple[str, ...]] = {
    **{name: benchmark.classes for name, benchmark in benchmarks.BENCHMARKS.items()},
    # Random noise under random labels: any two words serve.
    **dict.fromkeys(("Debug28", "Debug224"), ("zero", "one")),
}

DATASET_PREFIX = "dataset:"


def contexts(spec: str | Sequence[str], least: int = 2) -> list[str]:
    """The context templates that ``spec`` stands for.

    ``spec``: one of CONTEXT_LISTS, the path of a text file with a template a line, or the templates
    themselves. Raises CarftError, naming a template, unless each has exactly one ``{}``, all
    differ, and there are at least ``least``: two for the KL, one where none is computed.
    """
    found = _listed("contexts", spec, (*DOMAIN_LISTS, *CONTEXT_LISTS))
    wrong = [one for one in found if one.count("{}") != 1 or found.count(one) > 1]
    if wrong or len(found) < least:
        name = f"{spec!r}, " if isinstance(spec, str) else ""
        such = f", such as {wrong[0]!r}" if wrong else ""
        number, reason = "one", ""
        if least > 1:
            number, reason = "two", " (over a single one the KL term is always zero)"
        raise CarftError(
            f"contexts is {name}a list of {counted(len(found), 'template')}{such}; expected at "
            f"least {number}, all different, each with exactly one {{}}, as in "
            f"'a sketch of a {{}}.'{reason}. 'imagenet7' and 'imagenet' fit any classes"
        )
    return found


def contexts_of(hparams: Mapping[str, Any], least: int = 2) -> list[str]:
    """The templates of a run, at least ``least``.

    Raises CarftError as `contexts`, and for DOMAIN_LISTS in a host that shows no environments.
    """
    spec = hparams["contexts"]
    if spec not in DOMAIN_LISTS:
        return contexts(spec, least)
    seen = dataset_facts.recall(hparams, named_dataset(hparams["class_names"]))
    left_out = seen.test_envs if spec == DOMAIN_LISTS[1] else ()
    if left_out is None or not seen.environments:
        shows = "which environments are left out" if seen.environments else "its environments"
        raise CarftError(
            f"contexts is {spec!r}, but this host's data set does not show {shows}; give the "
            f"templates as a list, such as ['a photo of a {{}}.', 'a sketch of a {{}}.']"
        )
    names = [one.name for place, one in enumerate(seen.environments) if place not in left_out]
    return domain_contexts(spec, names, least)


def domain_contexts(spec: str, names: Sequence[str], least: int = 2) -> list[str]:
    """A template per domain: "art_painting" -> "a art painting of a {}."

    Raises CarftError for names with digits, which are no words, and as `contexts`.
    """
    if odd := [name for name in names if any(map(str.isdigit, name)) or not clean(name)]:
        raise CarftError(
            f"contexts is {spec!r}, but domains here are called {', '.join(map(repr, odd))}, which "
            "are no words; use 'imagenet7' or 'imagenet', or a list of templates"
        )
    templates = [DOMAIN_TEMPLATE.replace("{domain}", clean(name)) for name in names]
    return contexts(templates, least)


def clean(name: str) -> str:
    """A class name as a prompt says it: "Alarm_Clock" -> "alarm clock".

    A word all in capitals ("TV") keeps them: CLIP's tokenizer lowers every letter anyway.
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
    """Templates and class names of what `as_json` returned; any exception for other text."""
    words = parsing.parse_json(text)
    return [*map(str, words["contexts"])], [*map(str, words["classes"])]


def class_names(hparams: Mapping[str, Any], num_classes: int) -> list[str]:
    """The ``num_classes`` class names in label order.

    From the hparam ``class_names`` where it is a list, a file or one of CLASS_LISTS, as they are;
    else from the folders of the data set that was built with this hparams object, or the built-in
    table of the data set that the hparam names ("dataset:PACS"), cleaned.

    Raises CarftError naming the conflict, or if there are no names, the three ways to give them.
    """
    spec = hparams["class_names"]
    dataset = named_dataset(spec)
    environments = dataset_facts.recall(hparams, dataset).environments
    seen = {e.name: list(e.classes) for e in environments if e.classes}
    if dataset is None:
        found = _listed("class_names", spec, (f"{DATASET_PREFIX}NAME", *CLASS_LISTS))
        _require_folders_order(found, seen)
    elif seen:
        first, found = next(iter(seen.items()))
        if odd := [name for name, other in seen.items() if other != found]:
            not_shared = sorted({*found} ^ {*seen[odd[0]]})
            raise CarftError(
                f"the environments {first!r} and {odd[0]!r} have different classes: "
                f"{shortened(not_shared)} are not in both. Make the class folders equal, so that a "
                "label means the same class everywhere"
            )
    elif dataset in BUILT_IN_CLASSES:
        found = list(BUILT_IN_CLASSES[dataset])
    else:
        raise CarftError(
            f"no class names are known for the data set {dataset!r}; CLIP needs them. Give "
            '--hparams \'{"class_names": ["dog", ...]}\', or there the path of a text file with '
            "one name per line, or load the data through MultipleEnvironmentImageFolder, which "
            "names classes after their folders"
        )
    if len(found) != num_classes:
        raise CarftError(
            f"class_names {shortened(spec)} gives {len(found):,} class names {shortened(found)}, "
            f"but the data set has {num_classes} classes; give one name per class, in label order"
        )
    return found if dataset is None else [clean(name) for name in found]


def _require_folders_order(names: Sequence[str], seen: Mapping[str, Sequence[str]]) -> None:
    """Raise CarftError for the very names of the folders in another order than the labels'."""
    given = [clean(name).lower() for name in names]
    for environment, folders in seen.items():
        labels = [clean(folder).lower() for folder in folders]
        if given != labels and sorted(given) == sorted(labels):
            label = [one == other for one, other in zip(given, labels)].index(False)
            raise CarftError(
                f"class_names has the names of the class folders in another order: the class with "
                f"label {label} is {folders[label]!r} in {environment!r}, but {names[label]!r} in "
                "class_names; give one name per class, in the order of the sorted folders"
            )


def named_dataset(spec: Any) -> str | None:
    """NAME where the hparam ``class_names`` is "dataset:NAME", else None."""
    is_name = isinstance(spec, str) and spec.startswith(DATASET_PREFIX)
    return spec.removeprefix(DATASET_PREFIX) if is_name else None


def _listed(hparam: str, spec: str | Sequence[str], shipped: Sequence[str]) -> list[str]:
    """The entries of a list, or the lines of a shipped file or of that at the path ``spec``."""
    if not isinstance(spec, str):
        return [str(entry) for entry in spec]
    ours = files("domainbed_carft") / "assets" / hparam / f"{spec}.txt"
    path = ours if spec in shipped else Path(spec)
    if not path.is_file():
        raise CarftError(
            f"{hparam} is {spec!r}, which is not a file; expected a list, the path of a text file "
            f"with one per line, or a shipped list ({', '.join(shipped)})"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]
