"""CAR-FT's peers on the one body: what trains, what predicts, what is saved and resumed."""

import copy
import itertools

import pytest
import torch
from domainbed.lib import algorithm_state
from test_algorithms import CONTEXTS, make, minibatches, reopened, settings, train

from domainbed_carft.clips import backbone
from domainbed_carft.errors import CarftError
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms, averages, fd_align, objective, prompts
from domainbed_carft.runs import export, wise_ft

TERMS = {
    "CLIPL2SP": "sp",
    "CLIPFeatureDistillation": "fd",
    "LDIFS": "ldifs",
    "LipsumFT": "lipsum",
    "CLIPMIRO": "miro",
}


PICTURES = torch.randn(5, 3, 28, 28, generator=torch.Generator().manual_seed(9))


def logits(algorithm):
    algorithm.eval()
    with torch.no_grad():
        class_logits = algorithm.predict(PICTURES)
    algorithm.train()
    return class_logits


# The head's scale


def test_a_folded_head_starts_the_same_and_hardly_moves(random_tiny):
    folded, outside = (make(random_tiny, head_scale=scale) for scale in ("folded", "outside"))
    torch.testing.assert_close(logits(folded), logits(outside))

    starts = [a.head.weight.detach().clone() for a in (folded, outside)]
    moved = []
    for algorithm, start in zip((folded, outside), starts):
        train(algorithm, 3)
        moved.append(((algorithm.head.weight - start).norm() / start.norm()).item())

    scale = float(outside.logit_scale)
    assert moved[1] / moved[0] == pytest.approx(scale, rel=0.3)
    assert folded.head.bias.abs().sum() > 0 and outside.head.bias.abs().sum() == 0


@pytest.mark.parametrize("overrides", [{"algorithm": "CLIPLinearProbe"}, {"head_init": "random"}])
def test_heads_that_must_move_keep_the_scale_outside(random_tiny, overrides):
    algorithm = make(random_tiny, head_scale="folded", **overrides)
    assert float(algorithm.head_factor) == pytest.approx(float(algorithm.logit_scale))


def test_a_folded_run_is_restored_interpolated_and_exported(random_tiny, tmp_path):
    algorithm = make(random_tiny, head_scale="folded")
    start = logits(algorithm)
    train(algorithm, 2)
    run = reopened(algorithm, tmp_path)

    assert torch.equal(run.algorithm.predict(PICTURES), logits(algorithm))

    head = export._head(run)
    unit = torch.nn.functional.normalize(algorithm.features(PICTURES), dim=-1)
    by_head = head["logit_scale"] * unit @ head["weight"].T + head["bias"]

    torch.testing.assert_close(by_head, logits(algorithm))

    set_alpha = wise_ft.alpha_setter(run, str(random_tiny))
    set_alpha(0.0)
    torch.testing.assert_close(run.algorithm.predict(PICTURES), start)

    set_alpha(1.0)
    assert torch.equal(run.algorithm.predict(PICTURES), logits(algorithm))


# The terms


@pytest.mark.parametrize(("name", "term"), TERMS.items())
def test_a_term_is_zero_at_the_start_and_then_weighted(random_tiny, name, term):
    plain = make(random_tiny, "CLIPFineTune")
    algorithm = make(random_tiny, name)
    first = algorithm.update(minibatches(0))
    before = plain.update(minibatches(0))
    assert first["loss_ce"] == pytest.approx(before["loss_ce"], rel=1e-6)
    if name != "CLIPMIRO":  # which has its variances' logarithms from the start
        assert first[f"loss_{term}"] == pytest.approx(0, abs=1e-9)

    second = algorithm.update(minibatches(1))
    assert second[f"loss_{term}"] != first[f"loss_{term}"]

    weight = algorithm.hparams[f"{term}_weight"]
    assert second["loss"] == pytest.approx(second["loss_ce"] + weight * second[f"loss_{term}"])


@pytest.mark.parametrize("term", TERMS.values())
def test_algorithms_that_train_the_encoder_take_any_penalty(random_tiny, term):
    weights = {f"{term}_weight": 0.5}
    measured = train(make(random_tiny, **weights), 2)[1]
    parts = measured["loss_ce"] + measured["loss_kl"] + 0.5 * measured[f"loss_{term}"]
    assert measured["loss"] == pytest.approx(parts, rel=1e-5)
    assert f"loss_{term}" in make(random_tiny, "CLIPFineTune", **weights).update(minibatches())
    for name in ("CLIPLinearProbe", "FLYP"):
        assert f"loss_{term}" not in make(random_tiny, name, **weights).update(minibatches())


def test_clipood_has_a_frozen_head_and_linear_probing_a_frozen_encoder(random_tiny):
    clipood = make(random_tiny, "CLIPood")
    head = clipood.head.weight.detach().clone()
    train(clipood, 2)

    assert torch.equal(clipood.head.weight, head)

    lpft = make(random_tiny, "CLIPLPFT", lp_steps=3)
    encoder = {n: p.detach().clone() for n, p in lpft.encoder.named_parameters()}
    heads = [lpft.head.weight.detach().clone()]
    rates = []
    for seed in range(5):
        rates.append(lpft.optimizer.param_groups[0]["lr"])
        lpft.update(minibatches(seed))
        heads.append(lpft.head.weight.detach().clone())
        moved = any(not torch.equal(p, encoder[n]) for n, p in lpft.encoder.named_parameters())
        assert moved == (seed >= 3)

    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(heads))

    rate = lpft.hparams["lr"]
    assert rates == pytest.approx([rate / 3] * 4 + [2 * rate / 3])  # the warm-up has just begun


# What predicts


@pytest.mark.parametrize("kind", ["sma", "ema", "beta"])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_what_predicts_and_is_saved_is_the_average_towards_the_original(random_tiny, kind, alpha):
    overrides = {"average": kind, "average_start": 2, "ema": 0.7, "wise_alpha": alpha}
    algorithm = make(random_tiny, **overrides)
    twin = make(random_tiny)
    expected = {n: p.detach().clone() for n, p in twin.named_parameters()}
    start = copy.deepcopy(expected)
    for step in range(1, 6):
        for trained in (algorithm, twin):
            trained.update(minibatches(step))
        share = averages.share(step, algorithm.hparams)
        for name, parameter in twin.named_parameters():
            expected[name] += share * (parameter.detach() - expected[name])

    for (name, parameter), twin_parameter in zip(algorithm.named_parameters(), twin.parameters()):
        assert torch.equal(parameter, twin_parameter), name  # what is trained knows nothing of it

    mixed = {n: (1 - alpha) * start[n] + alpha * expected[n] for n in expected}
    state = algorithm.state_dict()
    for name, tensor in mixed.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-7)

    twin.load_state_dict(state)
    torch.testing.assert_close(logits(algorithm), logits(twin))
    assert not torch.equal(logits(algorithm), algorithm.eval()(PICTURES))


# In LP-FT's first phase, too, and with all that a step may have.
EVERY = {f"{term}_weight": 0.5 for term in TERMS.values()} | {"average": "ema"}
FIRST_PHASE = {"lp_steps": 3, "average_start": 1}
# harness/test_algorithm_state resumes each algorithm without an average.
AVERAGED = {"average": "beta", "wise_alpha": 0.4}
RESUMED = [
    *((name, AVERAGED) for name in ALGORITHMS),
    ("CLIPLPFT", FIRST_PHASE | {"average": "sma"}),
    ("CaRot", {"carot_interval": 3}),  # whose teacher is not updated between the stop and step 3
    ("CLIPLPFT", FIRST_PHASE | EVERY),
    ("CARFT", EVERY),
]


@pytest.mark.parametrize(("name", "overrides"), RESUMED)
def test_a_resumed_run_is_the_same_to_the_bit(random_tiny, name, overrides):
    uninterrupted = make(random_tiny, name, **overrides)
    torch.manual_seed(4)
    measured = train(uninterrupted, 4)

    first = make(random_tiny, name, **overrides)
    structure = algorithm_state.structure(first)
    torch.manual_seed(4)
    train(first, 2)
    stored = copy.deepcopy(algorithm_state.capture(first, structure))
    generator = torch.get_rng_state()
    second = make(random_tiny, name, **overrides)
    algorithm_state.restore(second, stored)
    torch.set_rng_state(generator)

    assert [second.update(minibatches(seed)) for seed in (2, 3)] == measured[2:]

    expected_state = uninterrupted.state_dict()
    resumed_state = second.state_dict()
    assert expected_state.keys() == resumed_state.keys()
    assert all(torch.equal(expected_state[key], resumed_state[key]) for key in expected_state)
    assert torch.equal(logits(uninterrupted), logits(second))


def test_flyp_predicts_by_its_own_words_and_exports_them(random_tiny, tmp_path):
    algorithm = make(random_tiny, "FLYP")
    torch.testing.assert_close(logits(algorithm), logits(make(random_tiny, "CLIPZeroShot")))

    train(algorithm, 2)
    run = reopened(algorithm, tmp_path)
    export.export(run, tmp_path / "clip.pt", original=str(random_tiny))
    clip_model = backbone.load(str(tmp_path / "clip.pt"))
    texts = backbone.text_features(clip_model, prompts.prompts(run.contexts, run.classes))
    head = objective.zero_shot_weights(texts).classes

    torch.testing.assert_close(run.algorithm.head.weight.data, head, rtol=1e-4, atol=1e-6)

    x = algorithm.input(PICTURES)
    unit = torch.nn.functional.normalize(clip_model.model.visual(x), dim=-1)
    expected = clip_model.logit_scale * unit @ head.T

    torch.testing.assert_close(logits(algorithm), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(head, make(random_tiny).head.weight, atol=1e-4)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_algorithm_trains_in_bf16(random_tiny, name):
    exact = train(make(random_tiny, name), 2)
    rounded = train(make(random_tiny, name, amp="bf16"), 2)
    for one, other in zip(exact, rounded):
        assert one["loss"] != other["loss"] == pytest.approx(one["loss"], rel=0.1, abs=0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"head_init": "random", "wise_alpha": 0.5}, "wise_alpha is 0.5, expected 1 with head_"),
        ({"average": "sma", "average_start": 20}, "average_start is 20, expected less than total"),
        ({"algorithm": "CLIPood", "lp_steps": 3}, "lp_steps is 3, expected 0: only CLIPLPFT"),
        ({"algorithm": "FLYP", "margin": 0.1}, "margin is 0.1, expected 0: only CLIPood has"),
        ({"algorithm": "CARFT", "contexts": ["a {}"]}, "a list of 1 template; expected at least"),
        ({"algorithm": "FLYP", "micro_batch": 4}, "micro_batch is 4, expected 0: FLYP contrasts"),
        ({"algorithm": "CaRot", "micro_batch": 4}, "micro_batch is 4, expected 0: CaRot contrasts"),
        ({"algorithm": "CLIPLoRA", "lora_rank": 0}, "lora_rank is 0, expected at least 1: CLIPL"),
        (
            {"algorithm": "CLIPLPFT", "lp_steps": 18},
            "expected less than total_steps - lp_steps = 2, or the learning rate",
        ),
        (
            {"algorithm": "CLIPLPFT", "lp_steps": 20},
            "lp_steps is 20, expected less than total_steps = 20",
        ),
        ({"beta": 11}, "beta is 11, expected a number in"),
        ({"average": "ema", "swad": True}, "average is 'ema', expected 'none' with this DomainB"),
    ],
)
def test_contradictory_hparams_are_refused(random_tiny, overrides, message):
    algorithm = overrides.pop("algorithm", "CARFT")
    values = settings(random_tiny, algorithm, **overrides)
    with pytest.raises(CarftError, match=message):
        getattr(algorithms, algorithm)((3, 28, 28), 3, 2, values)


SINGLE = ["a photo of a {}."]


@pytest.mark.parametrize(
    "name", [name for name in ALGORITHMS if not getattr(algorithms, name).has_kl({"kl_weight": 1})]
)
def test_one_context_is_enough_without_the_kl(random_tiny, tmp_path, name):
    algorithm = make(random_tiny, name, contexts=SINGLE)
    values = train(algorithm, 2)
    assert all({"loss_kl", "context_agreement"}.isdisjoint(step) for step in values)

    run = reopened(algorithm, tmp_path)
    assert run.contexts == SINGLE
    assert torch.equal(logits(run.algorithm.train()), logits(algorithm))
    assert algorithm.hparam_problems("PACS", {"contexts": SINGLE, "clip_backbone": "tiny"}) == []


def test_one_context_is_enough_for_carft_without_its_kl(random_tiny):
    weights = {"kl_weight": 0, "ldifs_weight": 10.0}
    values = train(make(random_tiny, contexts=SINGLE, **weights), 2)
    assert "loss_ldifs" in values[1] and "loss_kl" not in values[1]
    overrides = {"contexts": SINGLE, "clip_backbone": "tiny"}
    (problem,) = algorithms.CARFT.hparam_problems("PACS", overrides)
    assert "expected at least two, all different" in str(problem)


def test_the_algorithms_with_the_kl_are_those_that_need_two_contexts():
    for name in ALGORITHMS:
        has_kl = getattr(algorithms, name).has_kl({"kl_weight": 1.0})
        assert has_kl == (name in ("CARFT", "FDAlign", "StarFT"))


# The KL's siblings


def test_fd_align_and_starft_have_their_own_kl(random_tiny, monkeypatch):
    """Against the term computed by hand, from the weights after a step and the same draws."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(fd_align, "CLUSTERS", 2)
    for kl_over in ("clusters", "captions", "other-captions"):
        name = "FDAlign" if kl_over == "clusters" else "StarFT"
        rows_of_captions = {} if kl_over == "clusters" else {"starft_rows": kl_over}
        rows_of_captions |= {"contexts": CONTEXTS}
        algorithm = make(random_tiny, name, kl_weight=0.5, total_steps=4, **rows_of_captions)
        train(algorithm, 1)

        batch = minibatches(7)
        x, y = (torch.cat(part) for part in zip(*batch))
        with torch.no_grad():
            feature_pair = algorithm.original(algorithm.input(x), {})[0], algorithm.features(x)
        torch.manual_seed(3)
        values = algorithm.update(batch)
        torch.manual_seed(3)
        if kl_over == "clusters":
            rows = algorithm.centres
        else:
            captions = algorithm.caption_features
            contexts = torch.randint(len(captions), y.shape)
            rows = torch.stack([captions[m, k] for m, k in zip(contexts, y)])

        unit = [torch.nn.functional.normalize(f, dim=-1).double() for f in feature_pair]
        p0, p1 = (float(algorithm.logit_scale) * f @ rows.double().T for f in unit)
        kl = []
        for n, label in enumerate(y):
            compared = y != label if kl_over == "other-captions" else slice(None)
            a, b = (p[n][compared].log_softmax(dim=0) for p in (p0, p1))
            kl.append((a.exp() * (a - b)).sum())

        assert values["loss_kl"] == pytest.approx(float(torch.stack(kl).mean()), rel=1e-3)
        decay = 1.0 if name == "FDAlign" else 1 - 1 / 4
        total = values["loss_ce"] + 0.5 * decay * values["loss_kl"]
        assert values["loss"] == pytest.approx(total, rel=1e-6)


def test_the_average_begins_after_the_first_phase(random_tiny):
    algorithm = make(random_tiny, "CLIPLPFT", average="sma", average_start=0, lp_steps=3)
    train(algorithm, 4)
    trained = dict(algorithm.named_parameters())
    for name, tensor in algorithm.predicting_weights().items():
        assert torch.equal(tensor, trained[name]), name  # of the one step there was


def test_flyp_encodes_its_prompts_again_when_its_weights_have_changed(random_tiny):
    algorithm = make(random_tiny, "FLYP")
    start = copy.deepcopy(algorithm.state_dict())
    before = logits(algorithm)
    train(algorithm, 2)

    assert not torch.allclose(logits(algorithm), before)

    algorithm.load_state_dict(start)
    torch.testing.assert_close(logits(algorithm), before)


def test_carot_is_flyp_taught_by_an_average_of_its_weights(random_tiny, tmp_path):
    """Losses and the teacher, step by step, by hand in float64 from the weights before each."""
    settings_of_steps = {"carot_interval": 2, "flyp_targets": "diagonal", "total_steps": 20}
    algorithm = make(random_tiny, "CaRot", **settings_of_steps)
    trained = {name: p for name, p in algorithm.named_parameters() if p.requires_grad}
    of_teacher = {name: p.detach().double() for name, p in trained.items() if "head" not in name}
    labels = torch.cat([y for _, y in minibatches()])
    momenta = {0: 0.05, 2: 0.05 + 0.85 * 2 / 4, 4: 0.9}  # over a fifth of 20 steps
    assert algorithm.indivisible() and not any("teacher" in name for name in trained)

    for step in range(5):
        before = {name: trained[name].detach().double() for name in of_teacher}
        torch.manual_seed(step)
        measured = algorithm.update(minibatches(0))
        torch.manual_seed(step)
        tokens = algorithm.tokens[torch.randint(len(algorithm.tokens), labels.shape), labels]
        logits_of_student = pair_logits_by_hand(random_tiny, before, tokens)
        expected = carot_by_hand(
            logits_of_student, pair_logits_by_hand(random_tiny, of_teacher, tokens)
        )
        projection = before["encoder.proj"]
        identity = torch.eye(projection.shape[1], dtype=torch.float64)
        gap = (projection.T @ projection - identity).square().sum().sqrt()

        distillation = expected["distillation"] if step else 0.0
        assert measured.get("loss_distillation", 0.0) == pytest.approx(distillation, rel=1e-4)
        assert measured["loss_contrastive"] == pytest.approx(expected["contrastive"], rel=1e-4)
        assert measured["loss_orthogonality"] == pytest.approx(gap.item(), rel=1e-5)
        total = expected["contrastive"] + 1.5 * distillation + 0.2 * gap.item()
        assert measured["loss"] == pytest.approx(total, rel=1e-4)

        kept = momenta.get(step, 1.0)
        for name, tensor in of_teacher.items():
            of_teacher[name] = kept * tensor + (1 - kept) * trained[name].detach().double()
        for name, tensor in algorithm.teacher.text.named_parameters():
            torch.testing.assert_close(
                tensor.double(), of_teacher[f"text.{name}"], rtol=1e-5, atol=1e-7
            )

    run = reopened(algorithm, tmp_path)
    assert torch.equal(run.algorithm.predict(PICTURES), logits(algorithm))


def pair_logits_by_hand(weights, tensors, tokens):
    """CLIP's own logits (N, N) with ``tensors``, of the pictures of `minibatches`."""
    model = backbone.load(str(weights)).model
    state = dict(model.state_dict())
    for name, tensor in tensors.items():
        of_clip = name.replace("encoder.", "visual.", 1).removeprefix("text.")
        state["logit_scale" if name == "log_scale" else of_clip] = tensor
    model.load_state_dict({**state, "logit_scale": state["logit_scale"].reshape(())})

    pictures = torch.cat([x for x, _ in minibatches(0)])
    with torch.no_grad():
        return model(make(weights).input(pictures), tokens)[0].double()


def carot_by_hand(student, teacher):
    """FLYP's loss on the diagonal, and the soft cross-entropies, of logits (N, N)."""
    contrastive = distillation = 0.0
    for logits_of_rows, targets in ((student, teacher), (student.T, teacher.T)):
        log_p = logits_of_rows - logits_of_rows.logsumexp(dim=1, keepdim=True)
        q = (targets - targets.logsumexp(dim=1, keepdim=True)).exp()
        contrastive += -log_p.diagonal().mean().item() / 2
        distillation += -(q * log_p).sum(dim=1).mean().item()
    return {"contrastive": contrastive, "distillation": distillation}


def test_cliplora_trains_the_factors_under_a_frozen_head_of_text_features(random_tiny):
    algorithm = make(random_tiny, "CLIPLoRA", lr=1e-2)
    start = {name: tensor.clone() for name, tensor in algorithm.state_dict().items()}
    train(algorithm, 2)
    moved = {
        name for name, tensor in algorithm.state_dict().items() if (tensor != start[name]).any()
    }
    assert moved
    assert all(name.endswith("attn.in_proj_weight") or name.startswith("lora.") for name in moved)
    assert torch.equal(algorithm.head.weight, make(random_tiny, "CLIPZeroShot").head.weight)
    assert algorithms.hparam_values("CLIPLoRA", "PACS")["lr"] == 2e-4


def test_wise_ft_starts_from_a_runs_own_interpolation(random_tiny, tmp_path):
    algorithm = make(random_tiny, "CLIPWiSEFT")
    train(algorithm, 2)
    run = reopened(algorithm, tmp_path)
    wise_ft.alpha_setter(run, str(random_tiny))(0.5)
    quarter = {
        n: torch.lerp(s, p, 0.25)
        for (n, p), s in zip(
            algorithm.named_parameters(), make(random_tiny).parameters(), strict=True
        )
    }

    for name, tensor in quarter.items():
        torch.testing.assert_close(run.algorithm.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
