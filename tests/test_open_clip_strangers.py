"""A stranger's open_clip folder: nothing in it is run, and no name in it is looked up."""

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
# Case -> changes of the folder's JSON files, files that are missing, what the message names
CASES = {
    "code for the tokenizer": (
        {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["evil.T", None]}}},
        "",
        "tokenizer_config.json has 'auto_map'.* Nothing in a folder",
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
        "has 'tokenizer_file'.* no other file is opened",
    ),
    "another repository for the images": (  # as timm sees it, a tag of resnet18
        {CONFIG: {"model_cfg": {"vision_cfg": {"timm_model_name": "resnet18.hf-hub:evil/model"}}}},
        "",
        "'resnet18.hf-hub:evil/model', which timm does not",
    ),
}


def merged(old, new):
    """A JSON object with the values of another, nested ones too."""
    nested = {key: merged(old[key], new[key]) for key in new if isinstance(old.get(key), dict)}
    return {**old, **new, **nested}


def change_json(path, changes):
    """Give the JSON object in a file other values."""
    path.parent.mkdir(exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(merged(content, changes)))


@pytest.mark.parametrize("case", CASES)
def test_no_code_of_a_model_folder_is_run_and_no_name_is_looked_up(case, tmp_path, monkeypatch):
    """Nor is standard input asked, which fails under pytest."""
    asked = []

    def refuse(*arguments, **options):
        asked.append(arguments)
        raise OSError("there is no network")

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
    assert asked == [] and not (tmp_path / "ran").exists()


def test_a_pipe_in_the_place_of_a_tokenizers_file_is_not_waited_for(tmp_path):
    spelled = open_clip_folders.write(tmp_path / "model", "siglip")
    (tmp_path / "model" / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "model" / "tokenizer.json")
    with pytest.raises(CarftError, match="tokenizer.json is no file of a tokenizer: it is a pipe"):
        backbone.load(spelled)


WORDS = "a photo sketch of the dog cat owl".split()
MARKED = [f"▁{word}" for word in WORDS]  # as T5's begin
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


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_equal_open_clips(name, tmp_path):
    import open_clip
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip("made as since transformers 5.0")

    text_config = open_clip_folders.MODELS["siglip"]["text_cfg"]
    text_config = {**text_config, "vocab_size": 200, "context_length": 24, "tokenizer_kwargs": {}}
    spelled = open_clip_folders.write(tmp_path / "a", "siglip", text_cfg=text_config)
    for path in (tmp_path / "a").glob("token*"):
        path.unlink()
    getattr(transformers, name)(**TOKENIZERS[name]).save_pretrained(tmp_path / "a")
    prompts = ["a photo of the cat", "dog"]
    expected = open_clip.tokenizer.HFTokenizer(str(tmp_path / "a"), context_length=24)(prompts)
    loaded = backbone.load(spelled)

    assert torch.equal(loaded.tokenize(prompts), expected)

    # As an export keeps it.
    spelled = open_clip_folders.write(tmp_path / "b", "siglip", text_cfg=text_config)
    loaded.tokenizer.save_pretrained(tmp_path / "b")

    assert torch.equal(backbone.load(spelled).tokenize(prompts), expected)


def test_positions_may_still_be_interpolated(tmp_path):
    """As open_clip does for another resolution or context length."""
    name = open_clip_folders.write(tmp_path, "gelu")
    sizes = {"vision_cfg": {"image_size": 96}, "text_cfg": {"context_length": 32}}
    change_json(tmp_path / CONFIG, {"model_cfg": sizes})
    loaded = backbone.load(name)
    assert loaded.preprocessing.resolution == 96
    assert loaded.tokenize(["a dog"]).shape == (1, 32)


DOES_NOT_FIT = "does not fit its architecture"
NOT_SQUARE = "the model wants images as .*; expected square ones"


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vision_cfg", {"layers": "x"}, DOES_NOT_FIT),
        ("vision_cfg", {"patch_size": 0}, DOES_NOT_FIT),
        ("vision_cfg", {"image_size": {}}, NOT_SQUARE),
        ("vision_cfg", {"mlp_ratio": float("nan")}, DOES_NOT_FIT),
        ("vision_cfg", {"timm_model_name": 5}, DOES_NOT_FIT),
        ("vision_cfg", {"timm_model_name": ["x"]}, "image encoder .*, which timm does not know"),
        ("text_cfg", {"width": -1}, DOES_NOT_FIT),
        ("text_cfg", {"tokenizer_kwargs": 3}, "tokenizer_kwargs 3, of which"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "evil"}}, "tokenizer in .* cannot be used"),
        ("preprocess_cfg", {"mean": 5}, NOT_SQUARE),
        ("preprocess_cfg", {"mean": ["x", 1, 2]}, NOT_SQUARE),
        ("preprocess_cfg", {"interpolation": []}, NOT_SQUARE),
        ("preprocess_cfg", {"std": [0, 1, 1]}, NOT_SQUARE),
    ],
)
def test_configuration_values_of_a_wrong_type_are_named(part, values, message, tmp_path):
    name = open_clip_folders.write(tmp_path, "gelu")
    changes = {part: values} if part == "preprocess_cfg" else {"model_cfg": {part: values}}
    change_json(tmp_path / CONFIG, changes)
    with pytest.raises(CarftError, match=message):
        backbone.load(name)
