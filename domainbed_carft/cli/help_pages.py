"""The part of ``carft COMMAND --help`` before the options: a summary and examples."""

from __future__ import annotations

import argparse
import functools
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from domainbed_carft.flags import FlagParser
from domainbed_carft.suggestions import near_matches, unknown

WIDTH = 79

# The end of ``carft --help``: tasks for which there is no ``carft`` command.
EPILOG = """\
train a job:  python -m domainbed.scripts.train --algorithm CARFT \\
                --dataset EmojiStyles --test_envs 0 --output_dir OUT
in Python:    domainbed_carft.load_run("OUT").predict(["cat.png"])"""


@dataclass(frozen=True)
class HelpPage:
    """The usage and the examples of a command."""

    arguments: str  # usage after the command's name
    examples: dict[str, str]  # command -> comment

    def text(self, description: str) -> str:
        """Return the description and the examples, each below its comment."""
        lines = [f"  # {remark}\n  {command}" for command, remark in self.examples.items()]
        return "\n".join([textwrap.fill(description, WIDTH), "", "examples:", *lines])


PAGES = {
    "carft demo": HelpPage(
        "[options]",
        {
            "carft demo": "one trial, two to four minutes on two cores",
            "carft demo --trials 10": "as many trials as were recorded, ten times as long",
        },
    ),
    "carft doctor": HelpPage(
        "[options]",
        {
            "carft doctor": "packages, plugin, devices and weights",
            "carft doctor --train": "also train for two steps",
        },
    ),
    "carft preflight": HelpPage(
        "SWEEP --output_dir DIR [options]",
        {
            "carft preflight demo --output_dir OUT": "a sweep that needs no download",
            "carft preflight peers --data_dir DATA --output_dir OUT --json": "for scripts",
        },
    ),
    "carft data list": HelpPage("[--json]", {"carft data list": "all benchmarks and tasks"}),
    "carft data verify": HelpPage(
        "NAME|PATH [options]",
        {
            "carft data verify PACS --data_dir DATA": "a benchmark",
            "carft data verify my/images --decode": "your own folder, opening each image",
        },
    ),
    "carft data download": HelpPage(
        "NAME --data_dir DIR [options]",
        {
            "carft data download PACS --data_dir DATA": "download, verify, install",
            "carft data download PACS --data_dir DATA --from PACS.zip": "if the link is dead",
        },
    ),
    "carft collect": HelpPage(
        "DIR... [options]",
        {
            "carft collect OUT": "tables of a sweep",
            "carft collect OUT --columns all --against CARFT": "more columns, paired tests",
            "carft collect OUT --format latex -o table.tex": "for a paper",
        },
    ),
    "carft report": HelpPage(
        "DIR... -o FOLDER [options]",
        {
            "carft report OUT -o report": "open report/index.html",
            "carft report OUT -o report --against CARFT": "with paired tests",
        },
    ),
    "carft top": HelpPage(
        "DIR... [options]",
        {
            "carft top OUT": "the chosen run of each cell",
            "carft top OUT --only CARFT --json": "hyperparameters for --hparams",
        },
    ),
    "carft diff": HelpPage(
        "A B [--json]",
        {
            "carft diff OUT/JOB OUT/JOB2": "folders of two jobs",
        },
    ),
    "carft evaluate": HelpPage(
        "[RUN] [options]",
        {
            "carft evaluate OUT/JOB": "a run, on the splits of its dataset",
            "carft evaluate OUT": "all chosen runs of a sweep",
            "carft evaluate OUT/JOB --suite imagenet --data_dir DATA": "on ImageNet's test sets",
            "carft evaluate --clip ViT-B/16 --suite imagenet --data_dir DATA": (
                "a CLIP model, zero-shot"
            ),
        },
    ),
    "carft predict": HelpPage(
        "RUN IMAGE_OR_FOLDER... [options]",
        {
            "carft predict OUT/JOB IMAGES": "the most likely classes and contexts of each image",
            "carft predict OUT/JOB IMAGES --format jsonl -o predictions.jsonl": "for scripts",
        },
    ),
    "carft wise-ft": HelpPage(
        "RUN -o FOLDER [options]",
        {
            "carft wise-ft OUT/JOB -o MIX": "the accuracies from CLIP to the run",
            "carft wise-ft OUT/JOB -o MIX --alphas 0.5 --save 0.5": (
                "the weights halfway between CLIP and the run"
            ),
        },
    ),
    "carft soup": HelpPage(
        "RUN... -o FOLDER [options]",
        {
            "carft soup OUT/JOB OUT/JOB2 -o SOUP": "the uniform and the greedy soup",
        },
    ),
    "carft export": HelpPage(
        "RUN -o FILE [options]",
        {
            "carft export OUT/JOB -o model.pt": "for clip and open_clip",
            "carft export OUT/JOB -o FOLDER --format transformers": "for transformers",
        },
    ),
    "carft check": HelpPage(
        "METHOD [options]",
        {
            "carft check CARFT": "an algorithm",
            "carft check my_method.py": "your own method",
        },
    ),
    "carft sweep list": HelpPage("", {"carft sweep list": "names and descriptions"}),
    "carft sweep launch": HelpPage(
        "SWEEP --output_dir DIR [options]",
        {
            "carft sweep launch demo --output_dir OUT --dry-run": "show the cost, start nothing",
            "carft sweep launch demo --output_dir OUT": "run or resume the sweep on this machine",
            "carft sweep launch peers --data_dir DATA --output_dir OUT --launcher slurm --gpus 1": (
                "on a cluster, a GPU for each job"
            ),
        },
    ),
    "carft sweep status": HelpPage(
        "OUTPUT_DIR [options]",
        {
            "carft sweep status OUT": "jobs that are running, queued, failed or done",
            "carft sweep status OUT --json": "for scripts",
        },
    ),
    "carft sweep retry": HelpPage(
        "OUTPUT_DIR [options]",
        {"carft sweep retry OUT --only DomainNet": "then launch the sweep again"},
    ),
    "carft sweep cancel": HelpPage(
        "OUTPUT_DIR [options]", {"carft sweep cancel OUT": "launch the sweep again to resume"}
    ),
    "carft sweep clean": HelpPage(
        "OUTPUT_DIR [options]",
        {"carft sweep clean OUT --incomplete": "also delete incomplete jobs, after a question"},
    ),
}


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description, and never break a flag at its hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Commands(argparse._SubParsersAction):  # type: ignore[type-arg]
    """Subcommands whose help in the list is also their description by default.

    With ``run``, a subcommand calls it with its name and the parsed arguments.
    """

    def add_parser(
        self,
        name: str,
        run: Callable[[str, argparse.Namespace], int | None] | None = None,
        **kwargs: Any,
    ) -> Any:
        kwargs.setdefault("description", kwargs["help"])
        parser = super().add_parser(name, **kwargs)
        if run:
            parser.set_defaults(run=functools.partial(run, name))
        return parser

    @property
    def nested_commands(self) -> list[str]:
        """The commands of the groups, such as ``sweep launch``."""
        return [
            f"{group} {name}"
            for group, parser in self.choices.items()
            for action in parser._actions
            if isinstance(action, _Commands)
            for name in action.choices
        ]


class CommandParser(FlagParser):
    """The parser of a command, whose help has the command's `HelpPage` before the options.

    Attributes:
        choose_mode: if the command has modes, returns the parser of the mode that the arguments
            ask for, or None if they do not show it. It has the flags that the mode uses; its
            description is the title of the mode.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.choose_mode: Callable[[argparse.Namespace], argparse.ArgumentParser | None] = (
            lambda arguments: None
        )
        kwargs["allow_abbrev"] = False
        super().__init__(*args, **kwargs)
        self.register("action", "parsers", _Commands)
        page = PAGES.get(self.prog)
        if page:
            summary = self.description or ""
            self.usage = f"{self.prog} {page.arguments}"
            self.description = page.text(f"{summary[:1].upper()}{summary[1:].rstrip('.')}.")
            self.formatter_class = _HelpFormatter

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Suggest similar flags in the error about an unknown one, and parse again by the mode."""
        parsed, unknown_words = super().parse_known_args(args, namespace)
        actions = self._option_string_actions.items()
        flags = [flag for flag, action in actions if action.help != argparse.SUPPRESS]
        for word in unknown_words:
            if word.startswith("--") and (close := near_matches(word.partition("=")[0], flags)):
                self.error(f"unrecognized arguments: {word}; did you mean {' or '.join(close)}?")
        mode = None if unknown_words else self.choose_mode(parsed)
        if mode is None:
            return parsed, unknown_words

        parsed, unused_words = mode.parse_known_args(args)
        if unused_words:
            # The word after an unknown flag can be its value or not.
            flags = [word.partition("=")[0] for word in unused_words if word.startswith("--")]
            self.error(
                f"{', '.join(flags) or unused_words[0]} cannot be used for {mode.description}"
            )
        return parsed, []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, _Commands) and value not in action.choices:
            close = near_matches(value, [name.split()[-1] for name in action.nested_commands])
            nested = [name for name in action.nested_commands if name.split()[-1] in close]
            if nested and not near_matches(value, action.choices):
                listing = " or ".join(f"{self.prog} {name}" for name in nested)
                self.error(f"no command is called {value!r}; did you mean {listing}?")
            self.error(unknown("command", value, action.choices))
        super()._check_value(action, value)


def comma_separated(choices: Collection[str]) -> Callable[[str], list[str]]:
    """Return an argparse type for names with commas between them."""

    # Words after a flag with nargs="+" would swallow the positional argument DIR.
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if not {*names} <= {*choices}:
            expected = f"one or more of {', '.join(choices)}, separated by commas"
            raise argparse.ArgumentTypeError(f"{text!r}; expected {expected}")
        return names

    return parse
