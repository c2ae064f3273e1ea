"""The names of our algorithms; only their classes, styles and hyperparameters stand elsewhere."""

from __future__ import annotations

# In the order of the README and of docs/peers.md.
ALGORITHMS = (
    "CARFT",
    "CLIPFineTune",
    "CLIPLinearProbe",
    "CLIPZeroShot",
    "CLIPood",
    "CLIPWiSEFT",
    "CLIPLPFT",
    "CLIPL2SP",
    "CLIPFeatureDistillation",
    "LDIFS",
    "LipsumFT",
    "CLIPMIRO",
    "FLYP",
    "CaRot",
    "CLIPLoRA",
)
# Those that train the text encoder, too, and make their head by it.
TEXT_TRAINING = ("FLYP", "CaRot")
