"""What a file declares, and what is said of one with mistakes."""

import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from fake_checkout import REPO, run_python, write_checkout

from domainbed_carft import cli, sweep
from domainbed_carft.cli import sweep as command_line
from domainbed_carft.errors import CarftError
from domainbed_carft.launchers import options
from domainbed_carft.sweep import estimate, sources, states
from domainbed_carft.sweep.shape import Variant

SMALLEST = "name: x\ndatasets: [PACS]\nalgorithms: [CARFT]\n"


def problems(text):
    """The messages on ``text``, without the headline."""
    with pytest.raises(CarftError) as raised:
        sources.parse(text, "x.yaml")
    headline, *lines = str(raised.value).splitlines()
    assert headline.startswith(f"{len(lines)} problem")
    return [line.removeprefix("- ") for line in lines]


def test_the_smallest_sweep_has_domainbeds_trials_and_default_hparams():
    made = sources.parse(SMALLEST, "x.yaml")
    assert (made.trials, made.hparams_seeds, made.holdout_fraction) == (3, range(1), 0.2)
    assert made.steps_of("PACS", "CARFT") is None
    assert made.hparams_of("PACS", "CARFT") == {}
    assert made.test_environments == {"PACS": (0, 1, 2, 3)}


def test_the_later_of_two_settings_wins_and_reaches_what_it_names():
    made = sources.parse(
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
    assert made.hparams_of("PACS", "CLIPFineTune", "a") == {**common, "lr": 1e-5}
    assert made.hparams_of("PACS", "CARFT", "a") == {**common, "lr": 1e-5, "kl_weight": 2}
    assert made.hparams_of("DomainNet", "CLIPFineTune", "a")["lr"] == 2e-5
    assert made.hparams_of("DomainNet", "CARFT", "a")["lr"] == 3e-5
    assert made.hparams_of("DomainNet", "CARFT", "b")["lr"] == 4e-5
    assert made.steps_of("DomainNet", "CLIPFineTune") == 10000
    assert made.steps_of("DomainNet", "CARFT") == 7
    assert made.steps_of("PACS", "CARFT") is None
    assert made.algorithms_of("b") == ("CARFT",)


def test_a_grid_is_a_variant_for_each_combination():
    made = sources.parse(SMALLEST + "grid: {kl_weight: [0, 3], amp: [off, bf16]}", "x.yaml")
    assert list(made.variants) == [
        "kl_weight=0,amp=off", "kl_weight=0,amp=bf16", "kl_weight=3,amp=off", "kl_weight=3,amp=bf16"
    ]  # fmt: skip
    assert made.variants["kl_weight=0,amp=bf16"].hparams == {"kl_weight": 0, "amp": "bf16"}


def test_values_are_those_of_yaml_1_2():
    text = SMALLEST + "hparams: {amp: off, lr: 1e-5, weight_decay: 1., class_names: ['1', 'no']}"
    made = sources.parse(text, "x.yaml")
    assert made.hparams == {
        "amp": "off", "lr": 1e-5, "weight_decay": 1.0, "class_names": ["1", "no"]
    }  # fmt: skip


@pytest.mark.parametrize("given", ["[A, S]", "[0, 3]", "[art_painting, sketch]", "{PACS: [S, A]}"])
def test_environments_go_by_label_index_or_folder(given):
    made = sources.parse(SMALLEST + f"test_environments: {given}", "x.yaml")
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
        ('1: name: it is "two words", expected letters, digits', ""),
        ("2: datasets: PACS is there twice", ""),
        ("2: datasets[1]: no data set is called 'PAKS'; did you mean PACS?", "Debug28"),
        ("3: algorithms[1]: no algorithm is called 'CARTF'; did you mean CARFT?", "ERM"),
        ("4: trials: it is 0, expected a whole number of at least 1", ""),
        ("5: stepz: no key is called 'stepz'; did you mean steps?", "hparams_seeds"),
        ("7: hparams.kl_weigth: no hyperparameter of CARFT is called 'kl_weigth'", "kl_weight?"),
        ("9: hparams.weight_decay: it is -1, expected a number >= 0", ""),
        ("10: test_environments.VLCS: no data set of this sweep is called 'VLCS'", "PACS"),
        ("10: test_environments.PACS[0]: no environment of PACS is called 'Z'", "A (0), C (1)"),
        ("10: test_environments.PACS[1]: no environment of PACS is called '9'", "S (3)"),
        ("11: selection[1]: no selection is called 'orakel'; did you mean oracle?", ""),
        ("13: overrides[0]: it is about everything", ""),
        ("14: overrides[1].datasets[0]: no data set of this sweep is called 'VLCS'", ""),
        ("16: protocol: no protocol is called 'klip'; did you mean clip?", "domainbed"),
        ("17: compare_with[0]: no row of published figures is called 'CARFT'", "CAR-FT?"),
    ]
    for start, part in expected:
        assert any(line.startswith(f"x.yaml:{start}") and part in line for line in found), start
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [x", r"x.yaml:1: this is not YAML: while parsing a flow sequence .*expected"),
        ("", "x.yaml:1: there is nothing, expected a mapping with name, datasets"),
        ("- a", r'x.yaml:1: it is \["a"\], expected a mapping'),
        (
            SMALLEST + "hparams:\n  lr: 1\n  lr: 2",
            r"x.yaml:6: the key 'lr' is there twice, .*line 5",
        ),
        (SMALLEST + "trials: true", "x.yaml:4: trials: it is true, expected a whole number"),
        (SMALLEST + "hparams: {lr: [1]}", r"hparams.lr: it is \[1\], expected a word, a number"),
        ("name: x\ndatasets: [PACS]", "x.yaml:1: the key 'algorithms' is missing"),
        (SMALLEST + "hparams: {contexts: no.txt}", "'no.txt', which is neither a shipped list"),
        (SMALLEST + "hparams: {warmup_steps: 9000}", "warmup_steps is 9000 for CARFT on PACS, exp"),
        (SMALLEST + "grid: {contexts: [a/b, a b]}", "several combinations would share a folder"),
        (SMALLEST + "grid: {lr: [1]}\nvariants: {a: {}}", "expected one of the two"),
        (
            "name: x\ndatasets: [PACS]\nalgorithms: [CARFT, ERM]\nprotocol: clip",
            "x.yaml:4: protocol: the preset 'clip' is for CARFT, CLIPFineTune, .*; ERM has none",
        ),
        (
            "name: x\ndatasets: [PACS]\nalgorithms: [CARFT, MMD]",
            r"x.yaml:3: algorithms\[1\]: Algorithm MMD is not included. Use a checkout of face",
        ),
        (SMALLEST + "variants: {a/b: {}}", 'variants.a/b: it is "a/b", expected letters'),
        (
            "name: x\ndatasets: [/nowhere/pets]\nalgorithms: [ERM]",
            r"x.yaml:2: datasets\[0\]: there is no folder /nowhere/pets",
        ),
    ],
)
def test_other_mistakes(text, message):
    assert re.search(message, "\n".join(problems(text)))


def test_two_environments_do_not_do_for_pairs(tmp_path):
    for domain in ("a", "b"):
        (tmp_path / "pets" / domain / "cat").mkdir(parents=True)
    text = f"name: x\ndatasets: [{tmp_path}/pets]\nalgorithms: [ERM]\n"
    assert sources.parse(text, "x.yaml").environments[f"{tmp_path}/pets"] == ("a", "b")
    (found,) = problems(text + "selection: [leave-one-domain-out]")
    assert "pets has 2 environments; leave-one-domain-out needs at least 3" in found


def test_a_missing_file_and_an_unknown_name_say_what_there_is():
    with pytest.raises(CarftError, match=r"no sweep is called 'domainbet'; did you mean domainbed"):
        sweep.load("domainbet")
    with pytest.raises(CarftError, match=r"no/such.yaml does not exist; expected .*demo"):
        sweep.load("no/such.yaml")


NESTED = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
BOMB = SMALLEST + f"a0: &a0 [x, x]\n{NESTED}selection: *a8\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "stands for a collection; write it out"),
        (SMALLEST + "hparams: " + "[" * 50_000, "too large; expected at most 20,000 values and 40"),
        (SMALLEST + "trials: " + "1" * 5000, "x.yaml:4: '1111.*' is not a number that can be read"),
        (SMALLEST + "trials: " + "1" * 4000, "x.yaml:4: trials: .* of at most 1000000000"),
        (SMALLEST + "trials: 1000000000", "x.yaml:1: these are more than 100,000 jobs"),
        (SMALLEST + "trials: 25001", "x.yaml:1: these are more than 100,000 jobs"),
        (
            SMALLEST + f"grid: {{lr: {[*range(2000)]}, kl_weight: {[*range(2000)]}}}",
            "x.yaml:1: these are more than 100,000 jobs",
        ),
    ],
    ids=["aliases", "depth", "digits", "many digits", "trials", "jobs", "grid"],
)
def test_what_no_person_declares_is_refused_in_one_line(text, message, monkeypatch):
    monkeypatch.setattr(
        sources, "_variants", lambda given: 1 / 0 if given.grid else {"": Variant()}
    )
    (line,) = problems(text)
    assert re.search(message, line) and len(line) < 200


@pytest.mark.parametrize(
    "hparams", ["[" * 60_000, '{"lr": ' + "1" * 5000 + "}", "{", '{"a": 1, "a": 2}']
)
def test_hparams_that_are_no_json_are_told_in_a_line(hparams, tmp_path, capsys):
    arguments = ["--algorithms", "CARFT", "--datasets", "PACS", "--data_dir", "D", "--dry-run"]
    arguments += ["--output_dir", str(tmp_path), "--hparams", hparams]
    assert cli.main(["sweep", "launch", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and "--hparams: it is not valid JSON (" in said


def test_the_schema_for_editors_is_what_the_model_gives():
    made = runpy.run_path(str(REPO / "tools" / "sweep_schema.py"))
    shipped = made["PATH"].read_text()
    assert shipped == made["made"]()
    found = json.loads(shipped)
    assert found["additionalProperties"] is False
    assert found["required"] == ["name", "datasets", "algorithms"]
    assert found["properties"]["trials"]["minimum"] == 1
    documented = (REPO / "docs" / "sweeps.md").read_text()
    for key in found["properties"]:
        assert f"`{key}`" in documented


SHIPPED = sorted((REPO / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_cost_in_the_comment_of_each_of_our_sweeps_is_what_it_is(path):
    made = sweep.load(path.stem)
    assert made.name == path.stem and made.description
    found = made.jobs("D", Path("/nowhere"))
    statuses = states.look(found, made.facts, states.Waiting())
    *_, total = estimate.make(statuses, made.facts, {})
    comment = " ".join(
        line[1:].strip() for line in path.read_text().splitlines() if line[:1] == "#"
    )
    assert (
        f"{len(statuses):,} jobs, {total.trained:,} pictures trained, {total.evaluated:,} evaluated"
        in comment
    )


def test_our_sweeps_are_the_issues():
    assert [path.stem for path in SHIPPED] == [
        "baselines", "contexts", "demo", "domainbed-search", "domainbed", "lambda"
    ]  # fmt: skip


def test_the_other_commands_load_no_library_of_a_launch(tmp_path):
    code = (
        "import sys; from domainbed_carft import cli; cli.main(sys.argv[1:]);"
        "print({'torch', 'pydantic', 'ruamel', 'pandas'} & set(sys.modules))"
    )
    for arguments in (["sweep", "status", "."], ["sweep", "clean", "."]):
        done = run_python("-c", code, *arguments, cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_flags_and_launchers_mistakes_are_told_with_the_files(tmp_path, capsys):
    shutil.copy(REPO / "sweeps" / "demo.yaml", tmp_path / "mine.yaml")
    with (tmp_path / "mine.yaml").open("a") as file:
        file.write("trialz: 3\n")
    arguments = ["sweep", "launch", str(tmp_path / "mine.yaml"), "--output_dir"]
    assert cli.main([*arguments, str(tmp_path / "out"), "--launcher", "poool"]) == 1
    said = capsys.readouterr().err
    assert "carft: 2 problems, nothing was done" in said
    assert "trialz: no key is called 'trialz'; did you mean trials?" in said
    assert "called 'poool'; did you mean pool" in said
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
            given = command_line.launcher_options(arguments)
            assert not options.problems(arguments.launcher, given)
            if arguments.sweep not in (None, "NAME"):
                sweep.load(arguments.sweep)


def test_the_declaration_in_the_documentation_is_one():
    text = (REPO / "docs" / "sweeps.md").read_text()
    example = text.split("# yaml-language-server")[1].split("The schema in the first line")[0]
    made = sources.parse("# " + example.replace("\n    ", "\n"), "x.yaml")
    assert made.steps_of("DomainNet", "CARFT") == 10001
    assert made.hparams_of("DomainNet", "CARFT")["kl_weight"] == 2


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
