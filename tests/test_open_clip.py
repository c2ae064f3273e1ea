"""open_clip's checkpoints: loaded, trained, saved, restored and exported without a network."""

import contextlib
import json
import os
import resource
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import open_clip_folders
import pytest
import runs_jobs
import torch
import warm
from PIL import Image
from test_algorithms import make, minibatches, reopened, train
from torch.nn.functional import normalize

from domainbed_carft import cli
from domainbed_carft.clips import backbone
from domainbed_carft.clips import open_clip as our_open_clip
from domainbed_carft.errors import CarftError
from domainbed_carft.files import weights
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import encoders, penalties
from domainbed_carft.method.algorithm import EMBEDDINGS
from domainbed_carft.pictures.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from domainbed_carft.pictures.protocols import plan_for
from domainbed_carft.pictures.transforms import PlanTransform
from domainbed_carft.runs import saved, soup_members, wise_ft

pytestmark = pytest.mark.skipif(
    not (find_spec("open_clip") and find_spec("transformers")),
    reason="needs open_clip and transformers",
)

PROMPTS = [["a photo of a dog", "a photo of a cat"], ["a sketch of the dog", "the long cat"]]
KINDS = tuple(open_clip_folders.MODELS)
# In a child: several commands of carft, as JSON; whoever asks the hub, or any network, fails.
UNREACHABLE = (
    "import json, socket, sys\n"
    "def refuse(*args, **kwargs): raise AssertionError('the network was asked')\n"
    "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
    "from domainbed_carft import cli\n"
    "sys.exit(sum(cli.main(command) for command in json.loads(sys.argv[1])))\n"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """kind -> its name for clip_backbone."""
    place = tmp_path_factory.mktemp("open_clip")
    return {kind: open_clip_folders.write(place / kind, kind) for kind in KINDS}


@pytest.fixture
def no_network(monkeypatch):
    """Everything that connects fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)


def test_tiny_is_the_same_through_both_loaders(tmp_path, no_network):
    openai = backbone.load("tiny")
    converted = backbone.load(open_clip_folders.write_tiny(tmp_path / "tiny"))
    assert converted.preprocessing == openai.preprocessing and converted.dim == openai.dim
    assert converted.logit_scale == openai.logit_scale

    x = torch.randn(3, 3, 48, 48)
    with torch.no_grad():
        features = [model.model.visual(x) for model in (openai, converted)]

    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-5)

    texts = [backbone.text_features(model, PROMPTS) for model in (openai, converted)]
    torch.testing.assert_close(*texts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_reports_resolution_width_and_tokens(kind, folders, no_network):
    import open_clip

    loaded = backbone.load(folders[kind])
    folder = folders[kind].removeprefix("open_clip:local-dir:")
    assert loaded.digest == weights.sha256(f"{folder}/open_clip_model.safetensors")

    size = open_clip_folders.MODELS[kind]["vision_cfg"]["image_size"]
    assert backbone.preprocessing(folders[kind]) == loaded.preprocessing

    expected = (size, "bicubic", "squash", (0.5,) * 3, (0.5,) * 3) if kind == "siglip" else (size,)
    assert loaded.preprocessing == Preprocessing(*expected)

    # As open_clip itself loads, tokenises and encodes.
    reference = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([p for row in PROMPTS for p in row])
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model.visual(x), reference.encode_image(x))
        features = backbone.text_features(loaded, PROMPTS).flatten(0, 1)
        torch.testing.assert_close(features, reference.encode_text(tokens), rtol=1e-5, atol=1e-6)

    assert tokens.shape[1] == (open_clip_folders.SIGLIP_LENGTH if kind == "siglip" else 77)


def test_a_name_and_tag_give_the_tags_preprocessing(folders, monkeypatch, no_network):
    """The weights come from where open_clip finds them; here they are narrow ones."""
    import open_clip

    place = folders["quickgelu"].removeprefix("open_clip:local-dir:")
    downloads = []
    monkeypatch.setattr(
        open_clip, "get_model_config", lambda name: {**open_clip_folders.MODELS["quickgelu"]}
    )
    monkeypatch.setattr(
        open_clip,
        "download_pretrained",
        lambda pretrained: (
            downloads.append(pretrained["hf_hub"]) or f"{place}/open_clip_model.safetensors"
        ),
    )
    loaded = backbone.load("open_clip:ViT-H-14-378-quickgelu/dfn5b")

    assert downloads == ["apple/DFN5B-CLIP-ViT-H-14-378/"] and loaded.revision == ""
    assert loaded.preprocessing == Preprocessing(64, "bicubic", "squash")


REVISION = "0123456789" * 4
READ_FROM_THE_HUB = """
from domainbed_carft.clips import backbone
loaded = backbone.load("open_clip:hf-hub:nobody/gelu")
print(loaded.revision, loaded.digest, *loaded.tokenize(["a dog"]).shape)
print(backbone.load("open_clip:hf-hub:nobody/siglip").tokenize(["the dog"]).tolist())
backbone.load("open_clip:hf-hub:else/model")
"""


@pytest.fixture(scope="module")
def hub(folders, tmp_path_factory):
    """What READ_FROM_THE_HUB prints without a network, as on a node whose cache was copied."""
    home = tmp_path_factory.mktemp("hub's cache")
    for kind in ("gelu", "siglip"):
        repository = home / "hub" / f"models--nobody--{kind}"
        open_clip_folders.write(repository / "snapshots" / REVISION, kind)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(REVISION)

    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return warm.run("-c", READ_FROM_THE_HUB, env=environment)


def test_a_repository_of_the_hub_is_read_from_its_cache_with_its_revision(hub, folders):
    folder = Path(folders["gelu"].removeprefix("open_clip:local-dir:"))
    digest = weights.sha256(folder / "open_clip_model.safetensors")
    assert hub.stdout.splitlines()[0].split() == [REVISION, digest, "1", "77"], hub.stderr
    assert "of 'open_clip:hf-hub:else/model' could not be loaded" in hub.stderr


def test_a_hub_repository_uses_its_own_tokenizer(hub, folders):
    """Not the one that its open_clip_config.json names."""
    local = backbone.load(folders["siglip"]).tokenize(["the dog"]).tolist()
    assert hub.stdout.splitlines()[1] == str(local), hub.stderr


OTHERS = ("CARFT", "LDIFS", "LipsumFT", "CLIPMIRO", "FLYP")  # what differs by the encoder


@pytest.mark.parametrize(
    ("kind", "name"),
    [*(("gelu", name) for name in ALGORITHMS), *(("siglip", name) for name in OTHERS)],
)
def test_each_algorithm_trains_and_is_restored(kind, name, folders, tmp_path, no_network):
    if (kind, name) == ("siglip", "LipsumFT"):
        with pytest.raises(CarftError, match="CLIP's words, which the text encoder of .* not read"):
            make(folders[kind], name)
        return
    algorithm = make(folders[kind], name)

    assert all(np.isfinite(one["loss"]) for one in train(algorithm, 2))

    run = reopened(algorithm, tmp_path)
    x = torch.cat([x for x, _ in minibatches(7)])
    with torch.no_grad():
        torch.testing.assert_close(run.algorithm.predict(x), algorithm.eval().predict(x))


@pytest.mark.parametrize("kind", KINDS)
def test_hooked_activations_have_the_batch_first(kind, folders):
    encoder = backbone.load(folders[kind]).model.visual
    size = open_clip_folders.MODELS[kind]["vision_cfg"]["image_size"]
    x = torch.randn(3, 3, size, size)
    for penalty in (penalties.LDIFSPenalty, penalties.MIROPenalty):
        modules = penalty.places(encoder)
        with torch.no_grad(), encoders.record_activations(encoder, modules) as outputs:
            features = encoder(x), encoder(x[:2])

        assert len(outputs) == 2 * 5
        for of_three, of_two in zip(outputs[:5], outputs[5:]):
            assert of_three.shape[0] == 3 and of_two.shape[0] == 2
            torch.testing.assert_close(of_three[:2], of_two, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(features[0][:2], features[1], rtol=1e-4, atol=1e-4)


def test_towers_without_blocks_are_refused():
    vision = {"timm_model_name": "test_convnext", "image_size": 160}
    encoder = our_open_clip.image_encoder({"model_cfg": {"embed_dim": 8, "vision_cfg": vision}})
    with pytest.raises(CarftError, match="ConvNeXt of timm has none"):
        penalties.LDIFSPenalty.places(encoder)


def test_timm_embeddings_get_no_weight_decay(folders):
    algorithm = make(folders["siglip"], "CLIPFineTune")
    groups = algorithm.optimizer.param_groups
    no_decay = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    named = dict(algorithm.named_parameters())
    embeddings = [n for n in named if n.split(".")[-1] in EMBEDDINGS]

    assert {n.split(".")[-1] for n in embeddings} == {"pos_embed", "latent", "cls_token"}
    assert all(id(named[name]) in no_decay for name in embeddings)


# What is refused


def test_weights_under_another_activation_are_refused_with_the_right_spelling(no_network):
    import open_clip

    refused = 0
    for name, tag in open_clip.list_pretrained():
        pretrained = open_clip.get_pretrained_cfg(name, tag)
        model = open_clip.get_model_config(name)
        spelled = f"open_clip:{name}/{tag}"
        if bool(pretrained.get("quick_gelu")) and not model.get("quick_gelu"):
            refused += 1
            with pytest.raises(CarftError, match=f"use open_clip:{name}-quickgelu/{tag}"):
                our_open_clip.check(spelled)
            spelled = f"open_clip:{name}-quickgelu/{tag}"
        if "multimodal_cfg" in model:
            with pytest.raises(CarftError, match="is a CoCa"):
                our_open_clip.check(spelled)
        elif "vision_cfg" in model:
            our_open_clip.check(spelled)
            backbone.preprocessing(spelled)

    assert refused > 20

    sizes = [
        backbone.preprocessing(f"open_clip:{name}")
        for name in (
            "ViT-L-14-336-quickgelu/openai",
            "ViT-B-16-SigLIP-384/webli",
            "ViT-H-14-378-quickgelu/dfn5b",
        )
    ]
    expected = ["336 bicubic shortest", "384 bicubic squash", "378 bicubic squash"]

    assert [one.hparam_value for one in sizes] == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-61/openai", "did you mean.*ViT-B-16"),
        ("ViT-B-16/nobody", "no tag of open_clip's ViT-B-16 is called 'nobody'.*laion2b_s34b_b88k"),
        ("local-dir:nowhere", "nowhere has no open_clip_config.json"),
    ],
)
def test_invalid_open_clip_names_are_refused(name, message, tmp_path, monkeypatch, no_network):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CarftError, match=message):
        make(f"open_clip:{name}")


def test_without_open_clip_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(CarftError, match="pip install 'open_clip_torch>=3,<4'"):
        backbone.load("open_clip:ViT-B-16/laion2b_s34b_b88k")


def test_prompts_that_would_be_cut_are_refused(folders):
    loaded = backbone.load(folders["siglip"])
    room = open_clip_folders.SIGLIP_LENGTH - 1  # one is the end's
    assert loaded.tokenize(["cat " * room, "dog"]).shape == (2, room + 1)
    with pytest.raises(CarftError, match="'cat .* is longer than the 12 tokens"):
        loaded.tokenize(["dog", "cat " * (room + 1)])

    loaded = backbone.load(folders["gelu"])
    loaded.tokenize(["cat " * 75])
    with pytest.raises(CarftError, match="is longer than the 77 tokens"):
        loaded.tokenize(["cat " * 76])


def test_text_features_are_cached_per_activation(folders, tmp_path):
    plain_name = open_clip_folders.write(tmp_path / "other", "quickgelu", quick_gelu=False)
    quick, plain = (backbone.load(name) for name in (folders["quickgelu"], plain_name))
    assert quick.digest == plain.digest

    features = [backbone.text_features(loaded, PROMPTS) for loaded in (quick, plain)]
    assert not torch.allclose(*features)

    run = make(folders["quickgelu"])
    opened = reopened(run, tmp_path)
    with pytest.raises(CarftError, match="not the configuration of the CLIP"):
        saved.original_clip(opened, plain_name)
    with pytest.raises(CarftError, match="differ in the CLIP's architecture"):
        soup_members.require_alike([opened, reopened(make(plain_name), tmp_path / "other")])

    train(run, 1)
    opened = reopened(run, tmp_path)
    wise_ft.alpha_setter(opened, folders["quickgelu"])(0.0)
    zero_shot = make(folders["quickgelu"], "CLIPZeroShot").eval()
    x = torch.randn(4, 3, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(opened.algorithm.predict(x), zero_shot.predict(x))


def test_a_state_dict_that_is_not_openais_says_what_is_assumed(tmp_path, random_tiny, capsys):
    import open_clip

    make(random_tiny)
    stdout = capsys.readouterr().out
    assert "is not an OpenAI checkpoint; assuming QuickGELU and 64-wide" in stdout
    assert "pictures are resized from 28 to 48 pixels" in stdout

    backbone.load("tiny")
    assert not capsys.readouterr().out

    folder = tmp_path / "narrow"
    open_clip_folders.write(folder, "gelu")
    state = open_clip.load_checkpoint.__globals__["load_state_dict"](
        str(folder / "open_clip_model.safetensors")
    )
    torch.save(state, tmp_path / "narrow.pt")

    with pytest.raises(CarftError, match="is 80 wide, which is not a multiple of 64"):
        backbone.load(str(tmp_path / "narrow.pt"))


# A stranger's file


def changed(vision=(), **model):
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
        changed({"output_tokens": True}),
        changed(embed_dim="x"),
    ],
)
def test_a_run_with_an_invalid_architecture_is_refused(text, folders, tmp_path, no_network):
    algorithm = make(folders["gelu"], "CLIPZeroShot")
    algorithm.register_text("architecture", text)
    with pytest.raises(CarftError, match="does not hold the weights of a CLIPZeroShot"):
        reopened(algorithm, tmp_path)


def test_loading_a_run_looks_nothing_up_on_the_hub(folders, tmp_path, no_network):
    algorithm = make(folders["gelu"], "CLIPZeroShot")
    algorithm.hparams["clip_backbone"] = "open_clip:hf-hub:nobody/asked"
    run = reopened(algorithm, tmp_path)

    with pytest.raises(CarftError, match="no hub is asked; give that CLIP with --original"):
        saved.original_clip(run)
    assert saved.original_clip(run, folders["gelu"]).digest == run.hparams["clip_digest"]

    del algorithm.facts["preprocessing"]  # the data set would ask the CLIP
    with pytest.raises(CarftError, match="its model_hparams is"):
        reopened(algorithm, tmp_path)


# Data, jobs, exports


SIGLIP_384 = "open_clip:ViT-B-16-SigLIP-384/webli"


@pytest.fixture
def noise():
    """A picture of 500 by 400 pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def first(tmp_path, noise):
    """Makes a data set by hparams, returns it and its first picture, which is the noise."""
    from domainbed import datasets

    place = tmp_path / "my pets"
    runs_jobs.write_pictures(place, 1)
    noise.save(place / "art" / "cat" / "0.png")

    def first(**values):
        values = {"data_augmentation": True, "data_edition": "", **values}
        dataset = datasets.get_dataset_class(str(place))(None, [0], values)
        assert dataset[0][0][0].shape == dataset.input_shape
        return dataset, dataset[0][0][0]

    return first


def test_data_sets_deliver_pictures_of_the_models_size(first, noise):
    hparams = {"preprocessing": "", "protocol": "domainbed"}
    squeezed = PlanTransform(plan_for("domainbed", 336, False))(noise)
    dataset, x = first(**hparams, clip_backbone="ViT-L/14@336px")

    assert dataset.protocol == "domainbed" and torch.equal(x, squeezed)

    for name, size in (("tiny", 48), ("ViT-B/16", 224), ("RN50x4", 288), (SIGLIP_384, 384)):
        assert first(**hparams, clip_backbone=name)[0].input_shape == (3, size, size)

    host, as_ever = first()  # not ours
    assert torch.equal(first(**hparams, clip_backbone="ViT-B/16")[1], as_ever)
    assert host.input_shape == (3, 224, 224)


def test_clips_preprocessing_crops_and_siglips_squashes(first, noise):
    hparams = {"preprocessing": "", "protocol": "clip"}
    cropped, squashed = (
        first(**hparams, clip_backbone=name)[1] for name in ("ViT-L/14@336px", SIGLIP_384)
    )
    for x, expected in (
        (cropped, noise.resize((420, 336), Image.Resampling.BICUBIC)),
        (squashed, noise.resize((384, 384), Image.Resampling.BICUBIC)),
    ):
        pixels = torch.from_numpy(np.array(expected)).permute(2, 0, 1) / 255
        margin = (pixels.shape[2] - x.shape[2]) // 2
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
        torch.testing.assert_close(
            x * std + mean, pixels[:, :, margin : margin + x.shape[2]], rtol=0, atol=0.02
        )


@pytest.mark.parametrize("kind", ["gelu", "siglip"])
def test_a_job_is_saved_restored_and_exported_without_the_hub(kind, folders, tmp_path):
    place = runs_jobs.write_pictures(tmp_path / "pets", 5)
    hparams = {
        "clip_backbone": folders[kind],
        "protocol": "clip",
        "contexts": [
            "a photo of a {}",
            "a sketch of a {}",
        ],
    }
    folder = runs_jobs.train_job(tmp_path / "job", place, "CARFT", **hparams)
    job = folder / "model.pkl"
    record = runs_jobs.records(folder)[-1]
    size = open_clip_folders.MODELS[kind]["vision_cfg"]["image_size"]
    resize = "squash" if kind == "siglip" else "shortest"

    assert record["preprocessing"] == f"{size} bicubic {resize}"

    export = tmp_path / "export"
    measured = tmp_path / "measured.json"
    exporting = ["export", str(job), "-o", str(export), "--original", folders[kind]]
    commands = [
        ["evaluate", str(job), "--json", "--workers", "0", "-o", str(measured)],
        ["predict", str(job), str(place / "art"), "--workers", "0"],
        exporting,
    ]
    done = warm.run("-c", UNREACHABLE, json.dumps(commands), server=warm.OPEN_CLIP)

    assert done.returncode == 0, done.stderr

    splits = json.loads(measured.read_text())["splits"]
    accuracies = {split["name"]: split["accuracy"] for split in splits}
    assert accuracies == runs_jobs.accuracies(record)
    assert cli.main(exporting) == 1 and cli.main([*exporting, "--force"]) == 0

    check_exported_pictures(job, export, place / "art" / "cat" / "0.png")
    check_exported_texts(export, folders[kind])
    card = json.loads((export / "card.json").read_text())
    assert card["format"] == "open_clip folder" and card["quick_gelu"] is False
    assert 'create_model("local-dir:.")' in (export / "README.md").read_text()


def check_exported_pictures(job, export, picture_path):
    """The exported image encoder and head give what the run gives."""
    import open_clip

    run = saved.open_run(job)
    exported, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{export}")
    reloaded = backbone.load(f"open_clip:local-dir:{export}")
    picture = Image.open(picture_path).convert("RGB")
    head = torch.load(export / "head.pt", weights_only=True)
    with torch.no_grad():
        x = run.transform()(picture)[None]
        features = exported.eval().encode_image(preprocess(picture)[None])
        run_features = run.algorithm.features(x)
        torch.testing.assert_close(features, run_features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(reloaded.model.visual(run.algorithm.input(x)), run_features)
        logits = (
            head["logit_scale"] * normalize(run_features, dim=-1) @ head["weight"].T + head["bias"]
        )
        torch.testing.assert_close(logits, run.algorithm.predict(x), rtol=1e-4, atol=1e-4)


def check_exported_texts(export, original_name):
    """The exported tokenizer and text encoder are those of the original CLIP."""
    import open_clip

    exported = open_clip.create_model(f"local-dir:{export}")
    tokens = open_clip.get_tokenizer(f"local-dir:{export}")(["a photo of a cat"])
    original = backbone.load(original_name)
    assert torch.equal(tokens, original.tokenize(["a photo of a cat"]))

    with torch.no_grad():
        features = exported.eval().encode_text(tokens)
        expected = original.model.encode_text(tokens)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_flyps_text_encoder_is_exported(folders, tmp_path, capsys):
    place = runs_jobs.write_pictures(tmp_path / "pets", 4)
    folder = runs_jobs.train_job(tmp_path / "job", place, "FLYP", clip_backbone=folders["gelu"])
    job = folder / "model.pkl"
    export = tmp_path / "export"

    assert cli.main(["export", str(job), "-o", str(export), "--original", folders["gelu"]]) == 0

    trained = backbone.load(f"open_clip:local-dir:{export}")
    run = saved.open_run(job)
    words = [[t.replace("{}", name) for name in run.classes] for t in run.contexts]
    features = normalize(backbone.text_features(trained, words), dim=-1).mean(dim=0)

    torch.testing.assert_close(
        normalize(features, dim=-1), run.algorithm.head.weight.detach(), rtol=1e-4, atol=1e-5
    )

    before = backbone.text_features(backbone.load(folders["gelu"]), words)
    assert not torch.allclose(before, backbone.text_features(trained, words))

    capsys.readouterr()
    with limited_files(20_000):
        full = ["export", str(job), "-o", str(tmp_path / "full"), "--original", folders["gelu"]]
        assert cli.main(full) == 1
    assert "full could not be written: " in capsys.readouterr().err
    assert not (tmp_path / "full").exists()


@contextlib.contextmanager
def limited_files(size):
    """No file may grow beyond ``size`` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ViT-B-32-quickgelu", "ViT-B-16", "ViT-B-16-SigLIP", "RN50", "ViT-H-14"]
)
def test_open_clip_models_of_full_size_are_rebuilt_from_their_configuration(name):
    """Built from the configuration alone, as a saved run is."""
    import open_clip

    config = our_open_clip.checked({"model_cfg": open_clip.get_model_config(name)}, name)
    encoder = our_open_clip.image_encoder(config).eval()
    state = {key: value.shape for key, value in encoder.state_dict().items()}
    rebuilt, how, dim = backbone.empty_image_encoder(state, json.dumps(config))
    with torch.no_grad():
        features = rebuilt.eval()(torch.zeros(1, 3, how.resolution, how.resolution))

    assert features.shape == (1, dim)
    assert len(penalties.LDIFSPenalty.places(rebuilt)) == 5
