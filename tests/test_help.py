"""What `carft COMMAND --help` shows: examples that can be run, then options in groups."""

import argparse
import shlex

import pytest

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
