"""Parsing declarations, and the messages for declarations with mistakes."""

import json
import re
import runpy
from pathlib import Path

import pytest
from domainbed import algorithms as registry
from domainbed import hparams_registry
from fake_checkout import REPO
from sweep_jobs import carft

from domainbed_carft.errors import CarftError
from domainbed_carft.method import algorithms
from domainbed_carft.sweep import costs, declaration_file, states

MINIMAL_DECLARATION = "name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\n"


def get_cell(declaration, dataset, algorithm, variant=""):
    cells = {(cell.name, cell.dataset, cell.algorithm): cell for cell in declaration.cells()}
    return cells[variant, dataset, algorithm]


def hparams(*row, **variant):
    return get_cell(*row, **variant).hparams


def test_later_settings_override_earlier_ones_for_the_jobs_they_name():
    declaration = declaration_file.parse(
        """
name: x
datasets: [PACS, DomainNet]
algorithms: [CARFT, CLIPFineTune]
steps: {DomainNet: 10000}
protocol: clip
hparams: {lr: 1e-5, amp: off}
overrides:
  - {datasets: [DomainNet], hparams: {lr: 2e-5, total_steps: 10000}}
  - {algorithms: [CARFT], hparams: {kl_weight: 2}}
  - {datasets: [DomainNet], algorithms: [CARFT], hparams: {lr: 3e-5}, steps: 7}
variants:
  a: {}
  b: {hparams: {lr: 4e-5}, algorithms: [CARFT]}
""",
        "x.yaml",
    )
    common = {"protocol": "clip", "amp": "off"}
    assert hparams(declaration, "PACS", "CLIPFineTune", variant="a") == {**common, "lr": 1e-5}

    for_carft = {**common, "lr": 1e-5, "kl_weight": 2}
    assert hparams(declaration, "PACS", "CARFT", variant="a") == for_carft
    assert hparams(declaration, "DomainNet", "CLIPFineTune", variant="a")["lr"] == 2e-5
    assert hparams(declaration, "DomainNet", "CARFT", variant="a")["lr"] == 3e-5
    assert hparams(declaration, "DomainNet", "CARFT", variant="b")["lr"] == 4e-5
    assert get_cell(declaration, "DomainNet", "CLIPFineTune", "a").steps == 10000
    assert get_cell(declaration, "DomainNet", "CARFT", "a").steps == 7
    assert get_cell(declaration, "PACS", "CARFT", "a").steps is None
    assert {job.args["algorithm"] for job in declaration.jobs("D", Path("o"))[84:]} == {"CARFT"}


@pytest.mark.parametrize("environments", ["[A, S]", "[0, 3]", "{PACS: [S, A]}"])
def test_test_environments_accept_labels_and_indices(environments):
    declaration = declaration_file.parse(
        MINIMAL_DECLARATION + f"test_environments: {environments}", "x.yaml"
    )
    assert declaration.targets("PACS", "ACPS") == [[0], [3]]


def problems(text):
    with pytest.raises(CarftError) as raised:
        declaration_file.parse(text, "x.yaml")
    assert all(problem.startswith("x.yaml:") for problem in raised.value.problems)
    return [problem.removeprefix("x.yaml:") for problem in raised.value.problems]


WRONG_FORM = """name: two words
datasets: [PACS, PACS]
trials: 0
stepz: 3
hparams:
  lr: [1]
selection: [training-domain, orakel]
protocol: klip
metric: x
"""
WRONG_NAMES = """name: x
datasets: [PACS, PAKS]
algorithms: [CARFT, CARTF, MMD]
hparams:
  learning_rate: 1
  weight_decay: -1
test_environments: {PACS: [Z, 9], VLCS: [C]}
overrides:
  - datasets: [VLCS]
    steps: 3
  - hparams: {warmup_steps: 9000, contexts: no.txt}
compare_with: [CARFT]
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            WRONG_FORM,
            [
                "1: name: got 'two words', expected a match of the pattern",
                "2: datasets: got ['PACS', 'PACS'], expected each value once; 'PACS' appears twice",
                "1: the key 'algorithms' is missing",
                "3: trials: got 0, expected at least 1",
                "4: stepz: no key is called 'stepz'; did you mean steps?",
                "6: hparams.lr: got [1], expected text, a number",
                "7: selection[1]: got 'orakel', expected 'training-domain'",
                "8: protocol: got 'klip', expected 'domainbed', 'clip', 'wise-ft' or 'lip",
                "9: metric: no key is called 'metric'. Valid: algorithms",
            ],
        ),
        (
            WRONG_NAMES,
            [
                "2: datasets[1]: no dataset is called 'PAKS'; did you mean PACS?",
                "3: algorithms[1]: no algorithm is called 'CARTF'; did you mean CaRot or CARFT?",
                "3: algorithms: MMD is not included; launch the sweep in a checkout of DomainBed",
                "5: hparams.learning_rate: no hyperparameter of CARFT is called 'learning_rate'; d",
                "6: hparams.weight_decay: got -1, expected a number >= 0",
                "7: test_environments.VLCS: no dataset of this sweep is called 'VLCS'",
                "7: test_environments.PACS[0]: no environment of PACS is called 'Z'. Valid: A (0)",
                "7: test_environments.PACS[1]: no environment of PACS is called '9'",
                "9: overrides[0].datasets[0]: no dataset of this sweep is called 'VLCS'",
                "11: overrides[1].hparams.warmup_steps: got 9000, expected less than total_st",
                "11: overrides[1].hparams.contexts: contexts is 'no.txt', which is not a f",
                "12: compare_with[0]: no row of published numbers is called 'CARFT'; did you mean",
            ],
        ),
    ],
)
def test_error_of_a_declaration_lists_all_mistakes_with_their_lines(text, expected):
    sentences = problems(text)
    for start in expected:
        assert any(line.startswith(start) for line in sentences), (start, sentences)
    assert len(sentences) == len(expected)


def test_error_of_a_declaration_lists_names_next_to_a_wrong_form():
    """Hyperparameters are checked although the form is wrong and the dataset unknown."""
    text = (
        "name: x\ndatasets: [PAKS]\nalgorithms: [CARFT, CARTF]\ntrials: 0\n"
        "hparams: {kl_wight: 1, lr: fast}\n"
    )
    trials, dataset, algorithm, name, value = problems(text)
    assert trials.startswith("4: trials: got 0") and dataset.startswith("2: datasets[0]: no data")
    assert algorithm.startswith("3: algorithms[1]: no algorithm is called 'CARTF'")
    assert name.startswith("5: hparams.kl_wight: no hyperparameter of CARFT is called 'kl_wight'")
    assert name.endswith("; did you mean kl_weight or sp_weight or fd_weight?")
    assert value == "5: hparams.lr: got 'fast', expected a number > 0"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("batch_size", [True, 3_000_000_000, 0, 2.0, 8]),
        ("shots", [False, 0, 16]),
        ("data_augmentation", [1.0, "no", 2, 1, False]),
        ("kl_direction", ["forward", "fine-tuned||original"]),
    ],
)
def test_declaration_refuses_exactly_the_values_that_train_refuses(name, values):
    text = "name: x\ndatasets: [EmojiStyles]\nalgorithms: [CLIPFineTune]\nhparams: "
    for value in values:
        hparams = json.dumps({name: value})
        if algorithms.CLIPFineTune.resolve_hparams("EmojiStyles", {name: value}).problems:
            (problem,) = problems(text + hparams)
            assert problem.startswith(f"4: hparams.{name}: got {value!r}, expected ")
        else:
            declaration_file.parse(text + hparams, "x.yaml")


NESTED = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
BOMB = MINIMAL_DECLARATION + f"a0: &a0 [x, x]\n{NESTED}selection: *a8\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [x", "1: this is not YAML: while parsing a flow sequence .*expected"),
        ("", "1: got None, expected a mapping with name, datasets"),
        (
            MINIMAL_DECLARATION + "hparams:\n  lr: 1\n  lr: 2",
            "6: the key 'lr' appears twice, .*line 5",
        ),
        (
            MINIMAL_DECLARATION + "hparams: {average: sma, total_steps: 9}",
            "4: hparams: average_start is 100,",
        ),
        (MINIMAL_DECLARATION + "<<: {lr: 1}", "4: <<: no key is called '<<'. Valid: algorithms"),
        (
            MINIMAL_DECLARATION + "grid: {lr: [-2, 1]}",
            r"4: grid.lr\[0\]: got -2, expected a number > 0",
        ),
        (
            MINIMAL_DECLARATION + "grid: {contexts: [a/b, a b]}",
            "4: grid: several combinations would share",
        ),
        (
            MINIMAL_DECLARATION + "variants: {a/b: {}}",
            "4: variants.a/b: got 'a/b', expected a match of the",
        ),
        (
            MINIMAL_DECLARATION.replace("CARFT", "ERM") + "protocol: clip",
            "4: protocol: no hyperparameter of",
        ),
        (
            MINIMAL_DECLARATION.replace("PACS", "/no/pets"),
            r"2: datasets\[0\]: no such folder: /no/pets",
        ),
        (
            MINIMAL_DECLARATION.replace("[CARFT]", "[ERM, CARFT, CLIPFineTune]")
            + "hparams: {contexts: emoji}",
            "4: hparams.contexts: no hyperparameter of ERM is called 'contexts'; "
            r"move it to overrides, with algorithms: \[CARFT, CLIPFineTune\]",
        ),
        (
            MINIMAL_DECLARATION.replace("CARFT", "FDAlign") + "hparams: {contexts: imagenet7}",
            "4: hparams.contexts: contexts is 'imagenet7', .* of 7 templates; expected at least 27",
        ),
        (BOMB, "4: this is an anchor for aliases, which is not supported"),
        (MINIMAL_DECLARATION + "trials: " + "1" * 5000, "4: '1111.*' cannot be read as a number"),
        (
            MINIMAL_DECLARATION
            + f"grid: {{{', '.join(f'h{n}: {[*range(50)]}' for n in range(9))}}}",
            "100,000 jobs",  # 50**9 points, which must not be listed
        ),
    ],
)
def test_error_describes_a_mistake_in_one_short_line(text, message):
    matching = [line for line in problems(text) if re.search(message, line)]
    assert len(matching) == 1 and len(matching[0]) < 300


@pytest.mark.parametrize(
    ("settings", "trials"),
    [
        ("", 25_000),  # four targets
        ("test_environments: single-source\n", 25_000),
        ("test_environments: [[A], [C, S]]\n", 50_000),
        ("selection: [leave-one-domain-out]\n", 10_000),  # four targets and six pairs
        (
            "search: {values: {lr: [1e-5, 1e-4]}, choose_on: {trials: {from: 0, n: 3}}, "
            "repeat_on: {trials: {from: 3, n: 24994}}}\n",
            0,
        ),
    ],
)
def test_limit_of_the_jobs_counts_all_targets(settings, trials):
    if not trials:
        declaration_file.parse(MINIMAL_DECLARATION + settings, "x.yaml")
        (problem,) = problems(MINIMAL_DECLARATION + settings.replace("24994", "24995"))
    else:
        text = MINIMAL_DECLARATION + settings
        declaration_file.parse(f"{text}trials: {trials}", "x.yaml")
        (problem,) = problems(f"{text}trials: {trials + 1}")
    assert problem.startswith("2: datasets: the sweep has more than 100,000 jobs")


def test_editor_schema_is_up_to_date():
    tool = runpy.run_path(str(REPO / "tools" / "site" / "reference.py"))
    assert tool["SCHEMA"].read_text() == tool["sweep_schema"]()


SHIPPED = sorted((REPO / "sweeps").glob("*.yaml"))


IN_CHECKOUT = ("algorithms", "algorithms-emoji")  # with algorithms of the host


@pytest.fixture
def host_algorithms(monkeypatch):
    """Add the names of DomainBed's algorithms and of their hyperparameters to the harness."""
    for name in registry.NOT_INCLUDED:
        monkeypatch.setattr(registry, name, type(name, (registry.ERM,), {}), raising=False)
    names = ("irm_penalty_anneal_iters", "vrex_penalty_anneal_iters", "eqrm_burnin_iters")
    optional_names = (*hparams_registry.OPTIONAL_HPARAMS, *names)
    monkeypatch.setattr(hparams_registry, "OPTIONAL_HPARAMS", optional_names)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_comment_of_a_shipped_sweep_states_its_cost(path, request):
    in_checkout = path.stem in IN_CHECKOUT
    if in_checkout:
        request.getfixturevalue("host_algorithms")
    declaration = declaration_file.load(path.stem)
    assert declaration.name == path.stem and declaration.description

    jobs = declaration.jobs("D", Path("/nowhere"))
    if declaration.has_stages:
        jobs += declaration.jobs("D", Path("/nowhere"), chosen=())
    statuses = [states.get_status(job, declaration.facts) for job in jobs]
    # A checkout also evaluates the in-splits of the training environments.
    estimate = costs.estimate(statuses, declaration.facts, skips=not in_checkout)
    *_, total = estimate.values()
    lines = path.read_text().splitlines()
    comment = " ".join(line[1:].strip() for line in lines if line[:1] == "#")
    images = f"{total.trained:,} images trained, {total.evaluated:,} evaluated"
    assert f"{len(statuses):,} jobs, {images}" in comment


@pytest.mark.parametrize("name", IN_CHECKOUT)
def test_sweep_of_host_algorithms_fails_outside_of_a_checkout_with_one_hint(name, tmp_path):
    refused = carft("launch", name, "--data_dir", "D", "--output_dir", tmp_path / "o", "--dry-run")
    assert refused.returncode == 1
    (problem,) = refused.stderr.splitlines()
    assert f"{name}.yaml:" in problem and ": algorithms: " in problem
    assert "CORAL" in problem and "CARFT" not in problem and "ERM" not in problem
    assert "git clone https://github.com/facebookresearch/DomainBed" in problem


def test_sweep_of_swad_has_its_published_checkpoint_freq():
    swad = declaration_file.load("peers-swad").jobs("D", Path("/n"))
    frequencies = {job.args["dataset"]: job.args["checkpoint_freq"] for job in swad}
    expected = {"VLCS": 50, "PACS": 100, "OfficeHome": 100, "TerraIncognita": 100, "DomainNet": 500}
    assert frequencies == expected


@pytest.mark.parametrize(
    ("sweep", "dataset", "algorithm", "expected"),
    [
        ("peers", "DomainNet", "LipsumFT", {"head_scale": "outside", "grad_clip": 0, "lr": 1e-5}),
        ("peers", "PACS", "CLIPLPFT", {"lp_steps": 500}),
        ("imagenet", "ImageNet", "LipsumFT", {"grad_clip": 0, "protocol": "lipsum-ft"}),
        ("imagenet", "ImageNet", "CARFT", {"protocol": "wise-ft"}),
        ("imagenet", "ImageNet", "FLYP", {"protocol": "wise-ft"}),
    ],
)
def test_shipped_sweeps_have_the_published_recipes(sweep, dataset, algorithm, expected):
    declared = hparams(declaration_file.load(sweep), dataset, algorithm)
    assert {name: declared[name] for name in expected} == expected
    assert "protocol" in expected or "protocol" not in declared  # peers share the images


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demoo"], "no sweep is called 'demoo'; did you mean demo"),
        (["domainbed"], "--data_dir is missing; expected the folder of the datasets' folders"),
        (["demo", "--launcher", "poool"], "no launcher is called 'poool'; did you mean pool"),
        (["lambda", "--data_dir", "no"], "--data_dir no does not exist; pass"),
    ],
)
def test_launch_with_a_mistake_creates_no_folder(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = carft("launch", "--output_dir", "o", *words)
    assert refused.returncode == 1 and message in refused.stderr
    assert not (tmp_path / "o").exists()
