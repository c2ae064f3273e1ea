"""`carft export`: what it writes, as clip and open_clip themselves read it."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import TINY_SHAPE, random_clip
from export_jobs import blocks, debug, exact, exported
from torch.nn.functional import cosine_similarity, normalize
from torchvision.datasets.folder import default_loader

from domainbed_carft import cli
from domainbed_carft.method import backbone
from domainbed_carft.method import pictures as images
from domainbed_carft.plugin import emoji_styles
from domainbed_carft.runs import export, saved

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import clip
    import open_clip


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    return exported(trained, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def run(trained):
    return saved.open_run(trained)


@pytest.fixture(scope="module")
def pictures():
    """Files of the environment left out, every ninth."""
    dataset = emoji_styles.EmojiStyles(None, [0], {"clip_backbone": "tiny"})
    return [path for path, _ in dataset[0].samples[::9]]


@pytest.fixture(scope="module")
def expected(run, pictures):
    """What the algorithm itself says of the pictures, as DomainBed hands them to it."""
    transform = images.transform("domainbed", emoji_styles.SIZE, augment=False)
    with torch.no_grad():
        return run.algorithm.predict(torch.stack([transform(default_loader(p)) for p in pictures]))


AFTERWARDS = """
import sys
assert not {"domainbed_carft.method.backbone", "domainbed_carft.method.pictures"} & set(sys.modules)
x = torch.stack([preprocess(Image.open(p).convert("RGB")) for p in sys.argv[2:]])
with torch.no_grad():
    features = torch.nn.functional.normalize(model.encode_image(x), dim=-1)
torch.save(head["logit_scale"] * features @ head["weight"].T, sys.argv[1])
"""


@pytest.mark.parametrize("library", ["clip", "open_clip"])
def test_what_the_card_shows_gives_the_predictions_of_the_run(
    library, files, run, pictures, expected, tmp_path
):
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "picture.png").write_bytes(Path(pictures[0]).read_bytes())
    by_clip, by_open_clip, classify = blocks(files.readme.read_text(encoding="utf-8"))
    code = (by_clip if library == "clip" else by_open_clip) + classify + AFTERWARDS
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, "logits", *pictures],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == run.classes[int(expected[0].argmax())]
    logits = torch.load(tmp_path / "logits", weights_only=True)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)  # of logits up to 100
    assert len(expected) > 40 and len(set(expected.argmax(dim=1).tolist())) > 1


def test_both_libraries_have_the_very_weights(files, run):
    original = backbone.load("tiny").model.state_dict()
    tuned = run.algorithm.encoder.state_dict()
    for model in exact(files):
        there = model.state_dict()
        for name, tensor in original.items():
            visual = name.startswith("visual.")
            wanted = tuned[name.removeprefix("visual.")] if visual else tensor
            assert torch.equal(there[name], wanted), name
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not torch.equal(original["visual.proj"], tuned["proj"])


def test_the_loaders_of_both_libraries_take_the_path(files, run):
    x = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    theirs, preprocess = clip.load(str(files.weights), device="cpu")
    other = open_clip.load_openai_model(str(files.weights), precision="fp32", device="cpu")
    assert preprocess.transforms[0].size == 48
    with torch.no_grad():
        features = run.algorithm.encoder(x)
        a, b = theirs.encode_image(x), other.encode_image(x)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not torch.equal(a, features)  # both round through half precision
    assert cosine_similarity(a, features).min() > 0.9999


def test_the_head_has_only_plain_content(files, run):
    head = torch.load(files.head, weights_only=True)
    assert torch.equal(head.pop("weight"), run.algorithm.head.weight)
    assert torch.equal(head.pop("context_weights"), run.algorithm.context_weights)
    scale = float(run.algorithm.logit_scale)
    assert head == {
        "classes": run.classes,
        "contexts": run.contexts,
        "logit_scale": scale,
        "context_scale": scale,
    }


def test_the_same_run_gives_the_same_bytes_under_any_name(files, run, tmp_path):
    again = export.export(run, tmp_path / "other.pt")
    assert again.weights.read_bytes() == files.weights.read_bytes()
    assert again.head.read_bytes() == files.head.read_bytes()


def test_half_precision_is_as_openai_publishes_it(files, run, tmp_path):
    half = export.export(run, tmp_path / "half.pt", half=True)
    state = torch.load(half.weights, weights_only=True)
    model = random_clip(**{**TINY_SHAPE, "vision_width": 128, "vision_layers": 4})
    clip.model.convert_weights(model)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert {n: t.dtype for n, t in state.items() if n in dtypes} == dtypes
    assert half.weights.stat().st_size < 0.9 * files.weights.stat().st_size
    x = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    theirs, other = exact(half)
    loaded, _ = clip.load(str(half.weights), device="cpu")
    with torch.no_grad():
        assert torch.equal(theirs.encode_image(x), loaded.encode_image(x))
        torch.testing.assert_close(other.encode_image(x), theirs.encode_image(x))
    assert json.loads(half.card.read_text())["precision"] == "fp16"


@pytest.mark.parametrize("algorithm", ["CLIPFineTune", "CLIPZeroShot"])
def test_the_other_algorithms(algorithm, tmp_path):
    job = debug(tmp_path / "job", algorithm)
    assert cli.main(["export", str(job), "-o", str(tmp_path / "out.pt")]) == 0
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    original = backbone.load("tiny").model.state_dict()
    same = all(torch.equal(state[name], tensor) for name, tensor in original.items())
    assert state.keys() == original.keys() and same == (algorithm != "CLIPFineTune")
    run = saved.open_run(job)
    x = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    theirs, _ = exact(export.Files.of(tmp_path / "out.pt"))
    head = torch.load(tmp_path / "out.head.pt", weights_only=True)
    with torch.no_grad():
        features = normalize(theirs.encode_image(run.algorithm.input(x)), dim=-1)
        logits = head["logit_scale"] * features @ head["weight"].T
        torch.testing.assert_close(logits, run.algorithm.predict(x), rtol=0, atol=1e-4)


def test_a_resnet(tmp_path):
    shape = {**TINY_SHAPE, "vision_layers": (1, 2, 1, 1), "vision_patch_size": None}
    shape = {**shape, "image_resolution": 64, "vision_width": 16}
    torch.save(random_clip(**shape).state_dict(), tmp_path / "resnet.pt")
    job = debug(tmp_path / "job", "CARFT", clip_backbone=str(tmp_path / "resnet.pt"))
    run = saved.open_run(job)
    files = export.export(run, tmp_path / "out.pt", original=str(tmp_path / "resnet.pt"))
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    config = json.loads(files.card.read_text())["open_clip_config"]["vision_cfg"]
    assert config == {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "patch_size": None}
    theirs, other = exact(files)
    with torch.no_grad():
        features = run.algorithm.encoder(x)
        assert torch.equal(theirs.encode_image(x), features)
        torch.testing.assert_close(other.encode_image(x), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", backbone.OPENAI_WEIGHTS)
def test_published_sizes_have_the_names_and_shapes_that_open_clip_gives_them(name):
    config = open_clip.get_model_config(export.open_clip_name(name))
    vision, text = config["vision_cfg"], config["text_cfg"]
    with torch.device("meta"):
        model = clip.model.CLIP(
            config["embed_dim"], vision["image_size"],
            tuple(vision["layers"]) if isinstance(vision["layers"], list) else vision["layers"],
            vision["width"], vision["patch_size"], text["context_length"], text["vocab_size"],
            text["width"], text["heads"], text["layers"],
        )  # fmt: skip
    assert export.open_clip_config(model.state_dict()) == config
