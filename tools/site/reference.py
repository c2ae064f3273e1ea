"""Write the generated parts of docs/reference, and the schema of declared sweeps.

    python tools/site/reference.py           # write them
    python tools/site/reference.py --check   # exit status 1 if a file is out of date

A generated part is enclosed in `<!-- begin NAME -->` and `<!-- end NAME -->`. Editors use the
schema, assets/sweep.schema.json, to check declared sweeps.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from domainbed_carft import cli, process_variables
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.hparams import Conditions, Hparam
from domainbed_carft.method.resolution import get_hparams
from domainbed_carft.sweep.declaration import Shape

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "reference"
SCHEMA = ROOT / "domainbed_carft" / "assets" / "sweep.schema.json"
USUAL_DATASET = "PACS"
# Dataset with its own defaults -> its name on the page.
SPECIAL_DATASETS = {
    "EmojiStyles": "tiny",
    "VLCS": "VLCS",
    "OfficeHome": "OfficeHome",
    "DomainNet": "DomainNet",
    "ImageNet": "ImageNet",
    "DTD": "tasks",
}
_HPARAM_COLUMNS = (
    "| name | what it does | default | values; random search | source |\n|---|---|---|---|---|"
)
# Title of a table -> its first hyperparameter. Each table ends where the next one begins.
_SHARED_GROUPS = {
    "CLIP, prompts and images": "clip_backbone",
    "The head": "head_init",
    "Optimizer and schedule": "lr",
    "Precision, memory and measurements": "amp",
    "Weights used for prediction": "average",
    "LoRA": "lora_rank",
    "Penalties": "sp_weight",
}


class StableHelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Format help in 100 columns, with arguments formatted like in Python 3.12 and older."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            (metavar,) = self._metavar_formatter(action, action.dest)(1)
            return metavar
        arguments = "" if action.nargs == 0 else self._format_args(action, action.dest.upper())
        return f"{', '.join(action.option_strings)} {arguments}".rstrip()


def commands() -> str:
    """Return the help of all commands, from their parsers."""
    sys.path.append(str(ROOT / "third_party"))
    from domainbed.lib import sweep_arguments, train_arguments

    parsers = [*_find_commands(cli._parser())]
    for parser in (train_arguments.build_parser(), sweep_arguments.build_parser()):
        parser.prog = f"python -m {parser.prog}"
        parser.usage = "%(prog)s [options]"
        parsers.append(parser)

    parts = []
    for parser in parsers:
        parser.formatter_class = StableHelpFormatter
        parts.append(f"## {parser.prog}\n\n```text\n{parser.format_help().strip()}\n```")
    return "\n\n".join(parts)


def _find_commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parsers of all commands without subcommands."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        yield parser
        return
    helps = {choice.dest: choice.help for choice in nested[0]._choices_actions}
    for name, child in nested[0].choices.items():
        child.description = child.description or helps.get(name)
        yield from _find_commands(child)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def hyperparameters() -> str:
    """Return a table for each group of hyperparameters, from their declarations."""
    shared_names = [*get_hparams(CLIPAlgorithm)]
    groups = {first: title for title, first in _SHARED_GROUPS.items()}
    shared: dict[str, tuple[Sequence[str], list[str]]] = {}
    special: dict[str, tuple[Sequence[str], list[str]]] = {}
    title = ""
    for name in shared_names:
        title = groups.get(name, title)
        shared.setdefault(title, (ALGORITHMS, []))[1].append(name)

    for name in algorithms.recorded_hparams("CARFT"):
        if name not in shared_names:
            owners = tuple(a for a in ALGORITHMS if name in get_hparams(algorithms.CLASSES[a]))
            special.setdefault(f"Only {', '.join(owners)}", (owners, []))[1].append(name)

    # CAR-FT's hyperparameters come first, because most readers look for them.
    (carft_title, carft_section), *special_sections = special.items()
    sections = {carft_title: carft_section, **shared, **dict(special_sections)}
    parts = []
    for title, (owners, names) in sections.items():
        rows = "\n".join(_hparam_row(name, owners) for name in names)
        parts.append(f"## {title}\n\n{_HPARAM_COLUMNS}\n{rows}")
    return "\n\n".join(parts)


def _hparam_row(name: str, owners: Sequence[str]) -> str:
    """Return the table row of a hyperparameter that affects the algorithms ``owners``."""
    hparams = {owner: algorithms.recorded_hparams(owner)[name] for owner in owners}
    hparam = hparams[owners[0]]
    values = _plain(hparam.expected).replace("False, True", "false, true")  # like in JSON
    search = _merge_texts({owner: _draws(owned) for owner, owned in hparams.items()})
    cells = [
        f"`{name}`",
        _cell(hparam.meaning),
        _merge_texts({owner: _defaults(owned) for owner, owned in hparams.items()}),
        f"{values}; *search* {search}" if search else values,
        _merge_texts({owner: _cell(owned.source) for owner, owned in hparams.items()}, "<br>"),
    ]
    return f"| {' | '.join(cells)} |"


def _merge_texts(texts: Mapping[str, str], separator: str = "; ") -> str:
    """Return the first algorithm's text, followed by different texts with their algorithms."""
    usual, *_ = texts.values()
    exceptions: dict[str, list[str]] = {}
    for algorithm, text in texts.items():
        if text != usual:
            exceptions.setdefault(text, []).append(algorithm)
    listing = [f"{', '.join(names)}: {text or 'fixed'}" for text, names in exceptions.items()]
    return separator.join(filter(None, [usual, *listing]))


def _defaults(hparam: Hparam) -> str:
    def default(dataset: str) -> str:
        value = hparam.default_for(Conditions(dataset))
        if isinstance(value, str):
            value = value.replace(dataset, "NAME")
        return _code(_number(value) if isinstance(value, float) else json.dumps(value))

    return _by_dataset(default)


def _number(value: float) -> str:
    """Format a number like 5e-6 or 0.25."""
    if 0 < value < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def _code(text: str) -> str:
    """Format code in a cell, without backticks if it has a bar, which some renderers escape."""
    return f"<code>{_plain(text)}</code>" if "|" in text else f"`{text}`"


def _plain(text: str) -> str:
    """Replace bars by entities, which all renderers show as bars."""
    return text.replace("<", "&lt;").replace("|", "&#124;")


def _draws(hparam: Hparam) -> str:
    """Return the range of a random search, by generators that draw the ends of all ranges."""
    draw = hparam.draw
    if draw is None:
        return ""

    def ends(dataset: str) -> str:
        low, high = (float(f"{draw(end, Conditions(dataset)):.2g}") for end in _ENDS)
        return f"{_number(low)} to {_number(high)}"

    return _by_dataset(ends)


def _by_dataset(text_for: Callable[[str], str]) -> str:
    """Return the usual text, followed by different texts with their datasets in parentheses."""
    usual = text_for(USUAL_DATASET)
    exceptions: dict[str, list[str]] = {}
    for dataset, label in SPECIAL_DATASETS.items():
        if (text := text_for(dataset)) != usual:
            exceptions.setdefault(text, []).append(label)
    listing = "; ".join(f"{', '.join(names)} {text}" for text, names in exceptions.items())
    return f"{usual} ({listing})" if listing else usual


class _End(np.random.RandomState):
    """A generator that draws the end ``index`` of each range: 0 is the low end, 1 the high end."""

    def __init__(self, index: int) -> None:
        super().__init__(0)
        self.index = index

    def uniform(self, *ends: float) -> float:  # type: ignore[override]
        return ends[self.index]


_ENDS = (_End(0), _End(1))


PARTS = {
    "commands": commands,
    "process variables": process_variables.as_markdown,
    "hyperparameters": hyperparameters,
}
_PART = re.compile(r"(<!-- begin ([\w ]+) -->\n).*?(\n<!-- end \2 -->)", re.DOTALL)


def update_parts(page: str) -> str:
    """Replace the generated parts of a page."""
    return _PART.sub(lambda match: match[1] + PARTS[match[2]]().strip() + match[3], page)


def sweep_schema() -> str:
    """Return the JSON schema of a declared sweep."""
    return json.dumps(Shape.model_json_schema(), indent=2) + "\n"


def main() -> int:
    """Write the files, or check that they are up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help="check that the files are up to date, without writing them",
    )
    check = parser.parse_args().check

    texts = {page: update_parts(page.read_text(encoding="utf-8")) for page in FOLDER.glob("*.md")}
    texts[SCHEMA] = sweep_schema()
    status = 0
    for path, text in texts.items():
        if text != path.read_text(encoding="utf-8") and check:
            print(f"{path.relative_to(ROOT)} is not up to date", file=sys.stderr)
            status = 1
        elif not check:
            path.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
