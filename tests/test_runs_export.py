"""`carft export`: the files as clip and open_clip load them, the model card, and errors."""

import hashlib
import json
import re
import resource
import shlex
import shutil
import warnings

import pytest
import torch
from domainbed.lib.checks import find_test_envs
from domainbed.lib.train_arguments import build_parser
from domainbed.scripts import train
from runs_jobs import copy_changed
from torch.nn.functional import cosine_similarity, normalize
from torchvision.datasets.folder import default_loader

from domainbed_carft import cli
from domainbed_carft.clips import backbone, openai
from domainbed_carft.datasets import included
from domainbed_carft.errors import CarftError
from domainbed_carft.files.weights import sha256
from domainbed_carft.images.protocols import plan_for
from domainbed_carft.images.transforms import PlanTransform
from domainbed_carft.jobs.facts import get_hparams_and_facts
from domainbed_carft.runs import export, saved

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import clip


def run_loading_code(files, library, monkeypatch):
    """Run the card's code that loads the export; return its variables and the code that follows."""
    monkeypatch.chdir(files.weights.parent)
    page = files.readme.read_text(encoding="utf-8")
    *load, classify = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    names = {}
    exec(load[library], names)
    return names, classify


CLIP, OPEN_CLIP = 0, 1
LIBRARIES = pytest.mark.parametrize("library", [CLIP, OPEN_CLIP], ids=["clip", "open_clip"])


@LIBRARIES
def test_code_of_the_card_loads_the_exact_weights_and_predicts_like_the_run(
    library, files, trained, monkeypatch, capsys
):
    run = saved.load_run(trained, "last", device="cpu")
    dataset = included.EmojiStyles(None, [0], {"clip_backbone": "tiny"})
    paths = [path for path, _ in dataset[0].samples[::9]]  # of the target
    images = [default_loader(path) for path in paths]
    transform = PlanTransform(plan_for("domainbed", included.EMOJI_SIZE, augment=False))
    with torch.no_grad():
        expected = run.algorithm.predict(torch.stack([transform(image) for image in images]))

    names, classify = run_loading_code(files, library, monkeypatch)
    exec(classify.replace("image.png", paths[0]), names)
    assert capsys.readouterr().out.strip() == run.classes[int(expected[0].argmax())]

    head = names["head"]
    with torch.no_grad():
        x = torch.stack([names["preprocess"](image) for image in images])
        features = normalize(names["model"].encode_image(x), dim=-1)
    logits = head["logit_scale"] * features @ head["weight"].T + head["bias"]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-3)  # logits are up to 100
    assert len(expected) > 40 and len(set(expected.argmax(dim=1).tolist())) > 1

    state = names["model"].state_dict()
    tuned = run.algorithm.encoder.state_dict()
    original = backbone.load("tiny").model.state_dict()
    assert not torch.equal(original["visual.proj"], tuned["proj"])
    for name, tensor in original.items():
        if name.startswith("visual."):
            tensor = tuned[name.removeprefix("visual.")]
        assert torch.equal(state[name], tensor) and state[name].dtype == torch.float32, name


@LIBRARIES
def test_half_precision_export_has_the_types_of_openai(
    library, files, trained, tmp_path, monkeypatch
):
    run = saved.load_run(trained, "last", device="cpu")
    half = export.export(run, tmp_path / "half.pt", half=True)
    assert half.weights.stat().st_size < 0.9 * files.weights.stat().st_size
    assert json.loads(half.card.read_text())["precision"] == "fp16"

    model, _ = clip.load(str(half.weights), device="cpu")
    x = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    names, _ = run_loading_code(half, library, monkeypatch)
    with torch.no_grad():
        features = model.encode_image(x)
        torch.testing.assert_close(names["model"].encode_image(x), features)
        assert cosine_similarity(features, run.algorithm.encoder(x)).min() > 0.9999

    clip.model.convert_weights(model)
    state = torch.load(half.weights, weights_only=True)
    assert all(state[name].dtype == w.dtype for name, w in model.state_dict().items())


@pytest.mark.parametrize("name", openai.OPENAI_WEIGHTS)
def test_names_and_shapes_of_published_sizes_equal_open_clips(name):
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


@pytest.mark.parametrize(
    "command",
    [pytest.param(("wise-ft", "--alphas", "0.5"), marks=pytest.mark.slow), ("export",)],
)
def test_unpublished_original_must_be_passed(
    command, pets, random_tiny, tmp_path, monkeypatch, capsys
):
    """The path in a run is not opened, even if the file is valid."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(openai.locate("tiny")[0], "mine.pt")
    copy_changed(pets / "CARFT", tmp_path, model_hparams={"clip_backbone": "mine.pt"})
    command = [command[0], "model.pkl", *command[1:], "-o", "out.pt"]
    assert cli.main(command) == 1
    assert "mine.pt'. Paths named in a run are not opened" in capsys.readouterr().err

    assert cli.main([*command, "--original", str(random_tiny)]) == 1
    error = capsys.readouterr().err
    assert "is not the CLIP model that" in error and f"expected {sha256('mine.pt')}" in error

    assert not list(tmp_path.glob("out*"))
    assert cli.main([*command, "--original", "mine.pt"]) == 0


def test_folder_is_only_for_runs_that_started_from_open_clip(trained, tmp_path):
    with pytest.raises(CarftError, match="ends in .pt or .pth, since this run started from 'tiny'"):
        export.export(trained, tmp_path / "FOLDER")


def test_file_instead_of_a_folder_is_named_as_it_was_given(trained, tmp_path):
    file = tmp_path / "FILE"
    file.touch()
    with pytest.raises(CarftError, match=f"-o {file} is a file, expected a folder") as caught:
        export.export(trained, file, format="transformers", force=True)
    assert "safetensors" not in str(caught.value)


def test_failed_export_leaves_existing_files_unchanged(files, trained, tmp_path, capsys):
    for name in ("out.pt", "out.head.pt", "out.json", "out.md"):
        (tmp_path / name).write_text("earlier")
    command = ["export", str(trained), "--which", "last", "-o", str(tmp_path / "out.pt")]
    assert cli.main(command) == 1
    assert "out.pt already exists; choose another name, or add --force" in capsys.readouterr().err

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limits[1]))  # stands for a full disk
    try:
        assert cli.main([*command, "--force"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"] * 4

    assert cli.main([*command, "--force"]) == 0
    assert (tmp_path / "out.pt").read_bytes() == files.weights.read_bytes()


def test_flyp_exports_its_text_encoder_with_the_original_contexts(tmp_path, monkeypatch):
    """Class weights come from the exported text encoder, context weights from the original."""
    hparams = '{"batch_size": 2, "warmup_steps": 0, "total_steps": 4, "lr": 0.001}'
    arguments = ["--algorithm", "FLYP", "--dataset", "Debug28", "--hparams", hparams]
    arguments += ["--workers", "0", "--steps", "2", "--output_dir", str(tmp_path / "job")]
    assert train.main(arguments) == 0

    run = saved.load_run(tmp_path / "job", device="cpu")
    files = export.export(run, tmp_path / "out.pt")
    clip_model = run_loading_code(files, CLIP, monkeypatch)[0]["model"]
    head = torch.load(files.head, weights_only=True)
    original = backbone.load("tiny").model

    def unit_features(model):
        """Return the features (M, K, D) of the prompts, with clip's tokenizer."""
        words = [template.format(name) for template in run.contexts for name in run.classes]
        with torch.no_grad():
            features = normalize(model.encode_text(clip.tokenize(words)).float(), dim=-1)
        return features.view(len(run.contexts), len(run.classes), -1)

    class_weights = normalize(unit_features(clip_model).mean(dim=0), dim=-1)
    context_weights = normalize(unit_features(original).mean(dim=1), dim=-1)
    torch.testing.assert_close(head["weight"], class_weights, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head["context_weights"], context_weights, rtol=1e-4, atol=1e-5)
    assert head["logit_scale"] == pytest.approx(clip_model.logit_scale.exp().item())
    assert head["context_scale"] == pytest.approx(original.logit_scale.exp().item())
    assert head["logit_scale"] != pytest.approx(head["context_scale"], rel=1e-5)

    text_encoder = json.loads(files.card.read_text())["text_encoder"]
    assert [*text_encoder.values()] == ["fine-tuned"] * 3 + ["original"]


def test_card_describes_files_original_and_run(files, trained):
    card = json.loads(files.card.read_text(encoding="utf-8"))
    page = files.readme.read_text(encoding="utf-8")
    for name, path in (("weights", files.weights), ("head", files.head)):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert card[name] == {"file": path.name, "sha256": digest, "bytes": path.stat().st_size}
        assert digest in page
    assert card["original"] == {"name": "tiny", "sha256": openai.TINY_SHA256}
    assert card["precision"] == "fp32" and card["open_clip_name"] is None
    assert set(card["text_encoder"].values()) == {"original"}

    record = json.loads((trained / "results.jsonl").read_text().splitlines()[-1])
    run = card["run"]
    for name in ("data_edition", "step", "prompts_digest", "clip_digest"):
        assert run[name] == record[name]
    assert run["hparams"] == {**record["hparams"], **get_hparams_and_facts(record, {})}
    assert run["test_environments"] == ["fluent3d"] and run["test_envs"] == [0]
    assert run["accuracies"]["fluent3d"]["in"] == record["env0_in_acc"]
    percent = f"{100 * record['env0_out_acc']:.1f}%"
    assert re.search(rf"\| fluent3d \(test environment\) \| .* \| {percent} \|", page)


def test_command_of_the_card_has_the_arguments_of_the_run(files, trained):
    command = json.loads(files.card.read_text())["run"]["command"]
    assert f"\n{command}\n" in files.readme.read_text()

    arguments = vars(build_parser().parse_args(shlex.split(command)[3:]))
    arguments["test_envs"] = find_test_envs(arguments["dataset"], arguments["test_envs"])
    recorded = saved.load_run(trained, "last", device="cpu").args
    names = (*export.REPEATED_ARGS, "hparams")
    assert {n: arguments[n] for n in names} == {n: recorded[n] for n in names}


def test_readme_names_data_by_its_folder_and_escapes_markdown(files):
    card = json.loads(files.card.read_text(encoding="utf-8"))
    card["run"]["dataset"] = "../somewhere/own3"
    card["run"]["hparams"] = {"contexts": ["a|b", "<i>", "`c`", "d\ne"]}
    page = export.render_readme(card, "x.json")
    assert page.startswith("# CARFT on own3\n") and "\nData: own3" in page
    assert "somewhere" not in page.replace(card["run"]["command"], "")

    row = next(line for line in page.splitlines() if line.startswith("| contexts"))
    assert row == r'| contexts | \["a\|b", "\<i\>", "\`c\`", "d\\ne"\] |'
