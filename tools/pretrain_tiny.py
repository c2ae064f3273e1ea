"""Pre-train the tiny CLIP model by contrastive learning on emoji that are not held out.

    python tools/pretrain_tiny.py --work-dir WORK --bf16

WORK contains pretrain.npz, written by build_emoji.py. Every step uses generators seeded by (seed,
step). The weights, in OpenAI's format, and the contexts are written to the package's assets.

A caption states up to three facts about an image: its photometric effect, its style, and the thing
that it shows. Facts are omitted at random, so a caption can be true of several images of a batch,
and the target is then spread over them.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import clip
import numpy as np
import torch
import torch.nn.functional as F
from build_emoji import ASSETS, Concept, read_split
from clip.model import CLIP
from torch.nn.attention import SDPBackend, sdpa_kernel

#: Style -> phrases; the first three are also in the contexts file.
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "fluent3d": (
        "3d render",
        "glossy 3d icon",
        "shiny plastic figure",
        "rendering",
        "plastic toy",
        "3d sculpture",
        "video game image",
    ),
    "line": (
        "line drawing",
        "black and white outline",
        "ink sketch",
        "sketch",
        "pencil drawing",
        "doodle",
        "tattoo",
    ),
    "noto": (
        "shaded cartoon",
        "soft colorful emoji",
        "rounded cartoon icon",
        "shaded illustration",
        "colorful rounded drawing",
        "cartoon with soft shadows",
    ),
    "twemoji": (
        "flat cartoon",
        "flat vector icon",
        "simple flat sticker",
        "flat illustration",
        "minimal flat drawing",
        "clip art image",
    ),
}
#: Effect -> adjectives; the first two are also in the contexts file.
EFFECT_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain", "clean", "clear", "good"),
    "grayscale": ("grayscale", "gray", "colorless", "monochrome"),
    "inverted": ("inverted", "negative", "reversed"),
    "dark": ("dark", "dim", "underexposed", "night"),
    "bright": ("bright", "pale", "faded", "overexposed"),
    "blurry": ("blurry", "blurred", "unfocused", "fuzzy"),
    "pixelated": ("pixelated", "blocky", "low resolution", "mosaic"),
    "rotated": ("rotated", "tilted", "turned", "crooked"),
    "tinted": ("tinted", "stained", "toned"),
    "noisy": ("noisy", "grainy", "dirty", "speckled"),
    "small": ("small", "tiny", "distant", "little"),
    "cropped": ("cropped", "close-up", "zoomed", "cut"),
}
#: Words that state no fact, so that the model learns to ignore them.
_MEDIA = ("image", "image", "photo", "image", "depiction", "rendition", "art", "drawing")
_FILLERS = ("nice", "cool", "weird", "bad", "large", "good", "big", "cute", "real")
_DETERMINERS = ("a", "a", "a", "the", "one", "my", "this", "an", "")

#: Words for sub-groups without a class; the others are their names with spaces.
_OTHER_KINDS = {
    "alphanum": "sign",
    "av-symbol": "sign",
    "award-medal": "medal",
    "book-paper": "paper",
    "body-parts": "body part",
    "country-flag": "flag",
    "currency": "sign",
    "dishware": "dish",
    "drink": "drink",
    "emotion": "symbol",
    "event": "party",
    "face-costume": "monster",
    "gender": "sign",
    "geometric": "shape",
    "household": "furniture",
    "light-video": "device",
    "musical-instrument": "instrument",
    "office": "office thing",
    "other-symbol": "symbol",
    "other-object": "object",
    "person-symbol": "silhouette",
    "place-geographic": "landscape",
    "place-map": "map",
    "place-other": "place",
    "punctuation": "mark",
    "religion": "symbol",
    "sky-weather": "weather",
    "subdivision-flag": "flag",
    "time": "clock",
    "transport-sign": "sign",
    "warning": "sign",
    "zodiac": "sign",
}

#: Sub-groups of the ten classes with a specific word; the others use the class word.
_GROUP_WORDS = {
    "animal-bird": "bird",
    "animal-bug": "bug",
    "animal-mammal": "mammal",
    "animal-marine": "sea animal",
    "animal-reptile": "reptile",
    "cat-face": "cat",
    "face-smiling": "smiling face",
    "family": "family",
    "food-fruit": "fruit",
    "food-sweet": "sweet food",
    "food-vegetable": "vegetable",
    "person-sport": "person doing sport",
    "plant-flower": "flower",
    "transport-air": "flying vehicle",
    "transport-ground": "land vehicle",
    "transport-water": "water vehicle",
}


@dataclass(frozen=True)
class Facts:
    """Facts that are true of an image, or stated by a caption (None: not stated).

    Attributes:
        effect: photometric effect.
        style: domain.
        kind: class word, or the word for the sub-group if it has no class.
        group: Unicode sub-group.
        key: the emoji.
    """

    effect: str | None = None
    style: str | None = None
    kind: str | None = None
    group: str | None = None
    key: str | None = None


def kind_word(concept: Concept) -> str:
    """Return the class word, or a word for the sub-group."""
    return concept.cls or _OTHER_KINDS.get(concept.subgroup, concept.subgroup.replace("-", " "))


def group_word(concept: Concept) -> str:
    """Return a word more specific than the class, such as "bird" or "fruit"."""
    return _GROUP_WORDS.get(concept.subgroup, kind_word(concept))


def contexts() -> list[tuple[str, Facts]]:
    """Return the 36 templates of the contexts file, each with the fact it states."""
    templates = []
    for style, phrases in STYLE_PHRASES.items():
        templates += [(_template(phrase), Facts(style=style)) for phrase in phrases[:3]]
    for effect, words in EFFECT_WORDS.items():
        templates += [(_template(f"{word} image"), Facts(effect=effect)) for word in words[:2]]
    return templates


def _template(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase} of a {{}}."


def caption(image: Facts, concept: Concept, rng: np.random.Generator) -> tuple[str, Facts]:
    """Draw a true caption of an image, and return it with the facts it states."""
    thing, stated = _thing(concept, rng)
    # Mostly one context at a time, like in the prompts for classes.
    draw = rng.random()
    style = image.style if draw < 0.4 else None
    effect = image.effect if 0.3 <= draw < 0.7 else None
    medium = _style_phrase(style, rng) if style else _pick(_MEDIA, rng)
    words = [_pick(_DETERMINERS, rng)]
    if effect:
        words.append(_pick(EFFECT_WORDS[effect], rng, favoured=2))
    elif rng.random() < 0.1:
        words.append(_pick(_FILLERS, rng))
    words += [medium, "of", _pick(_DETERMINERS, rng), thing]
    text = " ".join(word for word in words if word) + ("." if rng.random() < 0.7 else "")
    facts = Facts(effect=effect, style=style, kind=stated.kind, group=stated.group, key=stated.key)
    return text, facts


def _thing(concept: Concept, rng: np.random.Generator) -> tuple[str, Facts]:
    kind = kind_word(concept)
    known = Facts(kind=kind, group=concept.subgroup, key=concept.key)
    draw = rng.random()
    if draw < 0.55:
        return kind, Facts(kind=kind)
    if draw < 0.67:
        group = concept.subgroup if concept.subgroup in _GROUP_WORDS else None
        return group_word(concept), Facts(kind=kind, group=group)
    if draw < 0.8:
        return concept.name, known
    joints = ("{n}, a {k}", "{n}, a kind of {k}", "{k}: {n}", "{k}, a {n}")
    return _pick(joints, rng).format(n=concept.name, k=kind), known


def _style_phrase(style: str, rng: np.random.Generator) -> str:
    return _pick(STYLE_PHRASES[style], rng, favoured=3)


def _pick(options: tuple[str, ...], rng: np.random.Generator, favoured: int = 0) -> str:
    """Draw an option; with `favoured`, in three of four cases one of the first ones."""
    if favoured and rng.random() < 0.75:
        options = options[:favoured]
    return options[int(rng.integers(len(options)))]


def truth_matrix(images: list[Facts], captions: list[Facts]) -> np.ndarray:
    """Return which captions are true of which images: bool, (images, captions)."""
    is_true = np.ones((len(images), len(captions)), dtype=bool)
    for name in ("effect", "style", "kind", "group", "key"):
        actual = np.array([getattr(facts, name) for facts in images], dtype=object)
        stated = np.array([getattr(facts, name) for facts in captions], dtype=object)
        is_omitted = np.array([value is None for value in stated])
        is_true &= (actual[:, None] == stated[None, :]) | is_omitted[None, :]
    return is_true


EFFECTS = (
    "plain",
    "grayscale",
    "inverted",
    "dark",
    "bright",
    "blurry",
    "pixelated",
    "rotated",
    "tinted",
    "noisy",
    "small",
    "cropped",
)
RESOLUTION = 48
#: Share of augmented images whose colours are permuted.
COLOUR_SHUFFLES = 0.15
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Normalise images (n, 3, h, w) by CLIP's mean and standard deviation."""
    return (images - _MEAN) / _STD


def view(
    images: torch.Tensor, effects: torch.Tensor, generator: torch.Generator, augment: bool
) -> torch.Tensor:
    """Crop, flip and resize images at random to the model's resolution, and apply effects.

    Args:
        images: (n, 3, h, w) in [0, 1], on white.
        effects: (n,) indices into EFFECTS.
        generator: source of all randomness.
        augment: also crop, flip and shuffle colours at random.

    Returns:
        (n, 3, RESOLUTION, RESOLUTION) in [0, 1].
    """
    matrices = _windows(effects, generator, augment)
    shape = [len(images), 3, 2 * RESOLUTION, 2 * RESOLUTION]
    grid = F.affine_grid(matrices, shape, align_corners=False)
    # Inverted, because the padding is zero and must be white; at double resolution, then averaged,
    # against aliasing.
    ink = F.grid_sample(1 - images, grid, mode="bilinear", align_corners=False)
    result = 1 - F.avg_pool2d(ink, 2)
    if augment:
        result = _shuffle_colours(result, generator)
    return _apply_effects(result, effects, generator).clamp(0, 1)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low


def _windows(effects: torch.Tensor, generator: torch.Generator, augment: bool) -> torch.Tensor:
    """Draw affine matrices, (n, 2, 3), from output to input coordinates."""
    n = len(effects)
    spread = 1.0 if augment else 0.0
    scale = 1 + spread * _uniform(n, -0.25, 0.1, generator)
    aspect = torch.exp(spread * _uniform(n, -0.15, 0.15, generator))
    angle = spread * _uniform(n, -0.15, 0.15, generator)
    slack = (1 - scale).abs() + 0.05 * spread
    small, cropped, rotated = (effects == EFFECTS.index(e) for e in ("small", "cropped", "rotated"))
    scale = torch.where(small, _uniform(n, 2.0, 2.8, generator), scale)
    scale = torch.where(cropped, _uniform(n, 0.35, 0.5, generator), scale)
    slack = torch.where(small | cropped, 0.5 * (1 - scale).abs(), slack)
    turn = _uniform(n, 0.7, 2.4, generator) * _sign(n, generator)
    angle = torch.where(rotated, turn, angle)
    flip = _sign(n, generator) if augment else torch.ones(n)
    shift = slack[:, None] * (torch.rand(n, 2, generator=generator) * 2 - 1)
    cos, sin = torch.cos(angle), torch.sin(angle)
    wide, high = scale * aspect, scale / aspect
    rows = [flip * wide * cos, -high * sin, shift[:, 0], flip * wide * sin, high * cos, shift[:, 1]]
    return torch.stack(rows, dim=1).view(n, 2, 3)


def _sign(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)


def _shuffle_colours(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Permute the channels of some images, because shape is more informative than colour."""
    n = len(images)
    order = torch.rand(n, 3, generator=generator).argsort(dim=1)
    keep = torch.rand(n, generator=generator) >= COLOUR_SHUFFLES
    order[keep] = torch.arange(3)
    return images.gather(1, order[:, :, None, None].expand_as(images))


def _apply_effects(
    images: torch.Tensor, effects: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    result = images.clone()
    for index, name in enumerate(EFFECTS):
        rows = (effects == index).nonzero()[:, 0]
        change = _CHANGES.get(name)
        if change is not None and len(rows):
            result[rows] = change(images[rows], generator)
    return result


def _grayscale(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (x * _LUMA).sum(dim=1, keepdim=True).expand_as(x)


def _inverted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 1 - x


def _dark(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return x * _uniform(len(x), 0.2, 0.5, generator).view(-1, 1, 1, 1)


def _bright(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return 1 - (1 - x) * _uniform(len(x), 0.2, 0.45, generator).view(-1, 1, 1, 1)


def _blurry(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Apply a Gaussian blur, with a width per image of 1.5 to 3 pixels."""
    n, channels, height, width = x.shape
    sigma = _uniform(n, 1.5, 3.0, generator).repeat_interleave(channels)[:, None]
    taps = torch.arange(-6, 7)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    flat = F.pad(x.reshape(1, n * channels, height, width), (6, 6, 6, 6), mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=n * channels)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=n * channels)
    return flat.view_as(x)


def _pixelated(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Average over blocks of 4 or 6 pixels."""
    coarse = torch.rand(len(x), generator=generator) < 0.5
    by_size = [F.interpolate(F.avg_pool2d(x, s), scale_factor=float(s)) for s in (4, 6)]
    return torch.where(coarse.view(-1, 1, 1, 1), by_size[1], by_size[0])


def _tinted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Multiply with a saturated colour, like coloured glass."""
    colour = torch.rand(len(x), 3, generator=generator)
    low, high = colour.amin(1, keepdim=True), colour.amax(1, keepdim=True)
    colour = 0.3 + 0.7 * (colour - low) / (high - low + 1e-6)
    return x * colour[:, :, None, None]


def _noisy(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    level = _uniform(len(x), 0.15, 0.35, generator).view(-1, 1, 1, 1)
    return x + level * torch.randn(x.shape, generator=generator)


_CHANGES = {
    "grayscale": _grayscale,
    "inverted": _inverted,
    "dark": _dark,
    "bright": _bright,
    "blurry": _blurry,
    "pixelated": _pixelated,
    "tinted": _tinted,
    "noisy": _noisy,
}


#: Share of the batch from the ten classes; the rest are symbols, flags and so on.
CLASS_SHARE = 0.85
#: Line art is the hardest to learn from, so it is sampled more often than the other styles.
LINE_WEIGHT = 1.5
#: Probability that an image is left plain.
PLAIN_SHARE = 0.5


@dataclass
class Images:
    """The pre-training set in memory.

    Attributes:
        pixels: uint8, (n, 3, 64, 64).
        facts: facts of each image, without an effect.
        concepts: concept of each image.
        weights: probability of each image, float64, (n,).
    """

    pixels: torch.Tensor
    facts: list[Facts]
    concepts: list[Concept]
    weights: np.ndarray


def load_images(path: Path) -> Images:
    """Read pretrain.npz."""
    concepts, sides = read_split(ASSETS / "emoji_split.csv")
    by_key = {concept.key: concept for concept in concepts}
    stored = np.load(path)
    rows = [by_key[key] for key in stored["keys"]]
    if any(sides[concept.key] != "pretrain" for concept in rows):
        raise ValueError(
            f"{path} contains images that are not on the pre-training side of the split"
        )
    pixels = torch.from_numpy(stored["images"]).permute(0, 3, 1, 2).contiguous()
    facts = [
        Facts(style=str(style), kind=kind_word(c), group=c.subgroup, key=c.key)
        for style, c in zip(stored["styles"], rows, strict=True)
    ]
    return Images(pixels, facts, rows, _weights(rows, facts))


def _weights(concepts: list[Concept], facts: list[Facts]) -> np.ndarray:
    """Weight classes by the square root of their size, and base names of a class equally."""
    kinds = [c.cls for c in concepts]
    bases = [f"{c.cls}/{c.base}" for c in concepts]
    in_kind = {kind: kinds.count(kind) for kind in set(kinds)}
    in_base: dict[str, int] = {}
    for base in bases:
        in_base[base] = in_base.get(base, 0) + 1
    # Variants of one thing (man, woman, person) count as one and a half, not as three.
    raw = np.array([in_base[b] ** -0.6 for b in bases])
    raw *= np.array([LINE_WEIGHT if f.style == "line" else 1.0 for f in facts])
    weights = np.zeros(len(concepts))
    names = np.array(kinds)
    classes = [k for k in in_kind if k]
    scale = sum(math.sqrt(in_kind[k]) for k in classes)
    for kind in in_kind:
        share = CLASS_SHARE * math.sqrt(in_kind[kind]) / scale if kind else 1 - CLASS_SHARE
        mask = names == kind
        weights[mask] = share * raw[mask] / raw[mask].sum()
    return weights / weights.sum()


@dataclass
class Batch:
    images: torch.Tensor
    tokens: torch.Tensor
    truth: torch.Tensor


def draw_batch(data: Images, size: int, seed: int, step: int) -> Batch:
    """Draw the batch of a step, which depends only on seed and step."""
    rng = np.random.default_rng([seed, step])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    rows = rng.choice(len(data.facts), size=size, replace=False, p=data.weights)
    effects = np.where(rng.random(size) < PLAIN_SHARE, 0, rng.integers(1, len(EFFECTS), size=size))
    facts = [data.facts[row] for row in rows]
    # Line art is always gray, so "grayscale" would be invisible.
    gray = EFFECTS.index("grayscale")
    effects = np.array(
        [0 if e == gray and f.style == "line" else e for e, f in zip(effects, facts, strict=True)]
    )
    facts = [
        Facts(EFFECTS[e], f.style, f.kind, f.group, f.key)
        for e, f in zip(effects, facts, strict=True)
    ]
    captions = [caption(f, data.concepts[row], rng) for f, row in zip(facts, rows, strict=True)]
    tokens = clip.tokenize([text for text, _ in captions], truncate=True)
    # With causal attention, tokens after the end token have no effect.
    tokens = tokens[:, : int(tokens.argmax(dim=1).max()) + 1].long()
    pixels = data.pixels[torch.from_numpy(rows)].float() / 255
    images = view(pixels, torch.from_numpy(effects), generator, augment=True)
    truth = torch.from_numpy(truth_matrix(facts, [stated for _, stated in captions]))
    return Batch(normalise(images), tokens, truth)


#: OpenAI's constructor: embed, (resolution, layers, width, patch), (text length, vocabulary,
#: width, heads, layers). Widths are multiples of 64, from which `clip` infers the heads.
SHAPE = (128, 48, 4, 128, 8, 77, 49_408, 64, 1, 3)
MAX_LOGIT_SCALE = math.log(100.0)


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor, truth: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Return CLIP's symmetric loss for captions that can be true of several images.

    The target of each image is spread evenly over its true captions, and the target of each
    caption over its images. With one caption per image it is CLIP's loss.

    Args:
        image, text: unnormalised features, (n, d).
        logit_scale: logarithm of the scale.
        truth: bool, (images, captions), true on the diagonal.

    Returns:
        The loss, and the share of images whose nearest caption is true of them.
    """
    logits = logit_scale.exp() * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    target = truth.to(logits.dtype)
    by_image = -(target / target.sum(1, keepdim=True) * logits.log_softmax(dim=1)).sum(1)
    by_text = -(target / target.sum(0, keepdim=True) * logits.log_softmax(dim=0)).sum(0)
    right = truth.gather(1, logits.argmax(dim=1, keepdim=True)).float().mean()
    return (by_image.mean() + by_text.mean()) / 2, float(right)


def make_optimiser(model: CLIP, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return AdamW without decay on biases, norms, embeddings and the scale."""
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and "embedding" not in name
        (decayed if is_matrix else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def rate_factor(step: int, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def export(model: CLIP, used: torch.Tensor, longest: int, path: Path) -> None:
    """Write the weights in OpenAI's format, and print their size.

    Embeddings of unused tokens and positions are zeroed. Values are rounded to half precision, like
    OpenAI's, because `clip` loads through half precision.
    """
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    state["token_embedding.weight"][~used] = 0
    state["positional_embedding"][longest:] = 0
    state = {k: v.half().float() for k, v in state.items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path.write_bytes(data)
    print(
        f"{path.name}: {len(data)} bytes, {len(zlib.compress(data, 6))} deflated, "
        f"{int(used.sum())} tokens, SHA-256 {hashlib.sha256(data).hexdigest()}",
        flush=True,
    )


@dataclass
class Run:
    """State of the training: model, tokens used by captions, and length of the longest caption."""

    model: CLIP
    optimiser: torch.optim.Optimizer
    used: torch.Tensor
    step: int = 0
    longest: int = 0


def train_step(run: Run, data: Images, args: argparse.Namespace) -> tuple[float, float]:
    """Take a step, and return the loss and the in-batch accuracy."""
    batch = draw_batch(data, args.batch_size, args.seed, run.step)
    for group in run.optimiser.param_groups:
        group["lr"] = args.lr * rate_factor(run.step, args.steps, args.warmup)
    # With few tokens plain attention is a quarter faster on a CPU than the fused kernels.
    plain_attention = sdpa_kernel(SDPBackend.MATH)
    with plain_attention, torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
        image = run.model.encode_image(batch.images)
        text = run.model.encode_text(batch.tokens)
    loss, right = contrastive_loss(image.float(), text.float(), run.model.logit_scale, batch.truth)
    run.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimiser.step()
    with torch.no_grad():
        run.model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
    run.used[batch.tokens.unique()] = True
    run.longest = max(run.longest, batch.tokens.shape[1])
    run.step += 1
    return loss.item(), right


def train(run: Run, data: Images, args: argparse.Namespace) -> None:
    """Train to the last step, and print a line every 50 steps."""
    recent: list[tuple[float, float]] = []
    while run.step < args.steps:
        recent.append(train_step(run, data, args))
        if run.step % 50 == 0 or run.step == args.steps:
            loss, right = np.mean(recent, axis=0)
            recent.clear()
            print(f"step {run.step}/{args.steps} loss {loss:.3f} accuracy {right:.3f}", flush=True)


def write_contexts(path: Path) -> None:
    path.write_text("".join(f"{template}\n" for template, _ in contexts()), encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--work-dir", type=Path, default=Path("work"), help="folder with pretrain.npz"
    )
    parser.add_argument("--output", type=Path, default=ASSETS / "tiny.pt")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.2)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="use autocast to bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    write_contexts(ASSETS / "contexts" / "emoji.txt")
    data = load_images(args.work_dir / "pretrain.npz")
    model = CLIP(*SHAPE)
    optimiser = make_optimiser(model, args.lr, args.weight_decay)
    run = Run(model, optimiser, torch.zeros(model.vocab_size, dtype=torch.bool))
    train(run, data, args)
    export(run.model, run.used, run.longest, args.output)


if __name__ == "__main__":
    main()
