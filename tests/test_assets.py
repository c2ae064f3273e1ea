"""The embedded images, their split, their contexts and the tiny CLIP model."""

import csv
import io
import runpy
from importlib import resources

import pytest
import torch
from fake_checkout import REPO

ASSETS = resources.files("domainbed_carft") / "assets"


def test_pretraining_and_benchmark_share_no_emoji(capsys):
    tool = runpy.run_path(str(REPO / "tools" / "build_emoji.py"))
    tool["check_styles"]()
    assert "emoji_styles.zip" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:pkg_resources")
def test_tiny_was_pretrained_on_all_tokens_of_its_prompts():
    import clip

    state = torch.load(io.BytesIO((ASSETS / "tiny.pt").read_bytes()), weights_only=True)
    rows = csv.DictReader(io.StringIO((ASSETS / "emoji_split.csv").read_text("ascii")))
    classes = {row["class"] for row in rows} - {""}
    contexts = (ASSETS / "contexts" / "emoji.txt").read_text("ascii").splitlines()
    tokens = clip.tokenize([line.format(name) for line in contexts for name in classes]).long()

    is_trained = state["token_embedding.weight"].abs().sum(dim=1) > 0
    # The padding after the end token is token 0, which no caption uses.
    assert is_trained[tokens[tokens > 0]].all()
