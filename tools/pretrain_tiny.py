"""Pre-trains the tiny CLIP by contrastive learning on the emoji that are not held out.

    python tools/pretrain_tiny.py --work-dir WORK

WORK holds pretrain.npz (build_emoji_styles.py writes it), the checkpoint and the log. A run
that was stopped goes on from its last checkpoint when started again with the same arguments:
every step draws from generators seeded by (seed, step), so it ends as an unbroken one would.
The result, in OpenAI's format, is written to the package's assets.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from build_emoji_styles import ASSETS
from clip.model import CLIP
from pretrain_data import Pictures, draw_batch, load_pictures
from torch.nn.attention import SDPBackend, sdpa_kernel

#: OpenAI's constructor: embed, (resolution, layers, width, patch), (text length, vocabulary,
#: width, heads, layers). Widths are multiples of 64, from which `clip` infers the heads.
SHAPE = (128, 48, 4, 128, 8, 77, 49_408, 64, 1, 3)
MAX_LOGIT_SCALE = math.log(100.0)
#: Arguments that change the weights, so that a checkpoint belongs to their values.
RECIPE = ("steps", "batch_size", "lr", "weight_decay", "warmup", "seed", "bf16", "set_aside")


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor, truth: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """CLIP's symmetric loss, where a caption may be true of several pictures.

    The target of each picture is spread evenly over the captions true of it, and the target of
    each caption over the pictures it is true of; with one of each it is CLIP's loss.

    Args:
        image, text: unnormalised features, (n, d).
        logit_scale: logarithm of the scale.
        truth: bool, (pictures, captions), true on the diagonal.

    Returns:
        The loss, and the share of pictures whose nearest caption is true of them.
    """
    logits = logit_scale.exp() * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    target = truth.to(logits.dtype)
    by_image = -(target / target.sum(1, keepdim=True) * logits.log_softmax(dim=1)).sum(1)
    by_text = -(target / target.sum(0, keepdim=True) * logits.log_softmax(dim=0)).sum(0)
    right = truth.gather(1, logits.argmax(dim=1, keepdim=True)).float().mean()
    return (by_image.mean() + by_text.mean()) / 2, float(right)


def make_optimiser(model: CLIP, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW; no decay on biases, norms, embeddings and the scale."""
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and "embedding" not in name
        (decayed if matrix else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def rate(step: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save_atomically(content: object, path: Path) -> None:
    partial = path.with_suffix(".part")
    torch.save(content, partial)
    os.replace(partial, path)


def export(model: CLIP, used: torch.Tensor, longest: int, path: Path) -> None:
    """Writes the weights in OpenAI's format and says how large they are.

    Embeddings of tokens and positions that no caption has reached are zeroed. Values are rounded
    to what half precision can hold, as OpenAI's are, because `clip` loads through half
    precision: so every way of loading gives the same numbers.
    """
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    state["token_embedding.weight"][~used] = 0
    state["positional_embedding"][longest:] = 0
    state = {k: v.half().float() for k, v in state.items()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    partial = path.with_suffix(".part")
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, path)
    data = buffer.getvalue()
    print(
        f"{path.name}: {len(data)} bytes, {len(zlib.compress(data, 6))} deflated, "
        f"{int(used.sum())} tokens, SHA-256 {hashlib.sha256(data).hexdigest()}",
        flush=True,
    )


@dataclass
class Run:
    """State of a run: everything a checkpoint holds."""

    model: CLIP
    optimiser: torch.optim.Optimizer
    used: torch.Tensor
    recipe: dict[str, float]
    step: int = 0
    longest: int = 0

    def save(self, path: Path) -> None:
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
        state |= {"used": self.used, "step": self.step, "longest": self.longest}
        state |= {"recipe": self.recipe}
        save_atomically(state, path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; raises ValueError if it is that of another recipe."""
        state = torch.load(path, weights_only=True)
        if state["recipe"] != self.recipe:
            raise ValueError(
                f"{path} was trained with {state['recipe']}, now asked for is {self.recipe}; give "
                "the same arguments, or another --work-dir with a copy of pretrain.npz"
            )
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.used, self.step, self.longest = state["used"], state["step"], state["longest"]


def train_step(run: Run, data: Pictures, args: argparse.Namespace) -> tuple[float, float]:
    """One update; returns the loss and the in-batch accuracy."""
    batch = draw_batch(data, args.batch_size, args.seed, run.step)
    for group in run.optimiser.param_groups:
        group["lr"] = args.lr * rate(run.step, args.steps, args.warmup)
    # For so few tokens plain attention is a quarter faster on a CPU than the fused kernels.
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


def train(run: Run, data: Pictures, args: argparse.Namespace) -> None:
    """Steps until `args.steps`, with a log line every 50 and a checkpoint every `save_every`."""
    checkpoint, log = args.work_dir / "checkpoint.pt", args.work_dir / "pretrain.log"
    started, first = time.monotonic(), run.step
    recent: list[tuple[float, float]] = []
    while run.step < min(args.steps, args.stop_at or args.steps):
        recent.append(train_step(run, data, args))
        if run.step % 50 == 0 or run.step == args.steps:
            loss, right = np.mean(recent, axis=0)
            recent.clear()
            pace = (time.monotonic() - started) / (run.step - first)
            line = (
                f"step {run.step}/{args.steps} loss {loss:.3f} accuracy {right:.3f} "
                f"scale {run.model.logit_scale.exp().item():.1f} {pace:.3f} s/step "
                f"ETA {pace * (args.steps - run.step) / 60:.1f} min"
            )
            print(line, flush=True)
            with log.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        if run.step in (args.steps, args.stop_at) or run.step % args.save_every == 0:
            run.save(checkpoint)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work-dir", type=Path, default=Path("work"))
    parser.add_argument("--output", type=Path, default=ASSETS / "tiny.pt")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight-decay", type=float, default=0.2)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--set-aside", type=float, default=0.0, help="share of base names kept for development"
    )
    parser.add_argument("--stop-at", type=int, default=0, help="pause the run at this step")
    parser.add_argument("--export-only", action="store_true", help="export the checkpoint as is")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    data, _ = load_pictures(args.work_dir / "pretrain.npz", args.set_aside)
    model = CLIP(*SHAPE)
    run = Run(
        model,
        make_optimiser(model, args.lr, args.weight_decay),
        torch.zeros(model.vocab_size, dtype=torch.bool),
        {name: getattr(args, name) for name in RECIPE},
    )
    if (args.work_dir / "checkpoint.pt").exists():
        run.load(args.work_dir / "checkpoint.pt")
    if not args.export_only:
        train(run, data, args)
    export(run.model, run.used, run.longest, args.output)


if __name__ == "__main__":
    main()
