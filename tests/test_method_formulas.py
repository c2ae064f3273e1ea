"""The formulas of docs/methods, written in float64 and compared with the training loss."""

import functools
import math

import pytest
import torch
from test_algorithms import CLASSES, make, minibatches

from domainbed_carft.clips import backbone

load = functools.cache(backbone.load)


class Symbols:
    """The symbols of the docs, in float64, for an algorithm and a batch."""

    def __init__(self, algorithm, seed):
        x, self.y = (torch.cat(part) for part in zip(*minibatches(seed)))
        self.algorithm = algorithm
        self.images = algorithm.input(x)
        self.N = len(self.y)
        self.s = float(algorithm.logit_scale)
        clip_model = load(algorithm.hparams["clip_backbone"])
        self.original = clip_model.model.visual
        self.f = unit(algorithm.encoder(self.images))
        self.f_0 = unit(self.original(self.images))

        prompts = [[c.replace("{}", k) for k in CLASSES] for c in algorithm.hparams["contexts"]]
        T = unit(backbone.encode_prompts(clip_model, prompts))
        self.T = T
        self.t = unit(T.mean(dim=0))  # of the classes
        self.c = unit(T.mean(dim=1))  # of the contexts

    def ce(self, f):
        """Return CE(f) with the head h, b, which contains s or is multiplied by it."""
        head = self.algorithm.head
        factor = float(self.algorithm.head_factor)
        return cross_entropy(factor * f @ head.weight.double().T + head.bias.double(), self.y)

    def kl(self, rows):
        """Return the mean over images of KL(p_0 || p), with p the softmax over these rows."""
        scale = self.algorithm.hparams["context_scale"]
        s = self.s if scale == "logit_scale" else scale
        p_0, p = ((s * f @ rows.T).softmax(dim=1) for f in (self.f_0, self.f))
        if self.algorithm.hparams["kl_direction"] == "fine-tuned||original":
            p_0, p = p, p_0
        return (p_0 * (p_0 / p).log()).sum(dim=1).mean()

    def activations(self, first):
        """Return z_l and z_0l, (N, T, C), after module ``first`` and each quarter of the blocks."""
        return [recorded(e, first, self.images) for e in (self.algorithm.encoder, self.original)]


def unit(v, dim=-1):
    v = v.detach().double()
    return v / v.norm(dim=dim, keepdim=True)


def cross_entropy(logits, y):
    return -torch.stack([row.log_softmax(0)[k] for row, k in zip(logits, y)]).mean()


def recorded(encoder, first, images):
    blocks = encoder.transformer.resblocks
    ends = [blocks[math.ceil(len(blocks) * quarter / 4) - 1] for quarter in (1, 2, 3, 4)]
    outputs = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: outputs.append(output.double()))
        for module in (getattr(encoder, first), *ends)
    ]
    with torch.no_grad():
        encoder(images)
    for hook in hooks:
        hook.remove()

    start = outputs[0].flatten(2).transpose(1, 2) if outputs[0].ndim == 4 else outputs[0]
    return [start, *(output.transpose(0, 1) for output in outputs[1:])]


def carft(it):
    return it.ce(it.f) + it.algorithm.hparams["kl_weight"] * it.kl(it.c)


def fine_tuning(it):
    return it.ce(it.f)


def linear_probe(it):
    return it.ce(it.f_0)


def clipood(it):
    head_start = it.algorithm.hparams["margin"] * (1 - it.t[it.y] @ it.t.T)
    return cross_entropy(it.s * (it.f @ it.t.T + head_start), it.y)


def lp_ft(it):
    is_first_phase = it.algorithm.steps_taken < it.algorithm.hparams["lp_steps"]
    return it.ce(it.f_0 if is_first_phase else it.f)


def l2_sp(it):
    pairs = zip(it.algorithm.encoder.parameters(), it.original.parameters())
    distance = sum(((w - w_0).double() ** 2).sum() for w, w_0 in pairs)
    return it.ce(it.f) + it.algorithm.hparams["sp_weight"] * distance


def feature_distillation(it):
    distance = ((it.f - it.f_0) ** 2).sum() / it.N
    return it.ce(it.f) + it.algorithm.hparams["fd_weight"] * distance


def ldifs(it):
    dim = 1 if it.algorithm.hparams["ldifs_axis"] == "token" else 2
    pairs = zip(*it.activations("ln_pre"))
    total = sum(((unit(z, dim) - unit(z_0, dim)) ** 2).mean() for z, z_0 in pairs)
    return it.ce(it.f) + it.algorithm.hparams["ldifs_weight"] / 5 * total


def lipsum_ft(it):
    (penalty,) = it.algorithm.terms.active
    torch.manual_seed(5)
    u = unit(penalty.random_texts(80, 8))
    gap = it.s * it.f @ u.T - it.s * it.f_0 @ u.T
    return it.ce(it.f) + it.algorithm.hparams["lipsum_weight"] / 2 * (gap**2).mean()


def miro(it):
    raw = it.algorithm.terms.miro_variances
    variances = [(1 + b.detach().double().exp()).log() + 1e-5 for b in raw]
    terms = zip(*it.activations("conv1"), variances)
    total = sum((((z - z_0) ** 2 / v + v.log()) / 2).mean() for z, z_0, v in terms)
    return it.ce(it.f) + it.algorithm.hparams["miro_weight"] * total


def captions(it, encoder):
    """Return unit features of a caption of each image, its class in a random context."""
    torch.manual_seed(5)
    drawn = torch.randint(len(it.algorithm.tokens), it.y.shape)
    with torch.no_grad():
        return unit(encoder(it.algorithm.tokens[drawn, it.y]))


def flyp_logits(it):
    scale = it.algorithm.log_scale.detach().double().exp()
    return scale * it.f @ captions(it, it.algorithm.text).T


def flyp(it):
    losses = []
    logits = flyp_logits(it)
    for G in (logits, logits.T):
        partners = [(it.y == y).nonzero().flatten() for y in it.y]
        if it.algorithm.hparams["flyp_targets"] == "diagonal":
            partners = torch.arange(it.N).split(1)
        rows = zip(G.log_softmax(dim=1), partners)
        losses.append(-sum(row[indices].mean() for row, indices in rows) / it.N)
    return sum(losses) / 2


def carot(it):
    P = it.algorithm.encoder.proj.detach().double()
    constraint = ((P.T @ P - torch.eye(P.shape[1])) ** 2).sum().sqrt()
    loss = flyp(it) + it.algorithm.hparams["carot_orthogonality"] * constraint
    if it.algorithm.steps_taken == 0:
        return loss

    teacher = it.algorithm.teacher
    with torch.no_grad():
        F_teacher = unit(teacher.encoder(it.images))
    scale = teacher.log_scale.double().exp()
    G_teacher = scale * F_teacher @ captions(it, teacher.text).T
    G = flyp_logits(it)
    distillation = sum(
        -(targets.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
        for targets, logits in ((G_teacher, G), (G_teacher.T, G.T))
    )
    return loss + it.algorithm.hparams["carot_distillation"] * distillation


def fd_align(it):
    g = it.algorithm.centres.double()
    assert len(g) == 20
    return it.ce(it.f) + it.algorithm.hparams["kl_weight"] * it.kl(g)


def starft(it):
    torch.manual_seed(5)
    drawn = torch.randint(len(it.T), it.y.shape)
    u = it.T[drawn, it.y]
    losses = []
    for f_0, f, y in zip(it.f_0, it.f, it.y):
        others = u if it.algorithm.hparams["starft_rows"] == "captions" else u[it.y != y]
        p_0, p = ((it.s * others @ feature).softmax(0) for feature in (f_0, f))
        losses.append((p_0 * (p_0 / p).log()).sum())
    t, T = it.algorithm.steps_taken, it.algorithm.hparams["total_steps"]
    weight = it.algorithm.hparams["kl_weight"] * (1 - t / T)
    return it.ce(it.f) + weight * sum(losses) / it.N


LOSSES = {
    "CARFT": carft,
    "CLIPFineTune": fine_tuning,
    "CLIPLinearProbe": linear_probe,
    "CLIPood": clipood,
    "CLIPLPFT": lp_ft,
    "CLIPL2SP": l2_sp,
    "CLIPFeatureDistillation": feature_distillation,
    "LDIFS": ldifs,
    "LipsumFT": lipsum_ft,
    "CLIPMIRO": miro,
    "FLYP": flyp,
    "CaRot": carot,
    "FDAlign": fd_align,
    "StarFT": starft,
}
OPTIONS = [
    *((algorithm, {}) for algorithm in LOSSES),
    ("CARFT", {"kl_direction": "fine-tuned||original", "context_scale": 20.0}),
    ("CARFT", {"head_scale": "outside", "kl_weight": 2.5}),
    ("LDIFS", {"ldifs_axis": "token"}),
    ("FLYP", {"flyp_targets": "diagonal"}),
    ("StarFT", {"starft_rows": "captions"}),
]


@pytest.mark.parametrize(("name", "overrides"), OPTIONS)
def test_training_loss_equals_documented_formula(random_tiny, name, overrides):
    if name == "FDAlign":
        pytest.importorskip("sklearn")
    algorithm = make(random_tiny, name, warmup_steps=0, lr=3e-3, **overrides)
    for seed in range(3):
        with torch.no_grad():
            expected = LOSSES[name](Symbols(algorithm, seed)).item()
        torch.manual_seed(5)
        loss = algorithm.update(minibatches(seed))["loss"]
        assert loss == pytest.approx(expected, rel=1e-5), f"step {seed}"


@pytest.mark.parametrize("direction", ["original||fine-tuned", "fine-tuned||original"])
def test_measured_drift_is_the_documented_kl(random_tiny, direction):
    algorithm = make(
        random_tiny, "CLIPFineTune", drift_every=1, kl_direction=direction, warmup_steps=0, lr=3e-3
    )
    for seed in range(3):
        it = Symbols(algorithm, seed)
        measured = algorithm.update(minibatches(seed))["loss_kl"]
        assert measured == pytest.approx(it.kl(it.c).item(), rel=1e-4, abs=1e-6), f"step {seed}"
    assert measured > 1e-3


@pytest.mark.parametrize("name", ["CARFT", "CLIPZeroShot", "FLYP", "CLIPLoRA"])
def test_untrained_algorithm_predicts_like_zero_shot_clip(random_tiny, name):
    it = Symbols(make(random_tiny, name), seed=0)
    x = torch.cat([x for x, _ in minibatches(0)])
    expected = it.s * it.f_0 @ it.t.T
    torch.testing.assert_close(it.algorithm.predict(x).double(), expected, rtol=1e-4, atol=1e-4)


def averaged_weights(algorithm):
    """Return the weights averaged by CaRot's teacher as one float64 vector."""
    weights = [*algorithm.encoder.parameters(), *algorithm.text.parameters(), algorithm.log_scale]
    return torch.cat([weight.detach().double().flatten() for weight in weights])


def test_carot_teacher_follows_the_documented_average(random_tiny):
    T = 20
    algorithm = make(random_tiny, "CaRot", total_steps=T, carot_interval=2, warmup_steps=0)
    teacher = averaged_weights(algorithm)
    for t in range(6):
        algorithm.update(minibatches(t))
        if t % 2 == 0:
            m = 0.05 + 0.85 * min(1, 5 * t / T)
            teacher = m * teacher + (1 - m) * averaged_weights(algorithm)
        torch.testing.assert_close(
            averaged_weights(algorithm.teacher), teacher, rtol=1e-5, atol=1e-6
        )
