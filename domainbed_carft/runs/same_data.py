"""Whether data is that of a saved run, by all that the run says of it, and where it is now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from domainbed_carft.errors import CarftError
from domainbed_carft.jobs import folder, records
from domainbed_carft.method import observed, pictures, prompts
from domainbed_carft.method.hparams import UNCHECKED
from domainbed_carft.runs.saved import Run


def dataset_class(run: Run, data_dir: str | None) -> Any:
    """The data set's class, of this host.

    For a user's own folder that is not where the run found it, or where another ``data_dir`` than
    the run's is given, that of ``data_dir/NAME`` or of ``data_dir`` itself, if they hold its
    environments. Raises whatever the host raises for a name that it does not know, and CarftError
    for a folder that is in none of these places.
    """
    from domainbed import datasets

    name = run.args["dataset"]
    # The harness's function finds a user's own folders, too; not every fork has one.
    look_up = getattr(datasets, "get_dataset_class", None)
    if look_up is None:
        return vars(datasets)[name]
    if data_dir is None or name in vars(datasets):
        return look_up(name)
    try:
        found = look_up(name)
        why = f"Without --data_dir it is {name}, where the run found it."
    except Exception as error:  # a host may raise anything
        found, why = None, reason(error)
    is_path = getattr(found, "FOLDER", None) == name  # no list says where it is
    if found is not None and (not is_path or _is_recorded(run, data_dir)):
        return found
    return look_up(_moved(name, data_dir, _environments(run), why))


def _is_recorded(run: Run, data_dir: str) -> bool:
    """Whether the run was given this one, which its path did not need."""
    recorded = run.args.get("data_dir")
    return isinstance(recorded, str) and os.path.realpath(recorded) == os.path.realpath(data_dir)


def reason(error: Exception) -> str:
    """What a host says of data, in one line, without the heading that our harness gives it."""
    told = getattr(error, "problems", [str(error)])
    return " ".join(" ".join(told).split()) or type(error).__name__


def _moved(name: str, data_dir: str, environments: Sequence[str], reason: str) -> str:
    """The folder that was ``name``: below ``data_dir`` by its last part, else ``data_dir``."""
    places = [os.path.join(data_dir, os.path.basename(os.path.normpath(name)))]
    if environments or os.sep in name:
        places.append(data_dir)
    for place in map(os.path.abspath, places):
        if os.path.isdir(place):
            with os.scandir(place) as entries:
                inside = {entry.name for entry in entries if entry.is_dir()}
            if inside and inside.issuperset(environments):
                return place
    what = f"A folder with {', '.join(environments)} in it" if environments else "Its folder"
    raise CarftError(f"{reason} {what} was looked for as {' and as '.join(places)}.")


def _environments(run: Run) -> list[str]:
    """The names of the environments, as the run's records tell them of a user's own folder."""
    found, _ = records.whole(run.path.parent / folder.RECORDS)
    for record in reversed(found):
        told = record.get("environments")
        if record["args"].get("dataset") == run.args["dataset"] and isinstance(told, list):
            return [str(name) for name in told]
    return []


def require(run: Run, dataset: Any, seen: observed.Seen) -> None:
    """Raise CarftError, naming the difference, unless ``dataset`` is that of the run.

    Compared is what the run knows: the number of its classes, their names where they are from
    folders, the environments of its records, the edition, and how pictures are normalised.
    """
    name = run.args["dataset"]
    if dataset.num_classes != len(run.classes):
        raise CarftError(
            f"the data set {name} has {dataset.num_classes} classes, but {run.path} was trained "
            f"on {len(run.classes)}: {', '.join(run.classes)}. Is this its data?"
        )
    missing = [index for index in run.args["test_envs"] if index >= len(dataset)]
    if missing:
        raise CarftError(
            f"the data set {name} has {len(dataset)} environments, but {run.path} was tested on "
            f"number {missing[0]}. Is this its data?"
        )
    _require_names("environment", _environments(run), [e.name for e in seen.environments], run)
    for classes in _classes(run.hparams, seen):
        _require_names("class", run.classes, classes, run)
    recorded = run.hparams.get("data_edition", "")
    unknown = recorded in ("", UNCHECKED) or not seen.edition
    if not unknown and not recorded == seen.edition:
        raise CarftError(
            f"{run.path} was trained on data that was {recorded!r}, and the data is now "
            f"{seen.edition!r}: the pictures that it was trained on and those kept from it would "
            f"be mixed. `carft data verify` counts what is there; {_REMEDY}"
        )
    _require_normalisation(run, seen)


_REMEDY = "put the data back as it was, give the --data_dir that has it, or train on this anew"


def _require_names(what: str, before: Sequence[str], now: Sequence[str], run: Run) -> None:
    """The same names in the same order, where both are known."""
    if not before or not now or list(before) == list(now):
        return
    index = next(
        (i for i, (old, new) in enumerate(zip(before, now)) if old != new),
        min(len(before), len(now)),
    )
    old, new = (repr(names[index]) if index < len(names) else "none" for names in (before, now))
    raise CarftError(
        f"{what} {index} of the data set {run.args['dataset']} was {old} when {run.path} was "
        f"trained, and is now {new} (then: {', '.join(before)}; now: {', '.join(now)}): "
        f"its numbers would be of other pictures. {_REMEDY.capitalize()}"
    )


def _classes(hparams: Mapping[str, Any], seen: observed.Seen) -> list[list[str]]:
    """By environment the class names of its folders; none if the run had them from elsewhere."""
    if prompts.named_dataset(hparams["class_names"]) is None:
        return []
    return [[prompts.clean(name) for name in e.classes] for e in seen.environments if e.classes]


def _require_normalisation(run: Run, seen: observed.Seen) -> None:
    shown = observed.agreed_normalisation(seen.environments)
    ours = run.algorithm.input
    if shown is not None and not _undoes(ours, pictures.CLIPInput(ours.resolution, *shown)):
        raise CarftError(
            f"the pictures of {run.args['dataset']} are normalised by mean and deviation {shown}, "
            f"and {run.path} was trained with others; evaluate it with the DomainBed that has "
            "trained it"
        )


def _undoes(one: pictures.CLIPInput, other: pictures.CLIPInput) -> bool:
    pairs = ((one.scale, other.scale), (one.shift, other.shift))
    return all(torch.allclose(ours, theirs) for ours, theirs in pairs)
