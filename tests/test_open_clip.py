"""open_clip's checkpoints: loaded, trained, saved, restored and exported without network access."""

import json
import math
import socket

import numpy as np
import open_clip_folders
import pytest
import runs_jobs
import torch
from domainbed import datasets
from fake_checkout import REPO, run_python
from helpers.algorithms import make, minibatches, reopened, train
from PIL import Image
from torch.nn.functional import normalize

from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.images.preprocessing import Preprocessing
from domainbed_carft.images.protocols import plan_for
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.method import encoders, flyp, penalties
from domainbed_carft.method.optim import EMBEDDINGS
from domainbed_carft.runs import export, saved, soup_members

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("transformers")

PROMPTS = [["a photo of a dog", "a photo of a cat"], ["a sketch of the dog", "the long cat"]]
KINDS = tuple(open_clip_folders.MODELS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return kind of model -> its clip_backbone name."""
    place = tmp_path_factory.mktemp("open_clip")
    return {kind: open_clip_folders.write(place / kind, kind) for kind in KINDS}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("connected to the network")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)


def test_resnet_is_not_exported_for_transformers(folders, tmp_path):
    run = reopened(make(folders["resnet"]), tmp_path)
    options = {"format": "transformers", "original": folders["resnet"]}
    with pytest.raises(CarftError, match="no equal architecture: its image encoder is a ResNet"):
        export.export(run, tmp_path / "folder", **options)
    assert not (tmp_path / "folder").exists()


# Loading


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_model_encodes_like_open_clip(kind, folders):
    loaded = backbone.load(folders[kind])
    location = folders[kind].removeprefix("open_clip:")
    config = open_clip_folders.MODELS[kind]
    size = config["vision_cfg"]["image_size"]
    is_siglip = kind == "siglip"
    options = (size, "bicubic", "squash", (0.5,) * 3, (0.5,) * 3) if is_siglip else (size,)
    assert loaded.preprocessing == Preprocessing(*options)
    assert backbone.find_preprocessing(folders[kind]) == loaded.preprocessing

    reference = open_clip.create_model(location).eval()
    tokens = open_clip.get_tokenizer(location)([prompt for row in PROMPTS for prompt in row])
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
LOAD_FROM_HUB = """
from domainbed_carft.clips import backbone
loaded = backbone.load("open_clip:hf-hub:nobody/siglip")
print(loaded.revision, loaded.digest, *loaded.tokenize(["the dog"])[0].tolist())
backbone.load("open_clip:hf-hub:else/model")
"""


@pytest.mark.slow
def test_hub_repository_is_loaded_from_the_cache_offline(folders, tmp_path):
    repository = tmp_path / "hub" / "models--nobody--siglip"
    open_clip_folders.write(repository / "snapshots" / HUB_REVISION, "siglip")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(HUB_REVISION)
    variables = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = run_python("-c", LOAD_FROM_HUB, cwd=REPO, **variables)

    local = backbone.load(folders["siglip"])
    expected = [HUB_REVISION, local.digest, *map(str, local.tokenize(["the dog"])[0].tolist())]
    assert done.stdout.split() == expected, done.stderr
    assert "of 'open_clip:hf-hub:else/model' could not be loaded" in done.stderr


# Errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-61/openai", "did you mean.*ViT-B-16"),
        ("ViT-B-16/nobody", "no tag of open_clip's ViT-B-16 is called 'nobody'.*laion2b_s34b_b88k"),
        ("local-dir:nowhere", "nowhere has no open_clip_config.json"),
        ("ViT-B-32/openai", "another activation .* use open_clip:ViT-B-32-quickgelu/openai"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", "is a CoCa model"),
    ],
)
def test_invalid_names_are_rejected(name, message, tmp_path, monkeypatch):
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
def test_preprocessing_is_found_by_name_and_tag(name, expected):
    assert backbone.find_preprocessing(f"open_clip:{name}").hparam_value == expected


@pytest.mark.parametrize(("kind", "max_words"), [("siglip", 11), ("gelu", 75)])
def test_prompts_that_would_be_cut_are_rejected(kind, max_words, folders):
    loaded = backbone.load(folders[kind])
    assert loaded.tokenize(["cat " * max_words, "dog"]).shape[0] == 2
    with pytest.raises(CarftError, match="'cat .* is longer than the (12|77) tokens"):
        loaded.tokenize(["dog", "cat " * (max_words + 1)])


def test_state_dict_with_other_attention_heads_is_rejected(tmp_path):
    narrow = open_clip.CLIP(**open_clip_folders.MODELS["gelu"])  # 40 wide heads
    torch.save(narrow.state_dict(), tmp_path / "narrow.pt")
    with pytest.raises(CarftError, match="is 80 wide, which is not a multiple of 64"):
        backbone.load(str(tmp_path / "narrow.pt"))


# Training

# Methods that use the encoders in different ways
METHODS = ("CARFT", "LDIFS", "LipsumFT", "CLIPMIRO", "FLYP", "CaRot", "CLIPLoRA")
QUICK = {
    *(("gelu", name) for name in METHODS),
    ("pe-core", "LDIFS"),
    ("pe-core", "CaRot"),
    ("siglip-2", "LipsumFT"),
    ("siglip-2", "CaRot"),
}
OTHER_VOCABULARY = "CLIP's words, but the text encoder of .* has another vocabulary"
NO_PROJECTION = "ends in a linear projection; .* Set carot_orthogonality to 0"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if (kind, name) in QUICK else pytest.mark.slow)
        for kind in ("gelu", "pe-core", "siglip-2")
        for name in METHODS
    ],
)
def test_method_changes_all_trained_parameters_or_is_rejected(kind, name, folders, tmp_path):
    hparams = {}
    if (kind, name) == ("siglip-2", "LipsumFT"):
        with pytest.raises(CarftError, match=OTHER_VOCABULARY):
            make(folders[kind], name)
        return
    if (kind, name) == ("siglip-2", "CaRot"):
        with pytest.raises(CarftError, match=NO_PROJECTION):
            make(folders[kind], name)
        hparams = {"carot_orthogonality": 0.0}

    algorithm = make(folders[kind], name, **hparams)
    trained = {name: p for name, p in algorithm.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    values = train(algorithm, 2)
    assert all(math.isfinite(value["loss"]) for value in values)
    assert [name for name, p in trained.items() if torch.equal(p, start[name])] == []

    run = reopened(algorithm, tmp_path)
    x = torch.cat([x for x, _ in minibatches(7)])
    with torch.no_grad():
        torch.testing.assert_close(run.algorithm.predict(x), algorithm.eval().predict(x))


def test_projection_of_pe_core_computes_its_features(folders):
    encoder = backbone.load(folders["pe-core"]).model.visual
    inputs = []
    encoder.trunk.head.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with torch.no_grad():
        features = encoder(torch.randn(2, 3, open_clip_folders.PIXELS, open_clip_folders.PIXELS))
    projected = inputs[0] @ flyp.get_visual_projection(encoder) + encoder.trunk.head.bias
    torch.testing.assert_close(projected, features)


def test_timm_embeddings_have_no_weight_decay(folders):
    algorithm = make(folders["siglip"], "CLIPFineTune")
    groups = algorithm.optimizer.param_groups
    no_decay = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    named = {name.split(".")[-1]: p for name, p in algorithm.named_parameters()}
    embeddings = named.keys() & {*EMBEDDINGS}
    assert embeddings == {"pos_embed", "latent", "cls_token"}
    assert all(id(named[name]) in no_decay for name in embeddings)


@pytest.mark.parametrize(("clip", "size"), [("ViT-L/14@336px", 336), ("ViT-B-16-SigLIP-384", 384)])
def test_dataset_images_have_the_size_of_the_clip_model(clip, size, tmp_path):
    folder = runs_jobs.write_images(tmp_path / "my pets", 1)
    pixels = np.random.default_rng(1).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "art" / "cat" / "0.png")
    name = clip if "@" in clip else f"open_clip:{clip}/webli"
    for protocol in ("domainbed", "clip"):
        values = {"preprocessing": "", "protocol": protocol, "clip_backbone": name}
        values |= {"data_augmentation": True, "data_edition": ""}
        preprocessing = backbone.find_preprocessing(name)
        dataset_class = datasets.get_dataset_class(str(folder))
        dataset = dataset_class.for_job(None, [0], values, preprocessing)
        plan = plan_for(protocol, size, False, preprocessing)
        plan = plan.for_model(size, preprocessing.mean, preprocessing.std)
        x = dataset[0][0][0]
        assert x.shape == dataset.input_shape == (3, size, size)
        assert torch.equal(x, PlanTransform(plan)(Image.fromarray(pixels)))


# Saved runs


def changed(vision=(), **model):
    """Return the configuration of `gelu` with other values, as JSON."""
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
def test_run_with_an_invalid_architecture_is_rejected(text, folders, tmp_path):
    algorithm = make(folders["gelu"], "CLIPZeroShot")
    algorithm.register_text("architecture", text)
    with pytest.raises(CarftError, match="does not hold the weights of a CLIPZeroShot"):
        reopened(algorithm, tmp_path)


def test_loading_a_run_never_contacts_the_hub(folders, tmp_path):
    algorithm = make(folders["gelu"], "CLIPZeroShot")
    algorithm.hparams["clip_backbone"] = "open_clip:hf-hub:nobody/asked"
    run = reopened(algorithm, tmp_path)
    with pytest.raises(CarftError, match="nothing is downloaded; pass .* as --original"):
        saved.load_original_clip(run)
    assert saved.load_original_clip(run, folders["gelu"]).digest == run.hparams["clip_digest"]


def test_same_weights_with_another_activation_are_another_clip_model(folders, tmp_path):
    plain_name = open_clip_folders.write(tmp_path / "other", "quickgelu", quick_gelu=False)
    quick, plain = (backbone.load(name) for name in (folders["quickgelu"], plain_name))
    assert quick.digest == plain.digest
    features = [backbone.encode_prompts(loaded, PROMPTS) for loaded in (quick, plain)]
    assert not torch.allclose(*features)

    run = reopened(make(folders["quickgelu"]), tmp_path)
    with pytest.raises(CarftError, match="not the configuration of the CLIP"):
        saved.load_original_clip(run, plain_name)
    with pytest.raises(CarftError, match="differ in the architecture"):
        soup_members.require_compatible([run, reopened(make(plain_name), tmp_path / "other")])


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [("gelu", "FLYP"), pytest.param("siglip", "CARFT", marks=pytest.mark.slow)],
)
def test_commands_accept_a_job_with_an_open_clip_checkpoint(kind, algorithm, folders, tmp_path):
    images = runs_jobs.write_images(tmp_path / "pets", 4)
    contexts = ["a photo of a {}", "a sketch of a {}"]
    hparams = {"clip_backbone": folders[kind], "protocol": "clip", "contexts": contexts}
    folder = runs_jobs.train_job(tmp_path / "job", images, algorithm, **hparams)
    job = folder / "model.pkl"
    record = runs_jobs.records(folder)[-1]
    exported = tmp_path / "export"
    measured = tmp_path / "measured.json"
    exporting = ["export", str(job), "-o", str(exported), "--original", folders[kind]]
    evaluating = ["evaluate", str(job), "--json", "--workers", "0", "-o", str(measured)]
    for command in (evaluating, ["predict", str(job), str(images), "--workers", "0"], exporting):
        assert cli.main(command) == 0
    scores = json.loads(measured.read_text())
    assert runs_jobs.accuracies_by_split(scores) == runs_jobs.accuracies(record)

    # open_clip loads the export: images, head, texts.
    run = saved.load_run(job, device="cpu")
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

    # The exported text encoder, which FLYP has trained, gives the head's weights.
    prompts = [[context.replace("{}", name) for name in run.classes] for context in run.contexts]
    before, exported_features = (
        backbone.encode_prompts(clip, prompts)
        for clip in (original, backbone.load(f"open_clip:local-dir:{exported}"))
    )
    assert torch.allclose(before, exported_features) == (algorithm != "FLYP")
    zero_shot = normalize(normalize(exported_features, dim=-1).mean(dim=0), dim=-1)
    if algorithm == "FLYP":
        torch.testing.assert_close(
            zero_shot, run.algorithm.head.weight.detach(), rtol=1e-4, atol=1e-5
        )
