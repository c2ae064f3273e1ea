"""What `carft COMMAND --help` shows: examples that can be run, then options."""

import re
import shlex

import pytest
from collect_sweeps import write_job

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


def test_every_command_has_a_page(capsys):
    commands = re.findall(r"^    (\S+)(?:  +\w|$)", read_help(capsys), re.MULTILINE)
    assert set(commands) == {page.split()[1] for page in PAGES}
    for group in ("data", "sweep"):
        pages = {page.split()[2] for page in PAGES if page.startswith(f"carft {group} ")}
        assert (
            set(re.findall(r"^    (\S+)(?:  +\w|$)", read_help(capsys, group), re.MULTILINE))
            == pages
        )


@pytest.mark.parametrize("command", PAGES)
def test_help_begins_with_examples_that_parse(command, capsys):
    usage, summary, examples, *_ = read_help(capsys, *command.split()[1:]).split("\n\n")
    assert usage.startswith(f"usage: {command}") and summary.endswith(".")
    title, *lines = examples.splitlines()
    commands = [line for line in lines if not line.lstrip().startswith("#")]
    assert title == "examples:" and commands
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "carft"
        # All else was accepted before.
        assert read_error(capsys, [*words, "--jjj"]) == "unrecognized arguments: --jjj"


@pytest.mark.parametrize("command", PAGES)
def test_every_flag_takes_hyphens_and_underscores(command, capsys):
    words = command.split()[1:]
    for flag in set(re.findall(r"^  (?:-\w, )?--(\w+[-_][-\w]*)", read_help(capsys, *words), re.M)):
        for spelling in (flag.replace("-", "_"), flag.replace("_", "-")):
            error = read_error(capsys, [*words, "x", "y", f"--{spelling}", "--jjj"])
            assert f"unrecognized arguments: --{spelling}" not in error


def test_values_keep_their_spelling(tmp_path, capsys):
    write_job(tmp_path)
    assert cli.main(["collect", str(tmp_path), "--against=a-b_c"]) == 1
    assert "--against a-b_c:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("colect OUT", "no command is called 'colect'; did you mean collect?"),
        ("sweep launc x", "no command is called 'launc'; did you mean launch"),
        ("collect OUT --agains CARFT", "unrecognized arguments: --agains; did you mean --against?"),
        ("sweep launch x --output_dir o --dry", "unrecognized arguments: --dry; did you mean"),
    ],
)
def test_misspelt_commands_and_shortened_flags_are_refused_with_what_is_near(
    words, message, capsys
):
    assert read_error(capsys, words.split()).startswith(message)
