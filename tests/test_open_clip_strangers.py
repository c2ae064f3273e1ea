"""A stranger's open_clip folder: nothing in it is run, and no name in it is looked up."""

import json
import os
from importlib.util import find_spec

import open_clip_folders
import pytest
import torch
import warm

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError

pytestmark = pytest.mark.skipif(
    not (find_spec("open_clip") and find_spec("transformers")),
    reason="needs open_clip and transformers",
)

LOCAL = "open_clip:local-dir:"
EVIL = "import os, pathlib\npathlib.Path(os.environ['RAN']).touch()\nT = object\n"
# Loads each of the names as training does and as --original does, where standard input is a file
# that says yes to everything. Prints, as JSON, what came of each, which addresses were asked for,
# and how much of the file nobody has read.
LOADING = """
import json, os, socket, sys
from types import SimpleNamespace
answers, *names = sys.argv[1:]
os.dup2(os.open(answers, os.O_RDONLY), 0)
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
for name in names:
    for load in (backbone.load, lambda name: saved.original_clip(run, name)):
        try:
            load(name)
            outcomes.append("loaded")
        except Exception as error:
            kind = "" if isinstance(error, CarftError) else f"{type(error).__name__}: "
            outcomes.append(f"{kind}{error}")
print("\\n" + json.dumps([outcomes, asked, len(sys.stdin.read())]))
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
    auto_map = {"AutoTokenizer": ["evil.T"] * 2}
    change_json(folder / "config.json", model_type="rag", question_encoder={"auto_map": auto_map})
    change_json(folder / "tokenizer_config.json", tokenizer_class="RagTokenizer")


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
    answers = place / "answers"
    answers.write_text(ANSWERS)
    environment = {**os.environ, "RAN": str(ran)}
    done = warm.run("-c", LOADING, answers, *names, env=environment, server=warm.OPEN_CLIP)

    assert done.returncode == 0, done.stderr

    found, asked, unread = json.loads(done.stdout.splitlines()[-1])
    pairs = dict(zip((case.__name__ for case in CASES), zip(found[::2], found[1::2])))
    return {"pairs": pairs, "asked": asked, "unread": unread, "ran": ran.exists(), "all": done}


CASES = {
    with_code_for_the_tokenizer: "config.json has 'auto_map'.* Nothing in a folder",
    with_code_for_the_configuration: "config.json has 'auto_map'",
    with_code_of_another_repository: "tokenizer_config.json has 'auto_map'",
    with_code_in_a_nested_key: "config.json has 'auto_map'",
    with_a_tokenizer_that_reads_a_subfolder: "tokenizer_config.json has 'auto_map'",
    with_another_repository_for_the_text: "'evil/model', which is not looked up",
    with_another_repository_for_the_tokenizer: "the tokenizer in .* cannot be used",
    with_a_file_elsewhere_for_the_tokenizer: "has 'tokenizer_file'.* no other file is opened",
    with_another_repository_for_the_pictures: "'resnet18.hf-hub:evil/model', which timm does not",
}


def test_no_code_of_a_model_folder_is_run_even_if_stdin_says_yes(outcomes):
    assert not outcomes["ran"]
    assert outcomes["unread"] == len(ANSWERS)
    assert "[y/N]" not in outcomes["all"].stdout + outcomes["all"].stderr


def test_no_name_in_a_model_folder_is_looked_up(outcomes):
    assert outcomes["asked"] == []


@pytest.mark.parametrize("case", CASES)
def test_a_model_folder_that_needs_code_or_other_files_is_refused(case, outcomes):
    for_training, as_original = outcomes["pairs"][case.__name__]
    with pytest.raises(CarftError, match=CASES[case]):
        raise CarftError(for_training)
    with pytest.raises(CarftError, match=CASES[case]):
        raise CarftError(as_original)


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


# Configurations


VISION = "vision_cfg"
TEXT = "text_cfg"


def write_sizes(folder, part, sizes):
    """The name of a folder with the weights of `gelu` and another configuration."""
    name = open_clip_folders.write(folder, "gelu")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"][part].update(sizes)
    change_json(folder / "open_clip_config.json", **config)
    return name


def test_positions_may_still_be_interpolated(tmp_path):
    """As open_clip does for another resolution or context length."""
    name = write_sizes(tmp_path / "larger", VISION, {"image_size": 96})
    assert backbone.load(name).preprocessing.resolution == 96
    name = write_sizes(tmp_path / "shorter", TEXT, {"context_length": 32})
    assert backbone.load(name).tokenize(["a dog"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({VISION: {"layers": "x"}}, "does not fit its architecture"),
        ({VISION: {"width": None}}, "does not fit its architecture"),
        ({VISION: {"patch_size": 0}}, "does not fit its architecture"),
        ({VISION: {"image_size": {}}}, "the model wants pictures as .*; expected square ones"),
        ({VISION: {"mlp_ratio": float("nan")}}, "does not fit its architecture"),
        ({VISION: {"timm_model_name": 5}}, "does not fit its architecture"),
        ({VISION: {"timm_model_name": ["x"]}}, "image encoder .*, which timm does not know"),
        ({TEXT: {"width": -1}}, "does not fit its architecture"),
        ({TEXT: {"tokenizer_kwargs": 3}}, "tokenizer_kwargs 3, of which"),
        ({TEXT: {"tokenizer_kwargs": {"clean": "evil"}}}, "tokenizer in .* cannot be used"),
        ({TEXT: {"act_kwargs": "x"}}, "does not fit its architecture"),
    ],
)
def test_configuration_values_of_a_wrong_type_are_named(changes, message, tmp_path):
    ((part, values),) = changes.items()
    name = write_sizes(tmp_path / "model", part, values)
    with pytest.raises(CarftError, match=message):
        backbone.load(name)


@pytest.mark.parametrize(
    "wanted",
    [{"mean": 5}, {"std": "abc"}, {"mean": ["x", 1, 2]}, {"interpolation": []}, {"std": [0, 1, 1]}],
)
def test_preprocessing_values_of_a_wrong_type_are_named(wanted, tmp_path):
    name = open_clip_folders.write(tmp_path / "model", "gelu")
    change_json(tmp_path / "model" / "open_clip_config.json", preprocess_cfg=wanted)
    with pytest.raises(CarftError, match="the model wants pictures as .*; expected square ones"):
        backbone.preprocessing(name)
