"""A stranger's open_clip folder: nothing is run, nobody is asked, no memory is taken in advance."""

import json
import os
import subprocess
import sys

import open_clip_folders
import pytest
import torch

from domainbed_carft.clips import backbone, open_clip_tokenizers
from domainbed_carft.errors import CarftError

open_clip = pytest.importorskip("open_clip")
transformers = pytest.importorskip("transformers")

LOCAL = "open_clip:local-dir:"
EVIL = "import os, pathlib\npathlib.Path(os.environ['RAN']).touch()\nT = object\n"
# Loads each of the names as training does and as --original does, where standard input says yes to
# everything. Prints, as JSON, what came of each and which addresses were asked for.
LOADING = """
import json, socket, sys
from types import SimpleNamespace
asked = []
def refuse(*arguments, **options):
    asked.append(repr(arguments))
    raise OSError("there is no network")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse
from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import saved
run = SimpleNamespace(path="run", hparams={"clip_backbone": "x", "clip_digest": "x"})
outcomes = []
for name in sys.argv[1:]:
    for load in (backbone.load, lambda name: saved.original_clip(run, name)):
        try:
            load(name)
            outcomes.append("loaded")
        except CarftError as error:
            outcomes.append(str(error))
print(json.dumps([outcomes, asked, len(sys.stdin.read())]))
"""
ANSWERS = "y\n" * 200


def change_json(path, **changes):
    """Give the JSON object in a file other values, at the top."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def with_code_for_the_tokenizer(folder):
    change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]})


def with_code_for_the_configuration(folder):
    change_json(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.T"})


def with_code_of_another_repository(folder):
    change_json(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil/evil--evil.T", None]}
    )


def with_code_in_a_nested_key(folder):
    change_json(folder / "config.json", text_config={"auto_map": {"AutoTokenizer": ["evil.T"] * 2}})


def with_a_tokenizer_that_reads_a_subfolder(folder):
    inner = folder / "question_encoder_tokenizer"
    inner.mkdir()
    (inner / "evil.py").write_text(EVIL)
    change_json(inner / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    change_json(folder / "config.json", model_type="rag")
    change_json(folder / "tokenizer_config.json", tokenizer_class="RagTokenizer")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("a\n")


def with_another_repository_for_the_text(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "evil/model"
    change_json(folder / "open_clip_config.json", **config)


def with_another_repository_for_the_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()


def with_a_file_elsewhere_for_the_tokenizer(folder):
    change_json(folder / "tokenizer_config.json", tokenizer_file="/dev/zero", name_or_path="evil/x")


def with_another_repository_for_the_pictures(folder):
    config = json.loads((folder / "open_clip_config.json").read_text())
    # As timm sees it, a tag of resnet18.
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "resnet18.hf-hub:evil/model"
    change_json(folder / "open_clip_config.json", **config)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What came of loading a folder for each case, ``{case: [for training, for --original]}``."""
    place = tmp_path_factory.mktemp("strangers")
    names = []
    for case in CASES:
        folder = place / case.__name__
        names.append(open_clip_folders.write(folder, "siglip"))
        (folder / "evil.py").write_text(EVIL)
        case(folder)
    ran = place / "ran"
    environment = {**os.environ, "RAN": str(ran), "HF_HOME": str(place / "cache")}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", LOADING, *names],
        input=ANSWERS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found, asked, unread = json.loads(done.stdout.splitlines()[-1])
    pairs = dict(zip((case.__name__ for case in CASES), zip(found[::2], found[1::2])))
    return {"pairs": pairs, "asked": asked, "unread": unread, "ran": ran.exists(), "all": done}


CASES = {
    with_code_for_the_tokenizer: "tokenizer_config.json has an 'auto_map'",
    with_code_for_the_configuration: "config.json has an 'auto_map'",
    with_code_of_another_repository: "tokenizer_config.json has an 'auto_map'",
    with_code_in_a_nested_key: "config.json has an 'auto_map'",
    with_a_tokenizer_that_reads_a_subfolder: "has no tokenizer.json, which .*'RagTokenizer' needs",
    with_another_repository_for_the_text: "'evil/model', which is not looked up",
    with_another_repository_for_the_tokenizer: "has no tokenizer.*That name is not looked up",
    with_a_file_elsewhere_for_the_tokenizer: "loaded",
    with_another_repository_for_the_pictures: "'resnet18.hf-hub:evil/model', which timm does not",
}


def test_no_code_of_a_folder_is_run_whatever_standard_input_says(outcomes):
    assert not outcomes["ran"]
    assert outcomes["unread"] == len(ANSWERS)
    assert "[y/N]" not in outcomes["all"].stdout + outcomes["all"].stderr


def test_no_name_in_a_folder_is_looked_up(outcomes):
    assert outcomes["asked"] == []


@pytest.mark.parametrize("case", CASES)
def test_a_folder_that_asks_for_more_is_refused(case, outcomes):
    for_training, as_original = outcomes["pairs"][case.__name__]
    with pytest.raises(CarftError, match=CASES[case]):
        raise CarftError(for_training)
    expected = "is not the CLIP that run started from" if for_training == "loaded" else CASES[case]
    with pytest.raises(CarftError, match=expected):
        raise CarftError(as_original)


WORDS = "a photo sketch of the dog cat owl".split()


def numbered(*special):
    """A vocabulary of words, of letters, and of both as the several kinds of tokenizers mark them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    marked = [f"▁{word}" for word in WORDS] + [f"{part}</w>" for part in (*WORDS, *letters)]
    return {token: number for number, token in enumerate([*special, *WORDS, *letters, *marked])}


def scored(*special):
    return [(token, -float(number)) for token, number in numbered(*special).items()]


TOKENIZERS = {
    "BertTokenizer": {"vocab": numbered("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")},
    "CLIPTokenizer": {"vocab": numbered("<|startoftext|>", "<|endoftext|>"), "merges": []},
    "GemmaTokenizer": {"vocab": numbered("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")},
    "NllbTokenizer": {"vocab": numbered("<s>", "<pad>", "</s>", "<unk>"), "src_lang": "fra_Latn"},
    "RobertaTokenizer": {"vocab": numbered("<s>", "<pad>", "</s>", "<unk>"), "merges": []},
    "T5Tokenizer": {"vocab": scored("<pad>", "</s>", "<unk>"), "extra_ids": 0},
    "XLMRobertaTokenizer": {"vocab": scored("<s>", "<pad>", "</s>", "<unk>")},
}


@pytest.mark.skipif(int(transformers.__version__.split(".")[0]) < 5, reason="made as since 5.0")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_open_clip_itself(name, tmp_path):
    getattr(transformers, name)(**TOKENIZERS[name]).save_pretrained(tmp_path / "a")
    prompts = ["a photo of the cat", "dog"]
    expected = open_clip.tokenizer.HFTokenizer(str(tmp_path / "a"), context_length=9)(prompts)
    text_config = {"context_length": 9, "hf_tokenizer_name": "nobody/asked"}
    tokenizer = open_clip_tokenizers.from_folder(tmp_path / "a", text_config)
    assert torch.equal(tokenizer(prompts), expected)
    # As an export keeps it.
    tokenizer.save_pretrained(tmp_path / "b")
    again = open_clip_tokenizers.from_folder(tmp_path / "b", text_config)
    assert torch.equal(again(prompts), expected)


def test_the_tokenizer_of_a_repository_is_its_own(tmp_path, monkeypatch):
    """Not the one that its open_clip_config.json names; read from the hub's cache."""
    revision, repository = "0123456789" * 4, tmp_path / "hub" / "models--nobody--model"
    place = repository / "snapshots" / revision
    open_clip_folders.write(place, "siglip")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    code = (
        "from domainbed_carft.clips import backbone\n"
        "loaded = backbone.load('open_clip:hf-hub:nobody/model')\n"
        "print(loaded.tokenize(['the dog']).tolist())\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    local = backbone.load(f"{LOCAL}{place}").tokenize(["the dog"]).tolist()
    assert done.stdout.strip() == str(local), done.stderr
