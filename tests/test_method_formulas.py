"""The formulas of docs/methods, each written out from its page and compared with what trains.

A page's first formula must be the one that stands here, so neither changes without the other.
"""

import functools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_algorithms import CLASSES, make, minibatches

from domainbed_carft.clips import backbone
from domainbed_carft.method.averages import LossValley
from domainbed_carft.method.clipood import margin_logits

PAGES = Path(__file__).parents[1] / "docs" / "methods"
LOSSES = {}  # page -> (formula, its value by hand)


def of_page(name, formula):
    """Register what computes the ``formula`` of a page."""

    def register(function):
        LOSSES[name] = (formula, function)
        return function

    return register


def formula_on(name):
    """The first displayed formula of a page."""
    text = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    return re.search(r"\$\$\n(.*?)\n\$\$", text, re.DOTALL)[1]


@functools.cache
def original_of(name):
    """The CLIP that training starts from, which nothing here changes."""
    return backbone.load(name)


class Symbols:
    """The symbols of the pages, in float64, for an algorithm and a batch."""

    def __init__(self, algorithm, seed):
        x, self.y = (torch.cat(part) for part in zip(*minibatches(seed)))
        self.algorithm = algorithm
        self.images = algorithm.input(x)
        self.N = len(self.y)
        self.s = float(algorithm.logit_scale)
        clip_model = original_of(algorithm.hparams["clip_backbone"])
        self.original = clip_model.model.visual
        self.f = unit(algorithm.encoder(self.images))
        self.f_0 = unit(self.original(self.images))

        prompts = [[c.replace("{}", k) for k in CLASSES] for c in algorithm.hparams["contexts"]]
        T = unit(backbone.text_features(clip_model, prompts))
        self.T = T
        self.t = unit(T.mean(dim=0))  # of classes, the mean over contexts
        self.c = unit(T.mean(dim=1))  # of contexts, the mean over classes

    def ce(self, f):
        """CE(f) under the head h, b, which holds s or is multiplied by it."""
        head = self.algorithm.head
        factor = float(self.algorithm.head_factor)
        return cross_entropy(factor * f @ head.weight.double().T + head.bias.double(), self.y)

    def kl(self, rows):
        """The mean over images of KL(p_0 || p), with p the softmax over these rows."""
        p_0, p = ((self.s * f @ rows.T).softmax(dim=1) for f in (self.f_0, self.f))
        return (p_0 * (p_0 / p).log()).sum(dim=1).mean()

    def activations(self, first):
        """z_l and z_0l after the module ``first`` and each quarter of the blocks, (N, T, C)."""
        return [recorded(e, first, self.images) for e in (self.algorithm.encoder, self.original)]


def unit(v):
    v = v.detach().double()
    return v / v.norm(dim=-1, keepdim=True)


def cross_entropy(logits, y):
    return -torch.stack([row.log_softmax(0)[k] for row, k in zip(logits, y)]).mean()


def recorded(encoder, first, images):
    blocks = encoder.transformer.resblocks
    ends = [blocks[len(blocks) * quarter // 4 - 1] for quarter in (1, 2, 3, 4)]
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


@of_page(
    "carft",
    r"L = \mathrm{CE}(f) + \lambda \, \frac{1}{N} \sum_{x} \mathrm{KL}\left( p_0(x) \,\Vert\, p(x) "
    r"\right), \quad p(x) = \mathrm{softmax}_m \left( s \, f(x) \cdot c_m \right)",
)
def carft(it):
    return it.ce(it.f) + it.algorithm.hparams["kl_weight"] * it.kl(it.c)


@of_page(
    "fine-tuning",
    r"L = \mathrm{CE}(f) = - \frac{1}{N} \sum_{x} \log \mathrm{softmax}_y \left( f(x) \cdot h_k + "
    r"b_k \right)",
)
def fine_tuning(it):
    h, b = it.algorithm.head.weight.double(), it.algorithm.head.bias.double()
    logits = [[f @ h[k] + b[k] for k in range(len(CLASSES))] for f in it.f]
    return -sum(torch.stack(row).softmax(0)[y].log() for row, y in zip(logits, it.y)) / it.N


@of_page(
    "linear-probe",
    r"L = - \frac{1}{N} \sum_{x} \log \mathrm{softmax}_y \left( s \, f_0(x) \cdot h_k \right)",
)
def linear_probe(it):
    return cross_entropy(it.s * it.f_0 @ it.algorithm.head.weight.double().T, it.y)


@of_page(
    "clipood",
    r"L = \mathrm{CE}\left( s \left( f \cdot t_k + m \, (1 - t_y \cdot t_k) \right) \right), \quad "
    r"\bar{w} = \frac{\sum_t \beta_t w_t}{\sum_t \beta_t}",
)
def clipood(it):
    head_start = it.algorithm.hparams["margin"] * (1 - it.t[it.y] @ it.t.T)
    return cross_entropy(it.s * (it.f @ it.t.T + head_start), it.y)


@of_page(
    "wise-ft",
    r"L = \mathrm{CE}(f), \quad w_\alpha = (1 - \alpha) \, w_0 + \alpha \, w",
)
def wise_ft(it):
    return it.ce(it.f)


@of_page("lp-ft", r"L_1(h) = \mathrm{CE}(f_0), \quad L_2(w, h) = \mathrm{CE}(f)")
def lp_ft(it):
    is_first_phase = it.algorithm.steps_taken < it.algorithm.hparams["lp_steps"]
    return it.ce(it.f_0 if is_first_phase else it.f)


@of_page("l2-sp", r"L = \mathrm{CE}(f) + \lambda \sum_i (w_i - w_{0,i})^2")
def l2_sp(it):
    pairs = zip(it.algorithm.encoder.parameters(), it.original.parameters())
    distance = sum(((w - w_0).double() ** 2).sum() for w, w_0 in pairs)
    return it.ce(it.f) + it.algorithm.hparams["sp_weight"] * distance


@of_page(
    "feature-distillation",
    r"L = \mathrm{CE}(f) + \lambda \, \frac{1}{N} \sum_{x} \lVert f(x) - f_0(x) \rVert^2",
)
def feature_distillation(it):
    distance = ((it.f - it.f_0) ** 2).sum() / it.N
    return it.ce(it.f) + it.algorithm.hparams["fd_weight"] * distance


@of_page(
    "ldifs",
    r"L = \mathrm{CE}(f) + \frac{\lambda}{5} \sum_{l=1}^{5} \mathrm{mean} \left( \frac{z_l}{\lVert "
    r"z_l \rVert} - \frac{z_{0,l}}{\lVert z_{0,l} \rVert} \right)^2",
)
def ldifs(it):
    activations = zip(*it.activations("ln_pre"))
    total = sum(((unit(z) - unit(z_0)) ** 2).mean() for z, z_0 in activations)
    return it.ce(it.f) + it.algorithm.hparams["ldifs_weight"] / 5 * total


@of_page(
    "lipsum-ft",
    r"L = \mathrm{CE}(f) + \frac{\lambda}{2} \, \mathrm{mean}_{x, u} \left( s \, f(x) \cdot u - s "
    r"\, f_0(x) \cdot u \right)^2",
)
def lipsum_ft(it):
    (penalty,) = it.algorithm.terms.active
    torch.manual_seed(5)
    u = unit(penalty.random_texts(80, 8))
    gap = it.s * it.f @ u.T - it.s * it.f_0 @ u.T
    return it.ce(it.f) + it.algorithm.hparams["lipsum_weight"] / 2 * (gap**2).mean()


@of_page(
    "miro",
    r"L = \mathrm{CE}(f) + \lambda \sum_{l} \mathrm{mean} \, \frac{1}{2} \left( \frac{(z_l - "
    r"z_{0,l})^2}{v_l} + \log v_l \right)",
)
def miro(it):
    raw = it.algorithm.terms.miro_variances
    variances = [(1 + b.detach().double().exp()).log() + 1e-5 for b in raw]
    terms = zip(*it.activations("conv1"), variances)
    total = sum((((z - z_0) ** 2 / v + v.log()) / 2).mean() for z, z_0, v in terms)
    return it.ce(it.f) + it.algorithm.hparams["miro_weight"] * total


def captions(it, encoder):
    """Features of a caption of each image, its class in a random context, as they are drawn."""
    torch.manual_seed(5)
    drawn = torch.randint(len(it.algorithm.tokens), it.y.shape)
    with torch.no_grad():
        return unit(encoder(it.algorithm.tokens[drawn, it.y]))


def flyp_logits(it):
    scale = it.algorithm.log_scale.detach().double().exp()
    return scale * it.f @ captions(it, it.algorithm.text).T


@of_page(
    "flyp",
    r"L = \frac{1}{2} \left( \mathrm{CE}_{\text{images}} \left( e^{\tau} F U^\top \right) + "
    r"\mathrm{CE}_{\text{captions}} \left( e^{\tau} U F^\top \right) \right)",
)
def flyp(it):
    losses = []
    logits = flyp_logits(it)
    for G in (logits, logits.T):
        partners = [(it.y == y).nonzero().flatten() for y in it.y]
        rows = zip(G.log_softmax(dim=1), partners)
        losses.append(-sum(row[own].mean() for row, own in rows) / it.N)
    return sum(losses) / 2


@of_page(
    "carot",
    r"L = L_{\mathrm{FLYP}} + a \left( \mathrm{CE}_{\text{images}}(G', G) + "
    r"\mathrm{CE}_{\text{captions}}(G', G) \right) + b \, \lVert P^\top P - I \rVert_F",
)
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


@of_page(
    "fd-align",
    r"L = \mathrm{CE}(f) + \lambda \, \frac{1}{N} \sum_{x} \mathrm{KL}\left( p_0(x) \,\Vert\, p(x) "
    r"\right), \quad p(x) = \mathrm{softmax}_j \left( s \, f(x) \cdot g_j \right)",
)
def fd_align(it):
    g = it.algorithm.centres.double()
    assert len(g) == 20
    return it.ce(it.f) + it.algorithm.hparams["kl_weight"] * it.kl(g)


@of_page(
    "starft",
    r"L = \mathrm{CE}(f) + \lambda_t \, \frac{1}{N} \sum_{x} \mathrm{KL}\left( p_0(x) \,\Vert\, "
    r"p(x) \right), \quad p(x) = \mathrm{softmax}_j \left( s \, f(x) \cdot u_j \right), \quad "
    r"\lambda_t = \lambda \left( 1 - \frac{t}{T} \right)",
)
def starft(it):
    torch.manual_seed(5)
    drawn = torch.randint(len(it.T), it.y.shape)
    u = it.T[drawn, it.y]
    losses = []
    for f_0, f, y in zip(it.f_0, it.f, it.y):
        others = u[it.y != y]
        p_0, p = ((it.s * others @ feature).softmax(0) for feature in (f_0, f))
        losses.append((p_0 * (p_0 / p).log()).sum())
    t, T = it.algorithm.steps_taken, it.algorithm.hparams["total_steps"]
    weight = it.algorithm.hparams["kl_weight"] * (1 - t / T)
    return it.ce(it.f) + weight * sum(losses) / it.N


# Page -> its formula, of those that have no loss of their own; tests of theirs are below.
FURTHER = {
    "zero-shot": r"\hat{y}(x) = \mathrm{argmax}_k \; f_0(x) \cdot t_k",
    "lora": r"W' = W + \frac{a}{\sqrt{r}} \, B A",
    "swad": r"\bar{w} = \frac{1}{|S|} \sum_{c \in S} \bar{w}_c, \quad \theta = (1 + r) \, "
    r"\frac{1}{n} \sum_{i=1}^{n} L_{c_i}",
}
ALGORITHMS = {
    "carft": "CARFT",
    "fine-tuning": "CLIPFineTune",
    "linear-probe": "CLIPLinearProbe",
    "clipood": "CLIPood",
    "wise-ft": "CLIPWiSEFT",
    "lp-ft": "CLIPLPFT",
    "l2-sp": "CLIPL2SP",
    "feature-distillation": "CLIPFeatureDistillation",
    "ldifs": "LDIFS",
    "lipsum-ft": "LipsumFT",
    "miro": "CLIPMIRO",
    "flyp": "FLYP",
    "carot": "CaRot",
    "fd-align": "FDAlign",
    "starft": "StarFT",
}


def test_each_page_has_the_formula_that_is_computed_here():
    expected = {**{name: formula for name, (formula, _) in LOSSES.items()}, **FURTHER}
    pages = {path.stem for path in PAGES.glob("*.md")} - {"index"}
    assert pages == {*expected}
    assert {name: formula_on(name) for name in pages} == expected


@pytest.mark.parametrize("page", LOSSES)
def test_the_loss_that_trains_is_the_formula_of_the_page(random_tiny, page):
    """At the original weights and after each of two steps, so large that every term counts."""
    if page == "fd-align":
        pytest.importorskip("sklearn")
    algorithm = make(random_tiny, ALGORITHMS[page], warmup_steps=0, lr=3e-3)
    for seed in range(3):
        with torch.no_grad():
            expected = LOSSES[page][1](Symbols(algorithm, seed)).item()
        torch.manual_seed(5)
        loss = algorithm.update(minibatches(seed))["loss"]
        assert loss == pytest.approx(expected, rel=1e-5), f"step {seed}"


def test_the_head_start_of_a_class_grows_with_the_distance_of_its_text(random_tiny):
    """As CLIPood's page says: it is 0 for the true class, here the first one."""
    t = Symbols(make(random_tiny, "CLIPood"), seed=0).t
    head_start = margin_logits(torch.zeros(1, len(t)), torch.tensor([0]), t, torch.tensor(1.0))[0]
    assert head_start[0].abs() < 1e-6
    most_similar_first = (t @ t[0]).argsort(descending=True)
    assert most_similar_first.tolist() == head_start.argsort().tolist()


def test_zero_shot_clip_predicts_the_class_of_the_page(random_tiny):
    it = Symbols(make(random_tiny, "CLIPZeroShot"), seed=0)
    x, _ = (torch.cat(part) for part in zip(*minibatches(0)))
    expected = [max(range(len(CLASSES)), key=(f_0 @ it.t.T).__getitem__) for f_0 in it.f_0]
    assert it.algorithm.predict(x).argmax(dim=1).tolist() == expected


def weights_after_steps(algorithm, steps):
    """The encoder's weights before the first step and after each, as one vector."""
    vectors = [vector(algorithm.encoder.parameters())]
    for seed in range(steps):
        algorithm.update(minibatches(seed))
        vectors.append(vector(algorithm.encoder.parameters()))
    return vectors


def vector(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def predicting(algorithm):
    """The weights of the encoder that predict, as one vector."""
    names = [f"encoder.{name}" for name, _ in algorithm.encoder.named_parameters()]
    state = algorithm.state_dict()
    return vector(state[name] for name in names)


def test_clipoods_average_is_the_formula_of_the_page(random_tiny):
    T = 5
    algorithm = make(random_tiny, "CLIPood", total_steps=T, warmup_steps=0, lr=1e-3)
    vectors = weights_after_steps(algorithm, T)
    b = algorithm.hparams["beta"]
    at = (np.arange(T + 1) + 0.5) / (T + 1)
    beta = at ** (b - 1) * (1 - at) ** (b - 1)
    expected = sum(share * w for share, w in zip(beta, vectors)) / beta.sum()
    torch.testing.assert_close(predicting(algorithm), expected, rtol=1e-5, atol=1e-6)


def test_wise_ft_predicts_by_the_weights_of_the_page(random_tiny):
    algorithm = make(random_tiny, "CLIPWiSEFT", wise_alpha=0.3, warmup_steps=0, lr=1e-3)
    w_0, *_, w = weights_after_steps(algorithm, 2)
    expected = (1 - 0.3) * w_0 + 0.3 * w
    torch.testing.assert_close(predicting(algorithm), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaling", ["alpha/sqrt(r)", "alpha/r"])
def test_lora_adds_the_factors_of_the_page(random_tiny, scaling):
    a, r = 2.0, 3
    chosen = {"lora_rank": r, "lora_alpha": a, "lora_scaling": scaling, "warmup_steps": 0}
    algorithm = make(random_tiny, "CLIPLoRA", lr=1e-2, **chosen)
    blocks = algorithm.encoder.transformer.resblocks
    before = [block.attn.in_proj_weight.detach().clone() for block in blocks]
    weights_after_steps(algorithm, 2)

    factor = a / r if scaling == "alpha/r" else a / r**0.5
    for block, W, layer in zip(blocks, before, algorithm.lora.layers):
        BA = torch.cat([B @ A for A, B in zip(layer.down, layer.up)])
        assert BA.abs().max() > 0
        torch.testing.assert_close(block.attn.in_proj_weight, W + factor * BA)


def test_carots_teacher_follows_as_the_page_says(random_tiny):
    T = 20
    algorithm = make(random_tiny, "CaRot", total_steps=T, carot_interval=1, warmup_steps=0)
    teacher = vector(algorithm.encoder.parameters())
    for t in range(6):
        algorithm.update(minibatches(t))
        m = 0.05 + 0.85 * min(1, 5 * t / T)
        teacher = m * teacher + (1 - m) * vector(algorithm.encoder.parameters())
        found = vector(algorithm.teacher.encoder.parameters())
        torch.testing.assert_close(found, teacher, rtol=1e-5, atol=1e-6)


def test_swads_mean_and_threshold_are_those_of_the_page():
    """Of nine segments, the third has the smallest loss; those below the threshold join."""
    losses = [3.0, 2.0, 1.0, 1.1, 1.2, 1.1, 9.0, 9.0, 9.0]
    n, r = 3, 0.3
    valley = LossValley(converge=n, tolerance=n, ratio=r)
    for number, loss in enumerate(losses):
        valley.add(loss, {"w": torch.tensor(float(number))})

    assert valley.threshold == pytest.approx((1 + r) * (1.0 + 1.1 + 1.2) / n)
    joining = [3, 4, 5]
    assert valley.is_dead
    assert float(valley.chosen()["w"]) == pytest.approx(sum(joining) / len(joining))


def test_a_segment_is_the_mean_of_the_weights_after_its_steps(random_tiny):
    algorithm = make(random_tiny, "CLIPFineTune", average="swad", warmup_steps=0, lr=1e-3)
    vectors = weights_after_steps(algorithm, 3)
    algorithm.at_checkpoint(1.0)
    expected = sum(vectors[1:]) / 3
    torch.testing.assert_close(predicting(algorithm), expected, rtol=1e-5, atol=1e-6)
