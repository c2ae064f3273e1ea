"""`carft export`: what it writes, as clip and open_clip themselves read it; what it refuses."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import warm
from conftest import TINY_SHAPE, random_clip
from export_jobs import blocks, debug, exact
from fake_checkout import run_python_with_torch
from torch.nn.functional import cosine_similarity, normalize
from torchvision.datasets.folder import default_loader

from domainbed_carft import cli
from domainbed_carft.clips import backbone, openai
from domainbed_carft.files.weights import sha256
from domainbed_carft.pictures.protocols import plan_for
from domainbed_carft.pictures.transforms import PlanTransform
from domainbed_carft.plugin import data_sets
from domainbed_carft.runs import export, saved

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import clip


@pytest.fixture
def run(trained):
    return saved.open_run(trained)


AFTERWARDS = """
import sys
assert not [name for name in sys.modules if name.startswith("domainbed_carft.clips.")]
assert "domainbed_carft.pictures.clip_input" not in sys.modules
x = torch.stack([preprocess(Image.open(p).convert("RGB")) for p in sys.argv[2:]])
with torch.no_grad():
    features = torch.nn.functional.normalize(model.encode_image(x), dim=-1)
torch.save(head["logit_scale"] * features @ head["weight"].T + head["bias"], sys.argv[1])
"""


@pytest.mark.parametrize("library", ["clip", "open_clip"])
def test_the_cards_code_gives_the_predictions_of_the_run(library, files, run, tmp_path):
    for path in files.paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = data_sets.EmojiStyles(None, [0], {"clip_backbone": "tiny"})
    pictures = [path for path, _ in dataset[0].samples[::9]]  # of the environment left out
    (tmp_path / "picture.png").write_bytes(Path(pictures[0]).read_bytes())
    transform = PlanTransform(plan_for("domainbed", data_sets.EMOJI_SIZE, augment=False))
    with torch.no_grad():
        x = torch.stack([transform(default_loader(path)) for path in pictures])
        expected = run.algorithm.predict(x)
    by_clip, by_open_clip, classify = blocks(files.readme.read_text(encoding="utf-8"))
    code = (by_clip if library == "clip" else by_open_clip) + classify + AFTERWARDS
    done = run_python_with_torch("-c", code, "logits", *pictures, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == run.classes[int(expected[0].argmax())]

    logits = torch.load(tmp_path / "logits", weights_only=True)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)  # of logits up to 100
    assert len(expected) > 40 and len(set(expected.argmax(dim=1).tolist())) > 1


def test_clip_and_open_clip_load_the_exact_weights(files, run):
    original = backbone.load("tiny").model.state_dict()
    tuned = run.algorithm.encoder.state_dict()
    for model in exact(files):
        state = model.state_dict()
        for name, tensor in original.items():
            visual = name.startswith("visual.")
            expected = tuned[name.removeprefix("visual.")] if visual else tensor
            assert torch.equal(state[name], expected), name
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.equal(original["visual.proj"], tuned["proj"])


def test_half_precision_exports_have_openais_types(files, run, tmp_path):
    half = export.export(run, tmp_path / "half.pt", half=True)
    state = torch.load(half.weights, weights_only=True)
    model = random_clip(**{**TINY_SHAPE, "vision_width": 128, "vision_layers": 4})
    clip.model.convert_weights(model)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert {n: t.dtype for n, t in state.items() if n in dtypes} == dtypes
    assert half.weights.stat().st_size < 0.9 * files.weights.stat().st_size

    x = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    clip_model, open_clip_model = exact(half)
    loaded, preprocess = clip.load(str(half.weights), device="cpu")
    assert preprocess.transforms[0].size == 48

    with torch.no_grad():
        assert torch.equal(clip_model.encode_image(x), loaded.encode_image(x))
        torch.testing.assert_close(open_clip_model.encode_image(x), clip_model.encode_image(x))
        # What is lost by the rounding, which the loaders do anyway.
        assert cosine_similarity(loaded.encode_image(x), run.algorithm.encoder(x)).min() > 0.9999
    assert json.loads(half.card.read_text())["precision"] == "fp16"


@pytest.mark.parametrize("algorithm", ["CLIPFineTune", "CLIPZeroShot"])
def test_other_algorithms_are_exported(algorithm, tmp_path):
    run = saved.open_run(debug(tmp_path / "job", algorithm))
    files = export.export(run, tmp_path / "out.pt")
    state, head = (torch.load(file, weights_only=True) for file in (files.weights, files.head))
    original = backbone.load("tiny").model.state_dict()
    is_original = all(torch.equal(state[name], tensor) for name, tensor in original.items())
    assert state.keys() == original.keys() and is_original == (algorithm != "CLIPFineTune")

    x = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    clip_model, _ = exact(files)
    with torch.no_grad():
        features = normalize(clip_model.encode_image(run.algorithm.input(x)), dim=-1)
        logits = head["logit_scale"] * features @ head["weight"].T + head["bias"]
        torch.testing.assert_close(logits, run.algorithm.predict(x), rtol=0, atol=1e-4)


def test_a_resnet_is_exported(tmp_path):
    shape = {**TINY_SHAPE, "vision_layers": (1, 2, 1, 1), "vision_patch_size": None}
    shape = {**shape, "image_resolution": 64, "vision_width": 16}
    torch.save(random_clip(**shape).state_dict(), tmp_path / "resnet.pt")
    job = debug(tmp_path / "job", "CARFT", clip_backbone=str(tmp_path / "resnet.pt"))
    run = saved.open_run(job)
    files = export.export(run, tmp_path / "out.pt", original=str(tmp_path / "resnet.pt"))
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    config = json.loads(files.card.read_text())["open_clip_config"]["vision_cfg"]
    assert config == {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None}

    clip_model, open_clip_model = exact(files)
    with torch.no_grad():
        features = run.algorithm.encoder(x)
        assert torch.equal(clip_model.encode_image(x), features)
        torch.testing.assert_close(open_clip_model.encode_image(x), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", openai.OPENAI_WEIGHTS)
def test_published_sizes_have_the_names_and_shapes_that_open_clip_gives_them(name):
    import open_clip

    config = open_clip.get_model_config(export.open_clip_name(name))
    vision = config["vision_cfg"]
    text = config["text_cfg"]
    with torch.device("meta"):
        model = clip.model.CLIP(
            config["embed_dim"],
            vision["image_size"],
            tuple(vision["layers"]) if isinstance(vision["layers"], list) else vision["layers"],
            vision["width"],
            vision["patch_size"],
            text["context_length"],
            text["vocab_size"],
            text["width"],
            text["heads"],
            text["layers"],
        )
    assert export.open_clip_config(model) == config


def test_a_missing_moved_or_wrong_original_is_refused(random_tiny, tmp_path, capsys):
    mine = tmp_path / "mine.pt"
    mine.write_bytes(random_tiny.read_bytes())
    job = debug(tmp_path / "job", "CARFT", clip_backbone=str(mine))
    mine.rename(tmp_path / "elsewhere.pt")

    command = ["export", str(job), "-o", str(tmp_path / "out.pt")]
    assert cli.main(command) == 1
    assert "mine.pt'. Paths named in a run are not opened" in capsys.readouterr().err

    torch.save(random_clip(seed=1, **TINY_SHAPE).state_dict(), mine)
    for wrong_original in (str(mine), "tiny"):
        assert cli.main([*command, "--original", wrong_original]) == 1
        error = capsys.readouterr().err
        digest = sha256(tmp_path / "elsewhere.pt")
        assert "is not the CLIP that" in error and f"expected {digest}" in error
    assert not list(tmp_path.glob("out*"))
    assert cli.main([*command, "--original", str(tmp_path / "elsewhere.pt")]) == 0


def test_a_folder_is_for_runs_that_started_from_open_clip(trained, tmp_path, capsys):
    original = "open_clip:ViT-B-16/openai"
    command = ["export", str(trained), "-o", str(tmp_path / "FOLDER"), "--original", original]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert "expected a name that ends in .pt or .pth, since this run started from " in error
    assert "which is no CLIP of open_clip; only runs that started from one" in error


def test_nothing_is_overwritten_without_the_flag(files, trained, tmp_path, capsys):
    (tmp_path / "out.md").write_text("mine")
    command = ["export", str(trained), "--which", "last", "-o", str(tmp_path / "out.pt")]
    assert cli.main(command) == 1

    error = capsys.readouterr().err
    assert "out.md already exists" in error and "--force" in error
    assert [p.name for p in tmp_path.iterdir()] == ["out.md"]
    assert cli.main([*command, "--force"]) == 0
    assert (tmp_path / "out.pt").read_bytes() == files.weights.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4 and (tmp_path / "out.md").read_text() != "mine"


def test_a_full_disk_leaves_no_export(files, trained, tmp_path):
    """Neither the weights, nor what was there, is cut."""
    for path in files.paths:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = (
        "import resource, sys; from domainbed_carft import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); sys.exit(cli.main())"
    )
    weights = tmp_path / files.weights.name
    done = warm.run("-c", code, "export", trained, "-o", weights, "--force")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "File too large; choose a writable folder" in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_flyp_has_its_own_text_encoder_and_the_originals_contexts(tmp_path):
    """Classes by the exported text encoder, contexts by the original's, as `predict` has them."""
    run = saved.open_run(debug(tmp_path / "job", "FLYP"))
    files = export.export(run, tmp_path / "out.pt")
    clip_model, _ = exact(files)
    head = torch.load(files.head, weights_only=True)
    original = backbone.load("tiny").model

    def unit_features(model, words):
        """(M, K, D) of prompts, by the library's own tokenizer."""
        tokens = clip.tokenize([template.format(name) for template, name in words])
        with torch.no_grad():
            features = normalize(model.encode_text(tokens).float(), dim=-1)
        return features.view(len(run.contexts), len(run.classes), -1)

    words = [(template, name) for template in run.contexts for name in run.classes]
    tuned, first = (unit_features(model, words) for model in (clip_model, original))
    assert not torch.allclose(tuned, first, atol=1e-4)

    of_classes = normalize(tuned.mean(dim=0), dim=-1)
    of_contexts = normalize(first.mean(dim=1), dim=-1)
    torch.testing.assert_close(head["weight"], of_classes, rtol=1e-4, atol=1e-5)

    torch.testing.assert_close(head["context_weights"], of_contexts, rtol=1e-4, atol=1e-5)
    assert head["logit_scale"] == pytest.approx(clip_model.logit_scale.exp().item())
    assert head["context_scale"] == pytest.approx(original.logit_scale.exp().item())
    assert head["logit_scale"] != pytest.approx(head["context_scale"], rel=1e-5)

    x = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = normalize(clip_model.encode_image(run.algorithm.input(x)), dim=-1)
    logits = head["context_scale"] * features @ head["context_weights"].T
    predicted = run.predict(x).context_probabilities
    torch.testing.assert_close(predicted, logits.double().softmax(1), rtol=0, atol=1e-5)

    check_card_of_flyp(files)


def check_card_of_flyp(files):
    card = json.loads(files.card.read_text())
    page = files.readme.read_text()
    assert card["text_encoder"] == {
        "weights": "fine-tuned",
        "logit_scale": "fine-tuned",
        "class_head": "fine-tuned",
        "context_head": "original",
    }
    assert "its text encoder and its logit scale fine-tuned by FLYP" in page
    assert "The text encoder and the logit scale are the original ones" not in page


def test_other_cards_say_that_the_text_encoder_is_the_original(files):
    text_encoder = json.loads(files.card.read_text())["text_encoder"]
    assert set(text_encoder.values()) == {"original"}
    assert "The text encoder and the logit scale are the original ones" in files.readme.read_text()
