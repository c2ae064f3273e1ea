"""Tokenizers of open_clip's checkpoints, of which no program is run and no other file is opened.

transformers runs the Python code of a folder whose JSON has an ``auto_map``, asks on standard input
whether it may, and opens files and repositories that such JSON names. So it never sees the folder:
it reads a copy that holds vocabularies and settings from the lists below, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from domainbed_carft.errors import CarftError, brief, imported
from domainbed_carft.files import parsing

SETTINGS = "tokenizer_config.json"
MODEL = "config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
VOCABULARIES = (
    "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model",
    "sentencepiece.bpe.model", "added_tokens.json",
)  # fmt: skip
# What a repository of the hub is asked for.
REPOSITORY_FILES = (SETTINGS, MODEL, SPECIAL_TOKENS, *VOCABULARIES)

_LARGEST_FILE = 1 << 28  # bytes; a tokenizer for a hundred languages has some 2**26

# The classes of open_clip's own models, and what is read without a class of its own.
_GENERAL = "PreTrainedTokenizerFast"
_CLASSES = (
    "BertTokenizer", "CLIPTokenizer", "GemmaTokenizer", "NllbTokenizer", "RobertaTokenizer",
    "T5Tokenizer", "XLMRobertaTokenizer",
)  # fmt: skip
# The class where a repository tells only the kind of the model.
_CLASS_OF_MODEL = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
# What a class is told besides; none of these names a file or a repository.
_ALLOWED_SETTINGS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
    "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "padding_side",
    "truncation_side", "model_max_length", "clean_up_tokenization_spaces", "split_special_tokens",
    "spaces_between_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space",
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "extra_ids", "legacy",
    "legacy_behaviour", "errors", "src_lang", "tgt_lang", "trim_offsets",
)  # fmt: skip


def from_folder(folder: Path, text_config: Mapping[str, Any]) -> Any:
    """The tokenizer in ``folder``, made as open_clip makes it for this ``text_cfg``.

    Without a ``hf_tokenizer_name`` it is CLIP's, which is part of open_clip. Of that name only the
    presence counts: the files are always the folder's own. Raises CarftError for a folder that
    names code, and for files that are no tokenizer.
    """
    refuse_code(folder)
    if not text_config.get("hf_tokenizer_name"):
        return of_openai(text_config)

    tokenizers = _package()
    options = dict(text_config.get("tokenizer_kwargs") or {})
    with tempfile.TemporaryDirectory() as temporary:
        _copy_data(folder, Path(temporary))
        try:
            return tokenizers.HFTokenizer(
                temporary,
                context_length=_context_length(text_config),
                tokenizer_mode=text_config.get("tokenizer_mode"),
                trust_remote_code=False,
                local_files_only=True,
                **options,
            )
        except Exception as error:  # of transformers, tokenizers and sentencepiece, a dozen types
            raise CarftError(
                f"the tokenizer in {folder} cannot be used ({brief(error)}). Save it again with "
                "save_pretrained; SigLIP's needs pip install transformers sentencepiece"
            ) from error


def of_openai(text_config: Mapping[str, Any]) -> Any:
    """CLIP's tokenizer, whose vocabulary is part of open_clip, with the ``text_cfg``'s length."""
    options = dict(text_config.get("tokenizer_kwargs") or {})
    try:
        return _package().SimpleTokenizer(context_length=_context_length(text_config), **options)
    except (AssertionError, TypeError) as error:
        raise CarftError(
            f"CLIP's tokenizer does not take the tokenizer_kwargs {str(options)[:80]} "
            f"({brief(error)}); correct them in open_clip_config.json"
        ) from error


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """The tokens (N, L) of prompts, L what the model reads; CarftError for one that would be cut.

    Full length: SigLIP's text encoder has no causal mask and is read at the last position.
    """
    texts = list(prompts)
    length = tokenizer.context_length
    tokens: Tensor = tokenizer(texts, context_length=length)
    roomier: Tensor = tokenizer(texts, context_length=length + 1)

    # With room for one token more a prompt that fits has one more of padding, wherever that is.
    padding = getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", None) or 0
    is_cut = roomier.sum(dim=1) - tokens.sum(dim=1) != padding
    if is_cut.any():
        longest = texts[int(is_cut.nonzero()[0])]
        raise CarftError(
            f"the prompt {longest!r} is longer than the {length} tokens that this model reads; "
            "shorten the context or the class name"
        )
    return tokens


def refuse_code(folder: Path) -> None:
    """Raise CarftError for a JSON file in ``folder`` that names code for transformers to run."""
    for path in sorted(folder.glob("*.json")):
        if path.name in VOCABULARIES or not path.is_file():
            continue

        _require_small(path)
        content: Any = None
        with contextlib.suppress(OSError, ValueError):  # where it is needed, it is refused
            content = parsing.parse_json(path.read_bytes())
        if _has_auto_map(content):
            raise CarftError(
                f"{path} has an 'auto_map', which names Python code to run. Nothing in a folder is "
                "run: get a tokenizer without code, or remove 'auto_map' if the tokenizer does not "
                "need it"
            )


def _has_auto_map(value: Any) -> bool:
    """Whether a mapping at any depth has the key."""
    if isinstance(value, dict):
        return "auto_map" in value or any(map(_has_auto_map, value.values()))
    return isinstance(value, list) and any(map(_has_auto_map, value))


def _copy_data(folder: Path, target: Path) -> None:
    """Write what makes the tokenizer of ``folder`` into ``target``, and nothing else."""
    copied = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not copied:
        raise CarftError(
            f"{folder} has no tokenizer, but its open_clip_config.json has a hf_tokenizer_name. "
            "That name is not looked up; copy the tokenizer's files into the folder"
        )
    for name in copied:
        _require_small(folder / name)
        shutil.copyfile(folder / name, target / name)

    settings = _json_object(folder / SETTINGS)
    class_name = _tokenizer_class(folder, settings, has_json="tokenizer.json" in copied)
    _write(target / SETTINGS, {**_allowed(settings), "tokenizer_class": class_name})
    special_tokens = _json_object(folder / SPECIAL_TOKENS)
    if special_tokens:
        _write(target / SPECIAL_TOKENS, _allowed(special_tokens))


def _tokenizer_class(folder: Path, settings: Mapping[str, Any], has_json: bool) -> str:
    """The class of transformers that reads the tokenizer; CarftError if none can."""
    model_type = str(_json_object(folder / MODEL).get("model_type"))
    requested = settings.get("tokenizer_class") or _CLASS_OF_MODEL.get(model_type, "")
    name = str(requested).removesuffix("Fast")
    if name in _CLASSES:
        return name

    if not has_json:
        raise CarftError(
            f"{folder} has no tokenizer.json, which a tokenizer of the class "
            f"{str(requested)[:80]!r} needs; save it again with save_pretrained"
        )
    return _GENERAL


def _require_small(path: Path) -> None:
    """Raise CarftError for a file that no tokenizer needs and that would fill memory or disk."""
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise CarftError(
            f"{path} has {size:,} bytes; expected at most {_LARGEST_FILE:,} for a tokenizer's file"
        )


def _allowed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: settings[key] for key in _ALLOWED_SETTINGS if key in settings}


def _json_object(path: Path) -> dict[str, Any]:
    """The content of a JSON file, {} where there is none; CarftError if it is something else."""
    if not path.is_file():
        return {}
    try:
        content = parsing.parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CarftError(f"{path} cannot be read ({error}); expected a JSON object") from error
    if not isinstance(content, dict):
        raise CarftError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), "utf-8")


def _context_length(text_config: Mapping[str, Any]) -> int:
    return int(text_config.get("context_length", _package().DEFAULT_CONTEXT_LENGTH))


def _package() -> Any:
    return imported("open_clip.tokenizer", "'open_clip_torch>=3,<4'")
