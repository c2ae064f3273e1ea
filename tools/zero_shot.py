"""Zero-shot accuracy and context awareness of a CLIP on EmojiStyles.

    python tools/zero_shot.py [--weights FILE] [--pictures WORK/pretrain.npz --set-aside 0.2]

Prints accuracy over the ten classes for each domain, and how often the right style and the
right photometric effect are recognised. With --pictures it judges on the base names that
`pretrain_tiny.py --set-aside` left out instead, so that a recipe can be chosen without a look
at the held-out concepts.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import clip
import numpy as np
import torch
import torch.nn.functional as F
from build_emoji_styles import ASSETS
from captions import Facts, contexts
from clip.model import CLIP, build_model
from emoji_concepts import CLASS_SUBGROUPS
from photometric import EFFECTS, RESOLUTION, normalise, view
from PIL import Image
from pretrain_data import load_pictures

CLASSES = sorted(CLASS_SUBGROUPS)


def read_archive(path: Path) -> tuple[torch.Tensor, list[Facts]]:
    """The held-out pictures, uint8 (n, 3, 64, 64), with their domain and class."""
    pictures, facts = [], []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".png"):
                domain, cls, _ = name.split("/")
                pictures.append(np.asarray(Image.open(io.BytesIO(archive.read(name)))))
                facts.append(Facts(style=domain, kind=cls))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), facts


@torch.no_grad()
def image_features(model: CLIP, pictures: torch.Tensor) -> torch.Tensor:
    """Normalised features of pictures in [0, 1] at any size, in batches."""
    found = []
    for part in pictures.split(256):
        if part.shape[-1] != RESOLUTION:
            part = F.interpolate(
                part, size=(RESOLUTION, RESOLUTION), mode="bicubic", antialias=True
            ).clamp(0, 1)
        found.append(F.normalize(model.encode_image(normalise(part)), dim=1))
    return torch.cat(found)


@torch.no_grad()
def text_weights(model: CLIP) -> tuple[torch.Tensor, torch.Tensor]:
    """Class weights (10, d) and context weights (36, d), as CAR-FT makes them."""
    prompts = [template.format(cls) for template, _ in contexts() for cls in CLASSES]
    text = F.normalize(model.encode_text(clip.tokenize(prompts)), dim=1)
    text = text.view(len(contexts()), len(CLASSES), -1)
    return F.normalize(text.mean(dim=0), dim=1), F.normalize(text.mean(dim=1), dim=1)


def recognised(
    features: torch.Tensor, weights: torch.Tensor, field: str, truth: list[str]
) -> float:
    """How often the best of the contexts that state `field` states the truth."""
    rows = [i for i, (_, facts) in enumerate(contexts()) if getattr(facts, field) is not None]
    names = [getattr(contexts()[i][1], field) for i in rows]
    best = (features @ weights[rows].T).argmax(dim=1).tolist()
    return float(np.mean([names[b] == t for b, t in zip(best, truth, strict=True)]))


def evaluate(model: CLIP, pictures: torch.Tensor, facts: list[Facts]) -> None:
    """Prints all figures."""
    pixels = pictures.float() / 255
    by_class, by_context = text_weights(model)
    features = image_features(model, pixels)
    guess = (features @ by_class.T).argmax(dim=1).tolist()
    right = np.array([CLASSES[g] == f.kind for g, f in zip(guess, facts, strict=True)])
    styles = np.array([f.style for f in facts])
    kinds = np.array([f.kind for f in facts])
    per_domain = {s: float(right[styles == s].mean()) for s in sorted({str(s) for s in styles})}
    print("zero-shot", {s: round(a, 3) for s, a in per_domain.items()})
    print(f"zero-shot, average over domains {np.mean(list(per_domain.values())):.3f}")
    print("by class", {k: round(float(right[kinds == k].mean()), 2) for k in CLASSES})
    print(f"style recognised {recognised(features, by_context, 'style', list(styles)):.3f}")
    generator = torch.Generator().manual_seed(0)
    scores = {}
    for index, effect in enumerate(EFFECTS):
        effects = torch.full((len(pixels),), index)
        seen = image_features(model, view(pixels, effects, generator, augment=False))
        scores[effect] = recognised(seen, by_context, "effect", [effect] * len(pixels))
    print("effect recognised", {e: round(s, 2) for e, s in scores.items()})
    print(f"effect recognised, average {np.mean(list(scores.values())):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--weights", type=Path, default=ASSETS / "tiny.pt")
    parser.add_argument("--pictures", type=Path, help="pretrain.npz, to judge on a part of it")
    parser.add_argument("--set-aside", type=float, default=0.2, help="that part")
    args = parser.parse_args()
    model = build_model(torch.load(args.weights, weights_only=True)).float()
    if args.pictures is None:
        evaluate(model, *read_archive(ASSETS / "emoji_styles.zip"))
        return
    _, aside = load_pictures(args.pictures, args.set_aside)
    if aside is None:
        parser.error("--set-aside leaves nothing to judge on")
    evaluate(model, aside.pixels, aside.facts)


if __name__ == "__main__":
    main()
