"""What `carft COMMAND --help` shows: examples that can be run, then options in groups."""

import argparse
import shlex

import pytest
from domainbed.lib import train_arguments

from domainbed_carft import cli
from domainbed_carft.cli import help_pages

MOST_UNGROUPED = 7  # options under the plain heading, with --help


def command_parsers(parser):
    nested = [action for action in parser._actions if action.nargs == argparse.PARSER]
    if not nested:
        yield parser
    for action in nested:
        for child in action.choices.values():
            yield from command_parsers(child)


PARSERS = {parser.prog: parser for parser in command_parsers(cli._parser())}


def test_every_command_has_a_page():
    assert PARSERS.keys() == help_pages.PAGES.keys()


@pytest.mark.parametrize("command", PARSERS)
def test_help_begins_with_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([*command.split()[1:], "--help"])
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    summary, _, rest = rest.partition("\n\n")
    examples, _, options = rest.partition("\n\n")
    assert usage.startswith(f"usage: {command}") and summary.endswith(".")

    title, *lines = examples.splitlines()
    commands = [line for line in lines if not line.lstrip().startswith("#")]
    assert title == "examples:" and commands
    for line in commands:
        words = shlex.split(line)
        assert line.startswith(f"  {command}") and len(line) < 80
        cli._parser().parse_args(words[1:])

    plain = options.partition("options:")[2].partition("\n\n")[0]
    assert sum(line.startswith("  -") for line in plain.splitlines()) <= MOST_UNGROUPED


@pytest.mark.parametrize("command", PARSERS)
def test_every_flag_takes_hyphens_and_underscores(command):
    """One spelling is shown; the other parses to the same."""
    parser = PARSERS[command]
    flags = [
        action for action in parser._actions if "_" in action.dest.strip("_") and action.nargs == 0
    ]
    positional = [action for action in parser._actions if not action.option_strings]
    words = ["x"] * sum(action.nargs != "?" for action in positional)
    words += [
        word
        for a in parser._actions
        if a.required and a.option_strings
        for word in (a.option_strings[0], "y")
    ]
    for action in flags:
        (shown,) = (flag for flag in action.option_strings if flag.startswith("--"))
        spellings = {f"--{shown[2:].replace(*pair)}" for pair in ("-_", "_-")}
        assert len(spellings) == 2
        namespaces = [vars(parser.parse_args([*words, flag])) for flag in spellings]
        assert namespaces[0] == namespaces[1]
        assert namespaces[0][action.dest] is not parser.get_default(action.dest)


def test_values_keep_their_spelling_and_unknown_flags_are_named(capsys):
    words = ["sweep", "launch", "a-b_c", "--output-dir", "x-y_z", "--data-dir=d-e_f", "--dry_run"]
    arguments = cli._parser().parse_args([*words, "--extra", "a-b_c=d", "--training-in_splits"])
    assert (arguments.sweep, str(arguments.output_dir)) == ("a-b_c", "x-y_z")
    assert (arguments.data_dir, arguments.dry_run) == ("d-e_f", True)
    assert arguments.extra == ["a-b_c=d"] and arguments.skip_training_in_splits is False

    with pytest.raises(SystemExit):
        cli._parser().parse_args([*words, "--no-such_flag"])
    assert "unrecognized arguments: --no-such_flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("colect OUT", "carft: error: no command is called 'colect'; did you mean collect?"),
        ("sweep launc x", "carft sweep: error: no command is called 'launc'; did you mean launch"),
        (
            "collect OUT --agains CARFT",
            "carft collect: error: unrecognized arguments: --agains; did you mean --against?",
        ),
        (
            "sweep launch x --output_dir o --dry",
            "carft sweep launch: error: unrecognized arguments: --dry; did you mean --dry-run",
        ),
    ],
)
def test_misspelt_commands_and_shortened_flags_are_refused_with_what_is_near(
    words, message, capsys
):
    with pytest.raises(SystemExit):
        cli.main(words.split())
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_end_of_the_help_shows_how_to_train_and_python(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-4] == "" and max(map(len, lines[-3:])) < 80

    train, python = "\n".join(lines[-3:]).split("in Python:")
    words = shlex.split(train.partition(":")[2].replace("\\\n", ""))
    assert words[:3] == ["python", "-m", "domainbed.scripts.train"]
    assert train_arguments.build_parser().parse_args(words[3:]).dataset == "EmojiStyles"
    assert python.strip() == 'domainbed_carft.load_run("OUT").predict(["cat.png"])'
