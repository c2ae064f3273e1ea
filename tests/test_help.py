"""`carft COMMAND --help`: examples that parse, then options."""

import re
import shlex

import pytest
from collect_sweeps import write_job
from domainbed.lib import sweep_arguments, train_arguments

from domainbed_carft import cli
from domainbed_carft.cli.help_pages import PAGES


def read_help(capsys, *words):
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--help"])
    return capsys.readouterr().out


def read_error(capsys, words):
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    return capsys.readouterr().err.splitlines()[-1].partition("error: ")[2]


@pytest.mark.parametrize("group", [(), ("data",), ("sweep",)])
def test_every_command_has_a_help_page(group, capsys):
    commands = re.findall(r"^    (\S+)(?:  +\w|$)", read_help(capsys, *group), re.MULTILINE)
    beginning = " ".join(["carft", *group, ""])
    pages = [page.removeprefix(beginning) for page in PAGES if page.startswith(beginning)]
    assert set(commands) == {page.split()[0] for page in pages}


@pytest.mark.parametrize("command", PAGES)
def test_help_begins_with_valid_examples(command, capsys):
    usage, summary, examples, *_ = read_help(capsys, *command.split()[1:]).split("\n\n")
    assert usage.startswith(f"usage: {command}") and summary.endswith(".")
    title, *lines = examples.splitlines()
    commands = [line for line in lines if not line.lstrip().startswith("#")]
    assert title == "examples:" and commands
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "carft"
        # argparse reports unknown flags only if all other words are valid.
        assert read_error(capsys, [*words, "--jjj"]) == "unrecognized arguments: --jjj"


@pytest.mark.parametrize("command", PAGES)
def test_flags_have_hyphens_except_those_of_domainbed(command, capsys):
    flags = re.findall(r"^  (?:-\w, )?--([-\w]+)", read_help(capsys, *command.split()[1:]), re.M)
    assert {flag for flag in flags if "_" in flag} <= {"data_dir", "output_dir"}


@pytest.mark.parametrize(
    "words",
    [
        "sweep launch demo --output-dir OUT --data-dir DATA --dry_run",
        "sweep launch demo --output_dir OUT --data_dir=DATA --dry-run",
        "predict RUN cat.png --batch_size 4",
        "evaluate RUN --batch_size=4 --data-dir DATA",
    ],
)
def test_flags_are_accepted_with_hyphens_and_underscores(words, capsys):
    # argparse reports unknown flags only if all other words are valid.
    error = read_error(capsys, [*words.split(), "--jjj"])
    assert error in ("unrecognized arguments: --jjj", "--jjj cannot be used for a run")


def test_flags_of_the_harness_are_accepted_with_hyphens_too():
    parse = train_arguments.build_parser().parse_args
    words = "--data-dir my-data_dir --output-dir=my-output_dir --test-envs 1"
    assert parse(words.split()) == parse(
        ["--data_dir", "my-data_dir", "--output_dir=my-output_dir", "--test_envs", "1"]
    )

    parse = sweep_arguments.build_parser().parse_args
    words = "launch --data-dir D --output-dir O --command-launcher local"
    arguments = parse(words.split())
    assert (arguments.data_dir, arguments.command_launcher) == ("D", "local")


def test_values_keep_hyphens_and_underscores(tmp_path, capsys):
    write_job(tmp_path)
    assert cli.main(["collect", str(tmp_path), "--against=a-b_c"]) == 1
    assert "--against a-b_c:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("colect OUT", "no command is called 'colect'; did you mean collect?"),
        ("launch demo", "no command is called 'launch'; did you mean carft sweep launch?"),
        ("lauch demo", "no command is called 'lauch'; did you mean carft sweep launch?"),
        ("sweep launc x", "no command is called 'launc'; did you mean launch"),
        ("collect OUT --agains CARFT", "unrecognized arguments: --agains; did you mean --against?"),
        ("sweep launch x --output_dir o --dry", "unrecognized arguments: --dry; did you mean"),
    ],
)
def test_misspelt_command_or_shortened_flag_suggests_similar_name(words, message, capsys):
    assert read_error(capsys, words.split()).startswith(message)
