"""Untrusted open_clip folders: none of their code is run, and no name in them is looked up."""

import json
import os
import socket

import open_clip_folders
import pytest
import torch

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

EVIL = "import os, pathlib\npathlib.Path(os.environ['RAN']).touch()\nT = object\n"


CONFIG = "open_clip_config.json"
# Case -> changes of the folder's JSON files, missing files, part of the message
CASES = {
    "code for the tokenizer": (
        {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.T", None]}}},
        "",
        "tokenizer_config.json has 'auto_map'.* never run",
    ),
    "code for the configuration": (
        {"config.json": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.T"}}},
        "",
        "config.json has 'auto_map'",
    ),
    "code of another repository": (
        {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil/evil--evil.T", None]}}},
        "",
        "tokenizer_config.json has 'auto_map'",
    ),
    "code in a nested key": (
        {
            "config.json": {
                "model_type": "rag",
                "question_encoder": {"auto_map": {"AutoTokenizer": ["evil.T"] * 2}},
            },
            "tokenizer_config.json": {"tokenizer_class": "RagTokenizer"},
        },
        "",
        "config.json has 'auto_map'",
    ),
    "code in a subfolder": (
        {
            "config.json": {"model_type": "rag"},
            "tokenizer_config.json": {"tokenizer_class": "RagTokenizer"},
            "question_encoder_tokenizer/tokenizer_config.json": {
                "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}
            },
        },
        "tokenizer.json",
        "tokenizer_config.json has 'auto_map'",
    ),
    "another repository for the text": (
        {CONFIG: {"model_cfg": {"text_cfg": {"hf_model_name": "evil/model"}}}},
        "",
        "'evil/model', which is not looked up",
    ),
    "another repository for the tokenizer": (
        {},
        "token*",
        "the tokenizer in .* cannot be used",
    ),
    "a file elsewhere for the tokenizer": (
        {"tokenizer_config.json": {"tokenizer_file": "/dev/zero", "name_or_path": "evil/x"}},
        "",
        "has 'tokenizer_file'.* no other files are opened",
    ),
    "another repository for the images": (  # for timm, a tag of resnet18
        {CONFIG: {"model_cfg": {"vision_cfg": {"timm_model_name": "resnet18.hf-hub:evil/model"}}}},
        "",
        "'resnet18.hf-hub:evil/model', which is not a model name of timm",
    ),
}


def merged(old, new):
    """Return a JSON object updated recursively with the values of another."""
    nested = {key: merged(old[key], new[key]) for key in new if isinstance(old.get(key), dict)}
    return {**old, **new, **nested}


def change_json(path, changes):
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(merged(content, changes)))


@pytest.mark.parametrize("case", CASES)
def test_untrusted_folder_runs_no_code_and_contacts_no_hub(case, tmp_path, monkeypatch):
    connections = []

    def refuse(*arguments, **options):
        connections.append(arguments)
        raise OSError("no network")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    name = open_clip_folders.write(tmp_path / "model", "siglip")
    changes, missing, message = CASES[case]
    for file, values in changes.items():
        change_json(tmp_path / "model" / file, values)
        (tmp_path / "model" / file).with_name("evil.py").write_text(EVIL)
    for path in (tmp_path / "model").glob(missing or "none"):
        path.unlink()

    with pytest.raises(CarftError, match=message):
        backbone.load(name)
    assert connections == [] and not (tmp_path / "ran").exists()


def test_pipe_as_tokenizer_file_is_rejected_without_waiting(tmp_path):
    name = open_clip_folders.write(tmp_path / "model", "siglip")
    (tmp_path / "model" / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "model" / "tokenizer.json")
    with pytest.raises(CarftError, match="tokenizer.json is not a tokenizer file: it is a pipe"):
        backbone.load(name)


WORDS = "a photo sketch of the dog cat owl".split()
MARKED = [f"▁{word}" for word in WORDS]  # T5's form of words
TOKENIZERS = {
    "BertTokenizer": {
        "vocab": {
            word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
        }
    },
    "T5Tokenizer": {
        "vocab": [(word, -float(n)) for n, word in enumerate(["<pad>", "</s>", "<unk>", *MARKED])],
        "extra_ids": 0,
    },
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_tokens_equal_open_clip(tokenizer, tmp_path):
    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("uses constructors of transformers 5.0")

    text_config = open_clip_folders.MODELS["siglip"]["text_cfg"]
    text_config = {**text_config, "vocab_size": 200, "context_length": 24, "tokenizer_kwargs": {}}
    name = open_clip_folders.write(tmp_path / "a", "siglip", text_cfg=text_config)
    for path in (tmp_path / "a").glob("token*"):
        path.unlink()
    getattr(transformers, tokenizer)(**TOKENIZERS[tokenizer]).save_pretrained(tmp_path / "a")
    prompts = ["a photo of the cat", "dog"]
    expected = open_clip.tokenizer.HFTokenizer(str(tmp_path / "a"), context_length=24)(prompts)
    loaded = backbone.load(name)
    assert torch.equal(loaded.tokenize(prompts), expected)

    # An export saves the tokenizer this way.
    exported_name = open_clip_folders.write(tmp_path / "b", "siglip", text_cfg=text_config)
    loaded.tokenizer.save_pretrained(tmp_path / "b")
    assert torch.equal(backbone.load(exported_name).tokenize(prompts), expected)


DOES_NOT_FIT = "does not fit its architecture"
NOT_SQUARE = "the model needs images with .*; expected square images"


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vision_cfg", {"layers": "x"}, DOES_NOT_FIT),
        ("vision_cfg", {"patch_size": 0}, DOES_NOT_FIT),
        ("vision_cfg", {"image_size": {}}, NOT_SQUARE),
        ("vision_cfg", {"mlp_ratio": float("nan")}, DOES_NOT_FIT),
        ("vision_cfg", {"timm_model_name": 5}, DOES_NOT_FIT),
        ("vision_cfg", {"timm_model_name": ["x"]}, "image encoder .*, which is not a model name"),
        ("text_cfg", {"width": -1}, DOES_NOT_FIT),
        ("text_cfg", {"tokenizer_kwargs": 3}, "tokenizer_kwargs 3, which could run code"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "evil"}}, "tokenizer in .* cannot be used"),
        ("preprocess_cfg", {"mean": 5}, NOT_SQUARE),
        ("preprocess_cfg", {"mean": ["x", 1, 2]}, NOT_SQUARE),
        ("preprocess_cfg", {"interpolation": []}, NOT_SQUARE),
        ("preprocess_cfg", {"std": [0, 1, 1]}, NOT_SQUARE),
    ],
)
def test_invalid_configuration_values_are_rejected(part, values, message, tmp_path):
    name = open_clip_folders.write(tmp_path, "gelu")
    changes = {part: values} if part == "preprocess_cfg" else {"model_cfg": {part: values}}
    change_json(tmp_path / CONFIG, changes)
    with pytest.raises(CarftError, match=message):
        backbone.load(name)
