"""`carft export`: what it writes, as clip and open_clip themselves read it."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SHAPE, random_clip
from domainbed.scripts import train
from PIL import Image
from torch.nn.functional import cosine_similarity, normalize
from torchvision.datasets.folder import default_loader

from domainbed_carft import backbone, cli, emoji, images, protocol
from domainbed_carft.errors import CarftError
from domainbed_carft.runs import card, export, saved

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import clip
    import open_clip

DOCS = Path(__file__).resolve().parents[1] / "docs" / "export.md"
# What trains fast, and far enough from the original to tell the two apart.
FAST = {"warmup_steps": 0, "total_steps": 4, "lr": 0.001}


def debug(folder, algorithm, *more, **hparams):
    """The folder of a job on Debug28."""
    arguments = ["--algorithm", algorithm, "--dataset", "Debug28", "--output_dir", str(folder)]
    arguments += ["--hparams", json.dumps({**FAST, **hparams}), "--workers", "0", "--steps", "4"]
    assert train.main([*arguments, "--checkpoint_freq", "3", "--test_envs", "2", *more]) == 0
    return folder


@pytest.fixture(scope="module")
def files(trained, tmp_path_factory):
    """An export by the command."""
    weights = tmp_path_factory.mktemp("exported") / "it's.pt"
    assert cli.main(["export", str(trained), "-o", str(weights)]) == 0
    return export.Files.of(weights)


@pytest.fixture(scope="module")
def run(trained):
    return saved.open_run(trained)


@pytest.fixture(scope="module")
def pictures():
    """Files of the environment left out, every ninth."""
    dataset = emoji.EmojiStyles(None, [0], {"clip_backbone": "tiny"})
    return [path for path, _ in dataset[0].samples[::9]]


@pytest.fixture(scope="module")
def expected(run, pictures):
    """What the algorithm itself says of the pictures, as DomainBed hands them to it."""
    transform = protocol.transform("domainbed", emoji.SIZE, augment=False)
    with torch.no_grad():
        return run.algorithm.predict(torch.stack([transform(default_loader(p)) for p in pictures]))


def blocks(markdown: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", markdown, flags=re.MULTILINE | re.DOTALL)


def exact(files):
    """The export in clip and in open_clip, as the card says."""
    state = torch.load(files.weights, weights_only=True)
    theirs = clip.model.build_model(dict(state)).float()
    theirs.load_state_dict(state)
    other = open_clip.CLIP(**json.loads(files.card.read_text())["open_clip_config"])
    open_clip.load_checkpoint(other, str(files.weights))
    return theirs.eval(), other.eval()


AFTERWARDS = """
import sys
assert not {"domainbed_carft.backbone", "domainbed_carft.images"} & set(sys.modules)  # on its own
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


def test_features_are_those_of_the_run(files, run):
    x = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    theirs, other = exact(files)
    with torch.no_grad():
        features = run.algorithm.encoder(x)
        assert torch.equal(theirs.encode_image(x), features)
        # Its attention adds up in another order.
        torch.testing.assert_close(other.encode_image(x), features, rtol=1e-5, atol=1e-5)
        words = clip.tokenize(["a drawing of a face", "a tool"])
        text = backbone.load("tiny").model.encode_text(words)
        assert torch.equal(theirs.encode_text(words), text)
        torch.testing.assert_close(other.encode_text(words), text, rtol=1e-5, atol=1e-5)


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


def test_open_clip_goes_by_the_models_name(files, run, tmp_path):
    """One of ours in the place of the published sizes: the name decides, as docs/export.md says."""
    config = json.loads(files.card.read_text())["open_clip_config"]
    (tmp_path / "small-quickgelu.json").write_text(json.dumps(config))
    (tmp_path / "small.json").write_text(json.dumps({**config, "quick_gelu": False}))
    open_clip.add_model_config(tmp_path)
    x = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    models = [
        open_clip.create_model(name, pretrained=str(files.weights), **more).eval()
        for name, more in (
            ("small-quickgelu", {}), ("small", {"force_quick_gelu": True}), ("small", {}),
        )
    ]  # fmt: skip
    with torch.no_grad():
        features = run.algorithm.encoder(x)
        named, forced, wrong = (model.encode_image(x) for model in models)
    torch.testing.assert_close(named, features, rtol=1e-5, atol=1e-5)
    assert torch.equal(named, forced)
    assert (wrong - features).abs().max() > 0.05  # without a word


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


def test_context_probabilities_from_the_head(files, run):
    head = torch.load(files.head, weights_only=True)
    theirs, _ = exact(files)
    x = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = normalize(theirs.encode_image(run.algorithm.input(x)), dim=-1)
        logits = head["context_scale"] * features @ head["context_weights"].T
        torch.testing.assert_close(logits, run.algorithm.context_logits(x), rtol=0, atol=1e-4)


def test_the_card(files, trained, run):
    facts = json.loads(files.card.read_text(encoding="utf-8"))
    for name, path in (("weights", files.weights), ("head", files.head)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        size = path.stat().st_size
        assert facts[name] == {"file": path.name, "sha256": digest, "bytes": size}
        assert digest in files.readme.read_text(encoding="utf-8")
    assert facts["original"] == {"name": "tiny", "sha256": backbone.TINY_SHA256}
    assert facts["quick_gelu"] is facts["open_clip_config"]["quick_gelu"] is True
    assert facts["precision"] == "fp32" and facts["open_clip_name"] is None
    record = json.loads((trained / "results.jsonl").read_text().splitlines()[-1])
    told = facts["run"]
    assert told["hparams"] == record["hparams"]
    assert told["prompts_digest"] == record["hparams"]["prompts_digest"]
    assert told["data_edition"] == record["data_edition"]
    assert told["step"] == record["step"] == 3
    assert told["test_environments"] == ["fluent3d"] and told["test_envs"] == [0]
    assert list(told["accuracies"]) == emoji.EmojiStyles.ENVIRONMENTS
    assert told["accuracies"]["fluent3d"]["in"] == record["env0_in_acc"]
    assert told["accuracies"]["twemoji"]["out"] == record["env3_out_acc"]
    assert told["versions"]["PyTorch"] == facts["versions"]["torch"] == torch.__version__
    assert (facts["classes"], facts["contexts"]) == (run.classes, run.contexts)
    command = ["carft", "export", str(trained), "-o", str(files.weights)]
    assert shlex.split(facts["command"]) == command


def test_the_command_in_the_card_trains_the_same_again(tmp_path):
    job = debug(tmp_path / "job", "CARFT", "--seed", "7", "--trial_seed", "1")
    files = export.export(saved.open_run(job), tmp_path / "out.pt")
    command = json.loads(files.card.read_text())["run"]["command"]
    assert f"\n{command}\n" in files.readme.read_text()
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "domainbed.scripts.train"]
    again = tmp_path / "again"
    assert train.main([*words[3:], "--output_dir", str(again), "--workers", "0"]) == 0
    one, other = (torch.load(f / "model.pkl", weights_only=True) for f in (job, again))
    assert all(torch.equal(v, other["model_dict"][k]) for k, v in one["model_dict"].items())


def test_the_page_for_people_shows_names_as_they_are(files, run, tmp_path):
    facts = json.loads(files.card.read_text(encoding="utf-8"))
    facts["run"]["hparams"] = {"contexts": ["a|b", "<i>", "`c`", "d\ne"]}
    page = card.readme(facts, "x.json")
    row = next(line for line in page.splitlines() if line.startswith("| contexts"))
    assert row == r'| contexts | \["a\|b", "\<i\>", "\`c\`", "d\\ne"\] |'
    assert "| fluent3d (left out) |" in page and "| twemoji |" in page


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


@pytest.mark.parametrize("algorithm", ["CLIPFineTune", "CLIPLinearProbe", "CLIPZeroShot"])
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
    files = export.export(run, tmp_path / "out.pt")
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
    config = open_clip.get_model_config(card.open_clip_name(name))
    vision, text = config["vision_cfg"], config["text_cfg"]
    with torch.device("meta"):
        model = clip.model.CLIP(
            config["embed_dim"], vision["image_size"],
            tuple(vision["layers"]) if isinstance(vision["layers"], list) else vision["layers"],
            vision["width"], vision["patch_size"], text["context_length"], text["vocab_size"],
            text["width"], text["heads"], text["layers"],
        )  # fmt: skip
    assert card.open_clip_config(model.state_dict()) == config


def test_the_best_weights_have_the_record_of_their_step(tmp_path):
    job = debug(tmp_path / "job", "CARFT", "--checkpoint_freq", "1")
    best = torch.load(job / "model_best.pkl", weights_only=True)["best_step"]
    assert cli.main(["export", str(job), "--which", "best", "-o", str(tmp_path / "best.pt")]) == 0
    told = json.loads((tmp_path / "best.json").read_text())["run"]
    records = [json.loads(line) for line in (job / "results.jsonl").read_text().splitlines()]
    (record,) = [record for record in records if record["step"] == best]
    assert told["step"] == best and told["file"] == "model_best.pkl"
    assert [a["out"] for a in told["accuracies"].values()] == [
        record[f"env{i}_out_acc"] for i in range(3)
    ]


def test_without_records_the_card_has_no_accuracy(trained, tmp_path):
    (tmp_path / "weights.pkl").write_bytes((trained / "model.pkl").read_bytes())
    files = export.export(saved.open_run(tmp_path / "weights.pkl"), tmp_path / "out.pt")
    told = json.loads(files.card.read_text())["run"]
    assert told["accuracies"] == {} and told["versions"] == {}
    assert told["test_environments"] == ["fluent3d"]
    assert "No record" in files.readme.read_text()


def test_interpolated_weights_have_no_record_and_say_how_much_of_them_is_tuned(trained, tmp_path):
    content = torch.load(trained / "model.pkl", weights_only=True)
    (tmp_path / "results.jsonl").write_bytes((trained / "results.jsonl").read_bytes())
    torch.save({**content, "wise_ft_alpha": 0.25}, tmp_path / "half-way.pkl")
    files = export.export(saved.open_run(tmp_path / "half-way.pkl"), tmp_path / "out.pt")
    told = json.loads(files.card.read_text())["run"]
    assert told["wise_ft_alpha"] == 0.25 and told["accuracies"] == {}
    assert "WiSE-FT: 0.25 of the fine-tuned" in files.readme.read_text()


def test_names_that_are_no_text(trained, tmp_path):
    """A file's name may be any bytes, and a record may have been damaged."""
    record = json.loads((trained / "results.jsonl").read_text().splitlines()[-1])
    record.update(env0_in_acc="?", env1_out_acc=float("nan"))
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n{cut\n")
    (tmp_path / "model.pkl").write_bytes((trained / "model.pkl").read_bytes())
    weights = tmp_path / os.fsdecode(b"\xff|.pt")
    assert cli.main(["export", str(tmp_path), "-o", str(weights)]) == 0
    files = export.Files.of(weights)
    accuracies = json.loads(files.card.read_text())["run"]["accuracies"]
    assert accuracies["fluent3d"] == {"in": None, "out": record["env0_out_acc"]}
    assert accuracies["line"] == {"in": record["env1_in_acc"], "out": None}
    (weights,) = re.findall(r"load_checkpoint\(model, (.*)\)", files.readme.read_text())
    assert eval(weights) == files.weights.name


@pytest.fixture
def moved(random_tiny, tmp_path):
    """A run whose original CLIP was a file of the user's, which is gone."""
    backbone_file = tmp_path / "mine.pt"
    backbone_file.write_bytes(random_tiny.read_bytes())
    job = debug(tmp_path / "job", "CARFT", clip_backbone=str(backbone_file))
    backbone_file.rename(tmp_path / "elsewhere.pt")
    return job


def test_the_original_is_missing_moved_or_another(moved, tmp_path, capsys):
    def attempt(*more):
        capsys.readouterr()
        status = cli.main(["export", str(moved), "-o", str(tmp_path / "out.pt"), *more])
        assert status == 0 or not list(tmp_path.glob("out*"))
        return status, capsys.readouterr().err

    status, said = attempt()
    assert status == 1 and "mine.pt" in said and "--original FILE" in said
    torch.save(random_clip(seed=1, **TINY_SHAPE).state_dict(), tmp_path / "mine.pt")
    status, said = attempt()
    assert status == 1 and "mine.pt is not the CLIP" in said and "text encoder" in said
    status, said = attempt("--original", "tiny")
    assert status == 1 and "other shapes in its image encoder, as in" in said
    scaled = torch.load(tmp_path / "elsewhere.pt", weights_only=True)
    scaled["logit_scale"] += 0.1
    torch.save(scaled, tmp_path / "mine.pt")
    assert "its logit scale is" in attempt()[1]
    assert attempt("--original", str(tmp_path / "elsewhere.pt"))[0] == 0


def test_another_image_encoder_is_noticed_where_none_was_trained(random_tiny, tmp_path):
    mine = tmp_path / "mine.pt"
    mine.write_bytes(random_tiny.read_bytes())
    job = debug(tmp_path / "job", "CLIPZeroShot", clip_backbone=str(mine))
    changed = torch.load(mine, weights_only=True)
    changed["visual.proj"] += 0.01
    torch.save(changed, mine)
    with pytest.raises(CarftError, match="other weights in its image encoder, as in proj"):
        export.export(saved.open_run(job), tmp_path / "out.pt")


def test_nothing_is_overwritten_unless_told(files, trained, run, tmp_path, capsys):
    (tmp_path / "out.md").write_text("mine")
    assert cli.main(["export", str(trained), "-o", str(tmp_path / "out.pt")]) == 1
    said = capsys.readouterr().err
    assert "already there" in said and "out.md" in said and "--force" in said
    assert [p.name for p in tmp_path.iterdir()] == ["out.md"]
    assert cli.main(["export", str(trained), "-o", str(tmp_path / "out.pt"), "--force"]) == 0
    assert (tmp_path / "out.pt").read_bytes() == files.weights.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4 and (tmp_path / "out.md").read_text() != "mine"


def test_what_it_is_made_from_is_never_overwritten(trained, random_tiny, tmp_path):
    (tmp_path / "run.pt").write_bytes((trained / "model.pkl").read_bytes())
    with pytest.raises(CarftError, match=r"run.pt is what the export is made from"):
        export.export(saved.open_run(tmp_path / "run.pt"), tmp_path / "run.pt", force=True)
    mine = tmp_path / "mine.pt"
    mine.write_bytes(random_tiny.read_bytes())
    trained_from = debug(tmp_path / "job", "CARFT", clip_backbone=str(mine))
    with pytest.raises(CarftError, match=r"mine.pt is what the export is made from"):
        export.export(saved.open_run(trained_from), mine, force=True)
    assert mine.read_bytes() == random_tiny.read_bytes()


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("out", "expected a name that ends in .pt or .pth"),
        ("out.json", "expected a name that ends in .pt or .pth"),
        ("no/such/out.pt", "no/such is no folder; make it first"),
        ("folder.pt", "folder.pt is a folder"),
    ],
)
def test_names_that_cannot_be_written(output, message, run, tmp_path):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CarftError, match=message):
        export.export(run, tmp_path / output, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.pt"]


def test_a_run_that_is_none(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path / "job"), "-o", str(tmp_path / "out.pt")]) == 1
    assert f"there is no {tmp_path / 'job'}" in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_refused(trained, tmp_path):
    run = saved.open_run(trained)
    run.algorithm.encoder.proj.data[0, 0] = 1e6
    with pytest.raises(CarftError, match="visual.proj has values .* without --half it may fit"):
        export.export(run, tmp_path / "out.pt", half=True)
    run.algorithm.encoder.proj.data[0, 0] = float("nan")
    with pytest.raises(CarftError, match="visual.proj has values .* the training diverged"):
        export.export(run, tmp_path / "out.pt")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full(files, trained, tmp_path):
    """Neither the weights, nor what was there, is cut."""
    for path in files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code = (
        "import resource, sys; from domainbed_carft import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)); sys.exit(cli.main())"
    )
    weights = str(tmp_path / files.weights.name)
    command = [sys.executable, "-W", "ignore", "-c", code, "export", str(trained), "-o", weights]
    done = subprocess.run([*command, "--force"], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "File too large; nothing was overwritten" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("name", "size"), [("domainbed", 48), ("clip", 48), ("domainbed", 28)])
def test_the_pre_processing_of_the_page_is_that_of_the_run(name, size, files, run):
    """Also where the encoder wants another size than the data set has."""
    facts = json.loads(files.card.read_text(encoding="utf-8"))
    assert facts["pictures"]["protocol"] == "domainbed"
    assert facts["pictures"]["resolution"] == facts["pictures"]["data_set_size"] == 48
    facts["pictures"].update(protocol=name, data_set_size=size)
    code = blocks(card.readme(facts, "x.json"))[2]
    names = {}
    exec(re.sub(r"head = .*\n", "", code[: code.index("picture = ")]), names)
    pixels = np.random.default_rng(0).integers(0, 256, size=(70, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    x = protocol.transform(name, size, augment=False)(picture)[None]
    by_run = run.algorithm.input
    if name == "clip":
        by_run = images.CLIPInput(48, images.CLIP_MEAN, images.CLIP_STD)
    torch.testing.assert_close(names["preprocess"](picture)[None], by_run(x), rtol=0, atol=1e-4)


def test_the_documentation_has_all_keys_and_names(files):
    text = DOCS.read_text(encoding="utf-8")
    facts = json.loads(files.card.read_text())
    head = torch.load(files.head, weights_only=True)
    documented = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert documented == [*head, *facts]
    for name in backbone.OPENAI_WEIGHTS:
        assert f"`{card.open_clip_name(name)}`" in text
