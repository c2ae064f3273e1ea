"""What a file declares, and what is said of one with mistakes."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from fake_checkout import REPO, run_python, write_checkout

from domainbed_carft import cli, sweep
from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import options
from domainbed_carft.sweep import declaration, estimate, flags, jobs, schema, states
from domainbed_carft.sweep.declaration import Variant

SMALLEST = "name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\n"


def problems(text):
    """The messages on ``text``, without the headline."""
    with pytest.raises(CarftError) as raised:
        declaration.parse(text, "x.yaml")
    headline, *lines = str(raised.value).splitlines()
    assert headline.startswith(f"{len(lines)} problem")
    return [line.removeprefix("- ") for line in lines]


def test_the_smallest_sweep_has_domainbeds_trials_and_default_hparams():
    made = declaration.parse(SMALLEST, "x.yaml")
    assert (made.trials, made.first_hparams_seed, made.n_hparams_seeds) == (3, 0, 1)
    assert made.holdout_fraction == 0.2 and not made.pairs
    assert made.steps_of("PACS", "CARFT") is None
    assert made.hparams_of("PACS", "CARFT", Variant()) == {}
    assert made.test_environments == {"PACS": (0, 1, 2, 3)}


def test_the_later_of_two_settings_wins_and_reaches_what_it_names():
    made = declaration.parse(
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
    a, b = made.variants
    common = {"protocol": "clip", "amp": "off"}
    assert made.hparams_of("PACS", "CLIPFineTune", a) == {**common, "lr": 1e-5}
    assert made.hparams_of("PACS", "CARFT", a) == {**common, "lr": 1e-5, "kl_weight": 2}
    assert made.hparams_of("DomainNet", "CLIPFineTune", a)["lr"] == 2e-5
    assert made.hparams_of("DomainNet", "CARFT", a)["lr"] == 3e-5
    assert made.hparams_of("DomainNet", "CARFT", b)["lr"] == 4e-5
    assert made.steps_of("DomainNet", "CLIPFineTune") == 10000
    assert made.steps_of("DomainNet", "CARFT") == 7
    assert made.steps_of("PACS", "CARFT") is None
    assert made.algorithms_of(b) == ("CARFT",)


def test_a_grid_is_a_variant_for_each_combination():
    made = declaration.parse(SMALLEST + "grid: {kl_weight: [0, 3], amp: [off, bf16]}", "x.yaml")
    names = [variant.name for variant in made.variants]
    assert names == [
        "kl_weight=0,amp=off", "kl_weight=0,amp=bf16", "kl_weight=3,amp=off", "kl_weight=3,amp=bf16"
    ]  # fmt: skip
    assert made.variants[1].hparams == {"kl_weight": 0, "amp": "bf16"}


def test_values_are_those_of_yaml_1_2():
    text = SMALLEST + "hparams: {amp: off, lr: 1e-5, weight_decay: 1., class_names: ['1', 'no']}"
    made = declaration.parse(text, "x.yaml")
    assert made.hparams == {
        "amp": "off", "lr": 1e-5, "weight_decay": 1.0, "class_names": ["1", "no"]
    }  # fmt: skip


@pytest.mark.parametrize("given", ["[A, S]", "[0, 3]", "[art_painting, sketch]", "{PACS: [S, A]}"])
def test_environments_go_by_label_index_or_folder(given):
    made = declaration.parse(SMALLEST + f"test_environments: {given}", "x.yaml")
    assert made.test_environments == {"PACS": (0, 3)}


def test_all_that_is_wrong_is_told_at_once_with_its_line():
    found = problems(
        """name: two words
datasets: [PACS, PAKS, PACS]
algorithms: [CARFT, CARTF]
trials: 0
stepz: 3
hparams:
  kl_weigth: 1
  lr: 1e-5
  lr: 2e-5
  weight_decay: -1
test_environments: {PACS: [Z, 9], VLCS: [C]}
selection: [training-domain, orakel]
overrides:
  - hparams: {lr: 1}
  - datasets: [VLCS]
    steps: 3
protocol: klip
compare_with: [CARFT]
"""
    )
    expected = [
        ('1: name: it is "two words", expected a word', ""),
        ("2: datasets: PACS is there twice", ""),
        ("2: datasets[1]: no data set is called 'PAKS'; did you mean PACS?", "Debug28"),
        ("3: algorithms[1]: no algorithm is called 'CARTF'; did you mean CARFT?", "ERM"),
        ("4: trials: it is 0, expected a whole number of at least 1", ""),
        ("5: stepz: no key is called 'stepz'; did you mean steps?", "hparams_seeds"),
        ("7: hparams.kl_weigth: no hyperparameter of CARFT is called 'kl_weigth'", "kl_weight?"),
        ("9: hparams.lr: the key is there twice, first in line 8; keep one", ""),
        ("10: hparams.weight_decay: it is -1, expected a number >= 0", ""),
        ("11: test_environments.VLCS: no data set of this sweep is called 'VLCS'", "PACS"),
        ("11: test_environments.PACS[0]: no environment of PACS is called 'Z'", "A (0), C (1)"),
        ("11: test_environments.PACS[1]: no environment of PACS is called '9'", "S (3)"),
        ("12: selection[1]: no selection method is called 'orakel'; did you mean oracle?", ""),
        ("14: overrides[0]: it is about everything", ""),
        ("15: overrides[1].datasets[0]: no data set of this sweep is called 'VLCS'", ""),
        ("17: protocol: no protocol preset is called 'klip'; did you mean clip?", "domainbed"),
        ("18: compare_with[0]: no row of published figures is called 'CARFT'", "CAR-FT?"),
    ]
    for start, part in expected:
        assert any(line.startswith(f"x.yaml:{start}") and part in line for line in found), start
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [x", r"x.yaml:1:9: this is not YAML: while parsing a flow sequence .*expected"),
        ("name: x\n\tdatasets: y", r"x.yaml:2:1: this is not YAML"),
        ("name: \x01", "x.yaml:1: this is not YAML"),
        ("", "x.yaml:1: there is nothing, expected a mapping with name, datasets"),
        ("- a", r'x.yaml:1: it is \["a"\], expected a mapping'),
        ("&a [*a]", "the alias is inside what it stands for"),
        ("? [a]\n: b", "a key is a list or a mapping, expected a word"),
        (SMALLEST + "steps: {PACS: x}", 'x.yaml:4: steps.PACS: it is "x", expected a whole number'),
        (SMALLEST + "steps:", "x.yaml:4: steps: there is nothing, expected a whole number"),
        (SMALLEST + "hparams: {lr: [1]}", r"hparams.lr\[0\]: it is 1, expected a word"),
        (SMALLEST + "hparams: {contexts: no.txt}", "'no.txt', which is neither a shipped list"),
        (SMALLEST + "hparams: {warmup_steps: 9000}", "warmup_steps is 9000 for CARFT on PACS, exp"),
        (SMALLEST + "grid: {lr: []}", "x.yaml:4: grid.lr: it is empty, expected a list of diff"),
        (SMALLEST + "grid: {contexts: [a/b, a b]}", "2 combinations would share the folder con"),
        (SMALLEST + "grid: {lr: [1]}\nvariants: {a: {}}", "expected one of the two"),
        (
            "name: x\ndatasets: [PACS]\nalgorithms: [CARFT, ERM]\nprotocol: clip",
            "x.yaml:4: protocol: the preset 'clip' is for CARFT, CLIPFineTune, .*; ERM has none",
        ),
        (
            "name: x\ndatasets: [PACS]\nalgorithms: [CARFT, MMD]",
            r"x.yaml:3: algorithms\[1\]: Algorithm MMD is not included. Use a checkout of face",
        ),
        (SMALLEST + "variants: {a/b: {}}", "variants.a/b: expected a name that can be a folder's"),
        (SMALLEST + "holdout_fraction: 1", "holdout_fraction: it is 1, expected a number over 0"),
        (SMALLEST + "overrides: [{datasets: [PACS]}]", "it sets nothing; expected hparams or step"),
        (
            "name: x\ndatasets: [/nowhere/pets]\nalgorithms: [ERM]",
            r"x.yaml:2: datasets\[0\]: There is no folder /nowhere/pets",
        ),
    ],
)
def test_other_mistakes(text, message):
    assert re.search(message, "\n".join(problems(text)))


def test_two_environments_do_not_do_for_pairs(tmp_path):
    for domain in ("a", "b"):
        (tmp_path / "pets" / domain / "cat").mkdir(parents=True)
    text = f"name: x\ndatasets: [{tmp_path}/pets]\nalgorithms: [ERM]\n"
    assert declaration.parse(text, "x.yaml").environments[f"{tmp_path}/pets"] == ("a", "b")
    (found,) = problems(text + "selection: [leave-one-domain-out]")
    assert "pets has 2 environments; leave-one-domain-out needs at least 3" in found


def test_a_missing_file_and_an_unknown_name_say_what_there_is():
    with pytest.raises(CarftError, match=r"no sweep is called 'domainbet'; did you mean domainbed"):
        sweep.load("domainbet")
    with pytest.raises(CarftError, match=r"there is no file no/such.yaml, expected .*demo"):
        sweep.load("no/such.yaml")


def test_the_schema_is_one_that_editors_understand_and_describes_every_key():
    from jsonschema import Draft202012Validator

    found = schema.load()
    Draft202012Validator.check_schema(found)
    assert found["additionalProperties"] is False
    assert all(entry.get("description") for entry in found["properties"].values())
    documented = (REPO / "docs" / "sweeps.md").read_text()
    for key in found["properties"]:
        assert f"`{key}`" in documented


SHIPPED = sorted((REPO / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_cost_in_the_comment_of_each_of_our_sweeps_is_what_it_is(path):
    made = sweep.load(path.stem)
    assert made.name == path.stem and made.description
    statuses = states.look(jobs.make(made, "D", Path("/nowhere")), Path("/nowhere"))
    rows = estimate.make(statuses, {}).rows
    trained, evaluated = sum(row.trained for row in rows), sum(row.evaluated for row in rows)
    comment = " ".join(
        line[1:].strip() for line in path.read_text().splitlines() if line[:1] == "#"
    )
    assert (
        f"{len(statuses):,} jobs, {trained:,} pictures trained, {evaluated:,} evaluated" in comment
    )


def test_our_sweeps_are_the_issues():
    assert [path.stem for path in SHIPPED] == [
        "baselines", "contexts", "demo", "domainbed-search", "domainbed", "lambda"
    ]  # fmt: skip


def test_dry_run_loads_no_torch(tmp_path):
    code = (
        "import sys; from domainbed_carft import cli;"
        "status = cli.main(sys.argv[1:]); print('torch' in sys.modules, status)"
    )
    arguments = ["sweep", "launch", "domainbed", "--data_dir", "D", "--output_dir", "O"]
    done = run_python("-c", code, *arguments, "--dry-run", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "False 0", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_flags_and_launchers_mistakes_are_told_with_the_files(tmp_path, capsys):
    shutil.copy(REPO / "sweeps" / "demo.yaml", tmp_path / "mine.yaml")
    with (tmp_path / "mine.yaml").open("a") as file:
        file.write("trialz: 3\n")
    arguments = ["sweep", "launch", str(tmp_path / "mine.yaml"), "--output_dir"]
    assert cli.main([*arguments, str(tmp_path / "out"), "--launcher", "poool"]) == 1
    said = capsys.readouterr().err
    assert "carft: 2 problems, nothing was done" in said
    assert "trialz: no key is called 'trialz'; did you mean trials?" in said
    assert "no launcher is called 'poool'; did you mean pool" in said
    assert not (tmp_path / "out").exists()


def test_domainbeds_flags_are_checked_as_a_file_is(tmp_path, capsys):
    hparams = json.dumps({"kl_weigth": 1})
    arguments = ["--algorithms", "CARFTT", "CARFT", "--datasets", "PACS", "--n_trials", "0"]
    arguments += ["--hparams", hparams, "--n_hparams_from", "3", "--n_hparams", "3"]
    assert cli.main(["sweep", "launch", "--output_dir", str(tmp_path / "o"), *arguments]) == 1
    said = capsys.readouterr().err
    for part in (
        "--algorithms: no algorithm is called 'CARFTT'; did you mean CARFT?",
        "--n_trials: it is 0, expected a whole number of at least 1",
        "--n_hparams: it is 3, expected more than --n_hparams_from = 3",
        "--hparams: kl_weigth: no hyperparameter of CARFT is called 'kl_weigth'; did you mean kl_w",
    ):
        assert part in said
    arguments = ["demo", "--steps", "3", "--output_dir", str(tmp_path / "o")]
    assert cli.main(["sweep", "launch", *arguments]) == 1
    assert "--steps and the sweep demo: expected one of the two" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def commands_in(document):
    """The command lines of ``carft sweep`` in a document, continued lines joined."""
    text = document.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    inline = re.findall(r"`(carft sweep [^`]+)`", text)
    return [line for line in lines if line.startswith("carft sweep ")] + inline


@pytest.mark.parametrize("document", ["docs/sweeps.md", "sweeps/README.md"])
def test_every_command_of_the_documentation_is_one(document):
    found = commands_in(REPO / document)
    assert found
    for command in found:
        words = shlex.split(command, comments=True)[1:]
        if words[1:] in (["launch"], ["launch", "NAME"]):
            continue  # named, not shown
        arguments = cli._parser().parse_args(words)
        if words[1] == "launch":
            given = flags.launcher_options(arguments)
            assert not options.problems(arguments.launcher, given)
            if arguments.sweep not in (None, "NAME"):
                sweep.load(arguments.sweep)


def test_the_declaration_in_the_documentation_is_one():
    text = (REPO / "docs" / "sweeps.md").read_text()
    example = text.split("# yaml-language-server")[1].split("The schema in the first line")[0]
    made = declaration.parse("# " + example.replace("\n    ", "\n"), "x.yaml")
    assert made.steps_of("DomainNet", "CARFT") == 10001
    assert made.hparams_of("DomainNet", "CARFT", Variant())["kl_weight"] == 2


def test_a_checkout_in_the_current_folder_is_asked(tmp_path):
    """As its jobs will find it, although the command lies elsewhere."""
    checkout = write_checkout(tmp_path / "checkout")
    script = tmp_path / "elsewhere" / "carft.py"
    script.parent.mkdir()
    script.write_text("import sys; from domainbed_carft import cli; sys.exit(cli.main())")
    arguments = ["sweep", "launch", "--algorithms", "CARFT", "--datasets", "Pets", "--data_dir"]
    arguments += ["D", "--output_dir", "O", "--single_test_envs", "--dry-run"]
    done = run_python(str(script), *arguments, cwd=checkout, path=[REPO])
    assert done.returncode == 0, done.stderr
    assert "flags: 120 jobs" in done.stdout  # 2 environments, 20 draws, 3 trials
    done = run_python(str(script), *arguments, "--algorithms", "MLDG", cwd=checkout, path=[REPO])
    assert "no algorithm is called 'MLDG'; Valid: CARFT" in done.stderr
