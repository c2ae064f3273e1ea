"""open_clip's checkpoints: loaded, trained, saved, restored and exported without a network."""

import json
import math
import socket
import sys

import numpy as np
import open_clip_folders
import pytest
import runs_jobs
import torch
from fake_checkout import REPO, run_python
from PIL import Image
from test_algorithms import make, minibatches, reopened, train
from torch.nn.functional import normalize

from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.clips import open_clip as our_open_clip
from domainbed_carft.errors import CarftError
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.images.protocols import plan_for
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.method import encoders, flyp, penalties
from domainbed_carft.method.algorithm import EMBEDDINGS
from domainbed_carft.runs import export, saved, soup_members

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("transformers")

PROMPTS = [["a photo of a dog", "a photo of a cat"], ["a sketch of the dog", "the long cat"]]
KINDS = tuple(open_clip_folders.MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind of model -> its name for clip_backbone."""
    place = tmp_path_factory.mktemp("open_clip")
    return {kind: open_clip_folders.write(place / kind, kind) for kind in KINDS}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Everything that connects fails."""

    def refuse(*arguments, **options):
        raise AssertionError("the network was asked")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)


# Loading


def test_tiny_is_the_same_through_both_loaders(tmp_path):
    openai = backbone.load("tiny")
    config = json.dumps({"model_cfg": export.open_clip_config(openai.model), "preprocess_cfg": {}})
    our_open_clip.save(tmp_path, openai.model.state_dict(), config, None)
    converted = backbone.load(f"open_clip:local-dir:{tmp_path}")
    assert converted.preprocessing == openai.preprocessing and converted.dim == openai.dim
    assert converted.logit_scale == openai.logit_scale

    x = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        features = [model.model.visual(x) for model in (openai, converted)]
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)
    texts = [backbone.encode_prompts(model, PROMPTS) for model in (openai, converted)]
    torch.testing.assert_close(*texts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_encodes_as_open_clips(kind, folders):
    loaded = backbone.load(folders[kind])
    place = folders[kind].removeprefix("open_clip:")
    config = open_clip_folders.MODELS[kind]
    size = config["vision_cfg"]["image_size"]
    how = (size, "bicubic", "squash", (0.5,) * 3, (0.5,) * 3) if kind == "siglip" else (size,)
    assert loaded.preprocessing == Preprocessing(*how)
    assert backbone.find_preprocessing(folders[kind]) == loaded.preprocessing

    reference = open_clip.create_model(place).eval()
    tokens = open_clip.get_tokenizer(place)([prompt for row in PROMPTS for prompt in row])
    assert tokens.shape[1] == config["text_cfg"]["context_length"]
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        encoded = loaded.model.visual(images)
        torch.testing.assert_close(encoded, reference.encode_image(images))
        features = backbone.encode_prompts(loaded, PROMPTS).flatten(0, 1)
        torch.testing.assert_close(features, reference.encode_text(tokens), rtol=1e-5, atol=1e-6)

        places = {"ldifs": penalties.LDIFSPenalty.places, "miro": penalties.MIROPenalty.places}
        of_three, of_two = (
            encoders.encode(loaded.model.visual, x, False, places).activations
            for x in (images, images[:2])
        )
    for name in places:
        assert len(of_three[name]) == 5
        for activation, expected in zip(of_three[name], of_two[name], strict=True):
            assert activation.shape[0] == 3, "the batch is first"
            torch.testing.assert_close(activation[:2], expected, rtol=1e-4, atol=1e-4)


HUB_REVISION = "0123456789" * 4
READ_FROM_THE_HUB = """
from domainbed_carft.clips import backbone
loaded = backbone.load("open_clip:hf-hub:nobody/siglip")
print(loaded.revision, loaded.digest, *loaded.tokenize(["the dog"])[0].tolist())
backbone.load("open_clip:hf-hub:else/model")
"""


@pytest.mark.slow
def test_a_repository_of_the_hub_is_read_from_its_cache_with_its_revision_and_tokenizer(
    folders, tmp_path
):
    # As on a node to which the cache was copied.
    repository = tmp_path / "hub" / "models--nobody--siglip"
    open_clip_folders.write(repository / "snapshots" / HUB_REVISION, "siglip")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(HUB_REVISION)
    variables = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = run_python("-c", READ_FROM_THE_HUB, cwd=REPO, **variables)

    local = backbone.load(folders["siglip"])
    expected = [HUB_REVISION, local.digest, *map(str, local.tokenize(["the dog"])[0].tolist())]
    assert done.stdout.split() == expected, done.stderr
    assert "of 'open_clip:hf-hub:else/model' could not be loaded" in done.stderr


# What is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-61/openai", "did you mean.*ViT-B-16"),
        ("ViT-B-16/nobody", "no tag of open_clip's ViT-B-16 is called 'nobody'.*laion2b_s34b_b88k"),
        ("local-dir:nowhere", "nowhere has no open_clip_config.json"),
        ("ViT-B-32/openai", "another activation .* use open_clip:ViT-B-32-quickgelu/openai"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "is a CoCa"),
    ],
)
def test_invalid_names_are_refused(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CarftError, match=message):
        make(f"open_clip:{name}")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-L-14-336-quickgelu/openai", "336 bicubic shortest"),
        ("ViT-B-16-SigLIP-384/webli", "384 bicubic squash"),
        ("ViT-H-14-378-quickgelu/dfn5b", "378 bicubic squash"),
    ],
)
def test_a_name_and_tag_give_the_tags_preprocessing(name, expected):
    assert backbone.find_preprocessing(f"open_clip:{name}").hparam_value == expected


def test_without_open_clip_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(CarftError, match="pip install 'open_clip_torch>=3,<4'"):
        backbone.load("open_clip:ViT-B-16/laion2b_s34b_b88k")


@pytest.mark.parametrize(("kind", "most_words"), [("siglip", 11), ("gelu", 75)])
def test_prompts_that_would_be_cut_are_refused(kind, most_words, folders):
    loaded = backbone.load(folders[kind])
    assert loaded.tokenize(["cat " * most_words, "dog"]).shape[0] == 2
    with pytest.raises(CarftError, match="'cat .* is longer than the (12|77) tokens"):
        loaded.tokenize(["dog", "cat " * (most_words + 1)])


def test_a_state_dict_that_is_not_openais_says_what_is_assumed(tmp_path, random_tiny, capsys):
    backbone.load(str(random_tiny))
    assert "is not an OpenAI checkpoint; assuming QuickGELU and 64-wide" in capsys.readouterr().out

    narrow = open_clip.CLIP(**open_clip_folders.MODELS["gelu"])  # with heads of 40
    torch.save(narrow.state_dict(), tmp_path / "narrow.pt")
    with pytest.raises(CarftError, match="is 80 wide, which is not a multiple of 64"):
        backbone.load(str(tmp_path / "narrow.pt"))


# Training

# What does something of its own with the encoders
METHODS = ("CARFT", "LDIFS", "LipsumFT", "CLIPMIRO", "FLYP", "CaRot", "CLIPLoRA")
WORDS_NOT_READ = "CLIP's words, which the text encoder of .* does not read"
NO_PROJECTION = "needs an image encoder that ends in a linear projection; .* Set it to 0"


@pytest.mark.parametrize("kind", ["gelu", "pe-core", "siglip-2"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_moves_all_that_it_trains_or_is_refused(kind, name, folders, tmp_path):
    remedy = {}
    if (kind, name) == ("siglip-2", "LipsumFT"):
        with pytest.raises(CarftError, match=WORDS_NOT_READ):
            make(folders[kind], name)
        return
    if (kind, name) == ("siglip-2", "CaRot"):
        with pytest.raises(CarftError, match=NO_PROJECTION):
            make(folders[kind], name)
        remedy = {"carot_orthogonality": 0.0}

    algorithm = make(folders[kind], name, **remedy)
    trained = {name: p for name, p in algorithm.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    values = train(algorithm, 2)
    assert all(math.isfinite(value["loss"]) for value in values)
    assert [name for name, p in trained.items() if torch.equal(p, start[name])] == []

    run = reopened(algorithm, tmp_path)
    x = torch.cat([x for x, _ in minibatches(7)])
    with torch.no_grad():
        torch.testing.assert_close(run.algorithm.predict(x), algorithm.eval().predict(x))


def test_pe_cores_projection_is_that_of_its_features(folders):
    encoder = backbone.load(folders["pe-core"]).model.visual
    inputs = []
    encoder.trunk.head.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with torch.no_grad():
        features = encoder(torch.randn(2, 3, open_clip_folders.PIXELS, open_clip_folders.PIXELS))
    by_projection = inputs[0] @ flyp.visual_projection(encoder) + encoder.trunk.head.bias
    torch.testing.assert_close(by_projection, features)


def test_timm_embeddings_get_no_weight_decay(folders):
    algorithm = make(folders["siglip"], "CLIPFineTune")
    groups = algorithm.optimizer.param_groups
    no_decay = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    named = {name.split(".")[-1]: p for name, p in algorithm.named_parameters()}
    embeddings = named.keys() & {*EMBEDDINGS}
    assert embeddings == {"pos_embed", "latent", "cls_token"}
    assert all(id(named[name]) in no_decay for name in embeddings)


@pytest.mark.parametrize(("clip", "size"), [("ViT-L/14@336px", 336), ("ViT-B-16-SigLIP-384", 384)])
def test_datasets_deliver_images_of_the_models_size(clip, size, tmp_path):
    from domainbed import datasets

    place = runs_jobs.write_images(tmp_path / "my pets", 1)
    pixels = np.random.default_rng(1).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "art" / "cat" / "0.png")
    name = clip if "@" in clip else f"open_clip:{clip}/webli"
    for protocol in ("domainbed", "clip"):
        values = {"preprocessing": "", "protocol": protocol, "clip_backbone": name}
        values |= {"data_augmentation": True, "data_edition": ""}
        dataset = datasets.get_dataset_class(str(place))(None, [0], values)
        plan = plan_for(protocol, size, False, backbone.find_preprocessing(name))
        x = dataset[0][0][0]
        assert x.shape == dataset.input_shape == (3, size, size)
        assert torch.equal(x, PlanTransform(plan)(Image.fromarray(pixels)))


# Saved runs


def changed(vision=(), **model):
    """The configuration of `gelu` with other values, as JSON."""
    config = json.loads(json.dumps({"model_cfg": open_clip_folders.MODELS["gelu"]}))
    config["model_cfg"].update(model)
    config["model_cfg"]["vision_cfg"].update(dict(vision))
    return json.dumps(config)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        changed({"timm_model_name": "hf-hub:nobody/asked"}),
        changed({"timm_model_name": "local-dir:/etc"}),
        changed({"layers": 3}),
        changed(embed_dim="x"),
    ],
)
def test_a_run_with_an_invalid_architecture_is_refused(text, folders, tmp_path):
    algorithm = make(folders["gelu"], "CLIPZeroShot")
    algorithm.register_text("architecture", text)
    with pytest.raises(CarftError, match="does not hold the weights of a CLIPZeroShot"):
        reopened(algorithm, tmp_path)


def test_loading_a_run_looks_nothing_up_on_the_hub(folders, tmp_path):
    algorithm = make(folders["gelu"], "CLIPZeroShot")
    algorithm.hparams["clip_backbone"] = "open_clip:hf-hub:nobody/asked"
    run = reopened(algorithm, tmp_path)
    with pytest.raises(CarftError, match="no hub is asked; give that CLIP with --original"):
        saved.original_clip(run)
    assert saved.original_clip(run, folders["gelu"]).digest == run.hparams["clip_digest"]

    del algorithm.facts["preprocessing"]  # the dataset would ask the CLIP
    with pytest.raises(CarftError, match="its model_hparams is"):
        reopened(algorithm, tmp_path)


def test_the_same_weights_with_another_activation_are_another_clip(folders, tmp_path):
    plain_name = open_clip_folders.write(tmp_path / "other", "quickgelu", quick_gelu=False)
    quick, plain = (backbone.load(name) for name in (folders["quickgelu"], plain_name))
    assert quick.digest == plain.digest
    features = [backbone.encode_prompts(loaded, PROMPTS) for loaded in (quick, plain)]
    assert not torch.allclose(*features)

    run = reopened(make(folders["quickgelu"]), tmp_path)
    with pytest.raises(CarftError, match="not the configuration of the CLIP"):
        saved.original_clip(run, plain_name)
    with pytest.raises(CarftError, match="differ in the CLIP's architecture"):
        soup_members.require_alike([run, reopened(make(plain_name), tmp_path / "other")])


def test_a_failed_write_of_weights_is_an_os_error(tmp_path):
    # As on a full disk, for which safetensors has an exception type of its own.
    (tmp_path / our_open_clip.WEIGHTS).mkdir()
    with pytest.raises(OSError):
        our_open_clip.save(tmp_path, {"weight": torch.zeros(1)}, "{}", None)


@pytest.mark.parametrize("kind", ["gelu", pytest.param("siglip", marks=pytest.mark.slow)])
def test_a_job_is_evaluated_predicts_and_is_exported(kind, folders, tmp_path, monkeypatch):
    images = runs_jobs.write_images(tmp_path / "pets", 4)
    contexts = ["a photo of a {}", "a sketch of a {}"]
    hparams = {"clip_backbone": folders[kind], "protocol": "clip", "contexts": contexts}
    folder = runs_jobs.train_job(tmp_path / "job", images, "CARFT", **hparams)
    job = folder / "model.pkl"
    record = runs_jobs.records(folder)[-1]
    exported = tmp_path / "export"
    measured = tmp_path / "measured.json"
    exporting = ["export", str(job), "-o", str(exported), "--original", folders[kind]]
    evaluating = ["evaluate", str(job), "--json", "--workers", "0", "-o", str(measured)]
    for command in (evaluating, ["predict", str(job), str(images), "--workers", "0"], exporting):
        assert cli.main(command) == 0
    splits = json.loads(measured.read_text())["splits"]
    assert {s["name"]: s["accuracy"] for s in splits} == runs_jobs.accuracies(record)
    assert cli.main(exporting) == 1 and cli.main([*exporting, "--force"]) == 0

    # open_clip reads the export: images, head, texts.
    run = saved.open_run(job)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{exported}")
    image = Image.open(images / "art" / "cat" / "0.png").convert("RGB")
    head = torch.load(exported / "head.pt", weights_only=True)
    x = run.transform()(image)[None]
    original = backbone.load(folders[kind])
    tokens = open_clip.get_tokenizer(f"local-dir:{exported}")(["a photo of a cat"])
    assert torch.equal(tokens, original.tokenize(["a photo of a cat"]))
    with torch.no_grad():
        features = model.eval().encode_image(preprocess(image)[None])
        torch.testing.assert_close(features, run.algorithm.features(x), rtol=1e-4, atol=1e-5)
        cosines = normalize(features, dim=-1) @ head["weight"].T
        logits = head["logit_scale"] * cosines + head["bias"]
        torch.testing.assert_close(logits, run.algorithm.predict(x), rtol=1e-4, atol=1e-4)
        expected = original.model.encode_text(tokens)
        torch.testing.assert_close(model.encode_text(tokens), expected, rtol=1e-4, atol=1e-5)
    card = json.loads((exported / "card.json").read_text())
    assert card["format"] == "open_clip folder" and card["quick_gelu"] is False


def test_flyps_text_encoder_is_exported(folders, tmp_path):
    images = runs_jobs.write_images(tmp_path / "pets", 4)
    folder = runs_jobs.train_job(tmp_path / "job", images, "FLYP", clip_backbone=folders["gelu"])
    exporting = ["export", str(folder / "model.pkl"), "-o", str(tmp_path / "export")]
    assert cli.main([*exporting, "--original", folders["gelu"]]) == 0

    run = saved.open_run(folder / "model.pkl")
    words = [[context.replace("{}", name) for name in run.classes] for context in run.contexts]
    before, trained = (
        backbone.encode_prompts(backbone.load(name), words)
        for name in (folders["gelu"], f"open_clip:local-dir:{tmp_path / 'export'}")
    )
    assert not torch.allclose(before, trained)
    zero_shot = normalize(normalize(trained, dim=-1).mean(dim=0), dim=-1)
    torch.testing.assert_close(zero_shot, run.algorithm.head.weight.detach(), rtol=1e-4, atol=1e-5)
