"""PE-Core and SigLIP 2: the same architecture, random and small, trained and restored."""

import math

import open_clip_folders
import pytest
import torch
from test_algorithms import make, minibatches, reopened, train

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.method import encoders, flyp
from domainbed_carft.method.penalties import LDIFSPenalty, MIROPenalty

PIXELS = 64
SMALLER = {"img_size": PIXELS, "embed_dim": 64, "depth": 4, "num_heads": 2}
SIGLIP_TEXT = open_clip_folders.MODELS["siglip"]["text_cfg"]


@pytest.fixture(scope="module", autouse=True)
def timm_models():
    """Registers the small image encoders with timm."""
    pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    timm = pytest.importorskip("timm")

    @timm.models.register_model
    def small_pe_core(pretrained=False, **options):
        """PE-Core's image encoder, narrow and of four blocks."""
        return timm.models.eva.vit_pe_core_tiny_patch16_384(
            **SMALLER, ref_feat_shape=(4, 4), attn_pool_num_heads=2, **options
        )

    @timm.models.register_model
    def small_siglip(pretrained=False, **options):
        """SigLIP's image encoder, which SigLIP 2 has kept, narrow and of four blocks."""
        return timm.models.vision_transformer.vit_base_patch16_siglip_224(**SMALLER, **options)


def vision_config(name, projection):
    return {
        "image_size": PIXELS,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": projection,
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> the name for clip_backbone of a folder, with open_clip's configuration of it."""
    place = tmp_path_factory.mktemp("families")
    pe_core = open_clip_folders.write(
        place / "pe-core",
        "gelu",
        custom_text=True,
        vision_cfg=vision_config("small_pe_core", None),
        text_cfg={**open_clip_folders.TEXT, "context_length": 32},
    )
    siglip_2 = open_clip_folders.write(
        place / "siglip-2",
        "siglip",
        vision_cfg=vision_config("small_siglip", "none"),
        text_cfg={**SIGLIP_TEXT, "act_kwargs": {"approximate": "tanh"}},
    )
    return {"PE-Core": pe_core, "SigLIP 2": siglip_2}


# Those that do something of their own with the encoders.
METHODS = ("CARFT", "LDIFS", "LipsumFT", "CLIPMIRO", "FLYP", "CaRot", "CLIPLoRA")
# The methods that refuse a family, with the reason, and the hparams that are the remedy.
REFUSED = {
    ("SigLIP 2", "LipsumFT"): ("CLIP's words, which the text encoder of .* does not read", {}),
    ("SigLIP 2", "CaRot"): (
        "needs an image encoder that ends in a linear projection; .* Set it to 0",
        {"carot_orthogonality": 0.0},
    ),
}


@pytest.mark.parametrize("family", ["PE-Core", "SigLIP 2"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_moves_all_that_it_trains_or_is_refused(folders, tmp_path, family, name):
    reason, remedy = REFUSED.get((family, name), ("", {}))
    if reason:
        with pytest.raises(CarftError, match=reason):
            make(folders[family], name)
        if not remedy:
            return

    algorithm = make(folders[family], name, **remedy)
    trained = {name: p for name, p in algorithm.named_parameters() if p.requires_grad}
    start = {name: p.detach().clone() for name, p in trained.items()}
    values = train(algorithm, 2)
    unmoved = [name for name, p in trained.items() if torch.equal(p, start[name])]
    assert not unmoved and all(math.isfinite(value["loss"]) for value in values)

    run = reopened(algorithm, tmp_path)
    x = torch.cat([x for x, _ in minibatches(7)])
    with torch.no_grad():
        torch.testing.assert_close(run.algorithm.predict(x), algorithm.eval().predict(x))


@pytest.mark.parametrize("family", ["PE-Core", "SigLIP 2"])
def test_features_are_open_clips_and_activations_have_the_batch_first(folders, family):
    import open_clip

    loaded = backbone.load(folders[family])
    place = folders[family].removeprefix("open_clip:")
    reference = open_clip.create_model(place).eval()
    pictures = torch.randn(3, 3, PIXELS, PIXELS)
    with torch.no_grad():
        features = loaded.model.visual(pictures)
        torch.testing.assert_close(features, reference.encode_image(pictures))
        for penalty in (LDIFSPenalty, MIROPenalty):
            places = {penalty.name: penalty.places}
            encoding = encoders.encode(loaded.model.visual, pictures, False, places)
            outputs = encoding.activations[penalty.name]
            assert len(outputs) == 5 and {output.shape[0] for output in outputs} == {3}


def test_pe_cores_projection_is_that_of_its_features(folders):
    encoder = backbone.load(folders["PE-Core"]).model.visual
    inputs = []
    encoder.trunk.head.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    with torch.no_grad():
        features = encoder(torch.randn(2, 3, PIXELS, PIXELS))
    by_projection = inputs[0] @ flyp.visual_projection(encoder) + encoder.trunk.head.bias
    torch.testing.assert_close(by_projection, features)
