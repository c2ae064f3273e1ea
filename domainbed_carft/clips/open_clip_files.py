"""Where the files of an open_clip model are: a folder, a repository of the hub, open_clip's table.

The hub is asked only for a name that the user gives, never for one in a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from domainbed_carft.clips import open_clip_tokenizers
from domainbed_carft.errors import CarftError, PassingError, brief, imported

PREFIX = "open_clip:"
LOCAL = "local-dir:"
HUB = "hf-hub:"
CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
# The weights of a folder, the first that is there: as open_clip prefers them.
WEIGHT_FILES = (
    WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
)


class TableEntry(NamedTuple):
    """A model in open_clip's own table, and the tag of its weights."""

    model: str
    tag: str


def package() -> Any:
    """open_clip; CarftError, with what to pip install, if it cannot be imported."""
    return imported("open_clip", "'open_clip_torch>=3,<4'")


def has_own_config(name: str) -> bool:
    """Whether the configuration of ``name`` is a file, and not from open_clip's own table."""
    return name.removeprefix(PREFIX).startswith((LOCAL, HUB))


def table_entry(name: str) -> TableEntry:
    """The model and the tag of a ``name`` such as open_clip:ViT-B-32/laion2b_s34b_b79k."""
    model, _, tag = name.removeprefix(PREFIX).partition("/")
    return TableEntry(model, tag)


def local_folder(name: str) -> Path | None:
    """The folder that ``name`` gives; None for a name of the hub or of open_clip's table."""
    location = name.removeprefix(PREFIX)
    return Path(location.removeprefix(LOCAL)) if location.startswith(LOCAL) else None


def config_file(name: str) -> Path:
    """The configuration of a folder or a repository. Raises CarftError if there is none."""
    return _file(name, (CONFIG,))


def weights_file(name: str) -> Path:
    """The weights of ``name``, downloaded if they are of the hub. Raises CarftError without any."""
    if has_own_config(name):
        return _file(name, WEIGHT_FILES)

    open_clip = package()
    entry = table_entry(name)
    pretrained = open_clip.get_pretrained_cfg(entry.model, entry.tag)
    return Path(from_hub(name, "weights", lambda: open_clip.download_pretrained(pretrained)))


def revision_of(path: Path) -> str:
    """The commit of the hub's repository that the cached file ``path`` is from; "" for others."""
    return path.parent.name if path.parent.parent.name == "snapshots" else ""


def tokenizer_folder(name: str) -> Path:
    """The tokenizer's files of the repository that the user named, in the hub's cache."""
    from huggingface_hub import snapshot_download

    repository = name.removeprefix(PREFIX + HUB)
    patterns = [*open_clip_tokenizers.REPOSITORY_FILES]
    folder = from_hub(
        name, "the tokenizer", lambda: snapshot_download(repository, allow_patterns=patterns)
    )
    return Path(folder)


def from_hub(name: str, content: str, load: Callable[[], Any]) -> Any:
    """What ``load()`` returns; PassingError if that fails, which says what to do offline.

    ``content``: what is loaded of ``name``, such as "weights".
    """
    try:
        return load()
    except Exception as error:  # of the hub's client and transformers, a dozen types
        raise PassingError(
            f"{content} of {name!r} could not be loaded ({brief(error)}). On a machine with "
            "internet access load it once and copy the hub's cache (HF_HOME), or save it as a "
            f"folder for {PREFIX}{LOCAL}FOLDER. SigLIP's needs pip install transformers "
            "sentencepiece"
        ) from error


def _file(name: str, file_names: Sequence[str]) -> Path:
    """The first of ``file_names`` that a folder has, or a repository of the hub."""
    folder = local_folder(name)
    if folder is not None:
        present = [folder / file for file in file_names if (folder / file).is_file()]
        if not present:
            raise CarftError(f"{folder} has no {file_names[0]}; expected {CONFIG} and {WEIGHTS}")
        return present[0]

    from open_clip.pretrained import download_pretrained_from_hf as download

    repository = name.removeprefix(PREFIX).removeprefix(HUB)
    file_name = file_names[0] if len(file_names) == 1 else None  # which looks for all of them
    path = from_hub(name, file_names[0], lambda: download(repository, filename=file_name))
    return Path(path)
