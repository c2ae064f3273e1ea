"""A hook of MkDocs: reference pages that are made from the code, so that they are never stale."""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from domainbed_carft import LAZY_NAMES, cli
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import hparams
from domainbed_carft.sweep import declaration_file

ROOT = Path(__file__).resolve().parents[2]
GENERATED = "<!-- made by tools/site/reference.py -->\n"
# Data sets whose defaults differ from those of all others.
SPECIAL_DATASETS = ("EmojiStyles", "VLCS", "OfficeHome", "DomainNet", "ImageNet", "DTD")
# What the commands of sweeps and tables are in Python, beside the names of the package itself.
FURTHER_API = (
    "domainbed_carft.plugin.register",
    "domainbed_carft.plugin.unregister",
    "domainbed_carft.runs.evaluation_processes.SweepOptions",
    "domainbed_carft.sweep.launch.plan",
    "domainbed_carft.sweep.launch.run_plan",
    "domainbed_carft.sweep.states.of_output",
    "domainbed_carft.sweep.upkeep.retry",
    "domainbed_carft.results.top.top",
    "domainbed_carft.report.page.write_report",
    "domainbed_carft.errors.CarftError",
)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {
        "commands": commands_page(),
        "hyperparameters": hyperparameters_page(),
        "sweeps": sweeps_page(),
        "api": api_page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=GENERATED + text))
    return files


def commands_page() -> str:
    """Every command with its arguments, from the parsers that read the command line."""
    parts = [
        "# Commands",
        "`carft` has these commands, whose flags you may write with hyphens or underscores. "
        "DomainBed's own commands run from a checkout of yours, or from the included harness, "
        "whose options are listed here.",
    ]
    for command, parser in command_parsers():
        parts += _command_section(command, parser)
    return "\n\n".join(parts) + "\n"


def command_parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command that can be run, by name, with its parser."""
    yield from _leaves("carft", cli._parser())

    third_party = str(ROOT / "third_party")
    if third_party not in sys.path:
        sys.path.append(third_party)
    from domainbed.lib import sweep_arguments, train_arguments

    for parser in (train_arguments.build_parser(), sweep_arguments.build_parser()):
        yield f"python -m {parser.prog}", parser


def _leaves(
    command: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        yield command, parser
        return

    helps = {choice.dest: choice.help for choice in nested[0]._choices_actions}
    for name, child in nested[0].choices.items():
        child.description = child.description or helps.get(name)
        yield from _leaves(f"{command} {name}", child)


def _command_section(command: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {command}"
    if parser.description:
        yield _text(parser.description)
    yield f"```text\n{_usage(parser)}\n```"
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        actions = [a for a in actions if not isinstance(a, argparse._HelpAction)]
        if not actions:
            continue
        is_named = group.title not in ("positional arguments", "options")
        title = f"**{(group.title or '').capitalize()}**\n\n" if is_named else ""
        rows = (f"| {_invocation(action)} | {_help(action, parser)} |" for action in actions)
        yield f"{title}| argument | meaning |\n|---|---|\n" + "\n".join(rows)
    if parser.epilog:
        yield f"```text\n{parser.epilog.strip()}\n```"


def _text(description: str) -> str:
    """A parser's description as a sentence; examples in it follow as commands."""
    sentence, _, examples = description.strip().partition("\n\nexamples:\n")
    text = f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."
    commands = textwrap.dedent(examples).strip()
    return f"{text}\n\n```bash\n{commands}\n```" if commands else text


def _usage(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.RawDescriptionHelpFormatter(parser.prog, width=88)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    return formatter.format_help().strip()


def _invocation(action: argparse.Action) -> str:
    formatter = argparse.HelpFormatter("")
    return f"`{_cell(formatter._format_action_invocation(action))}`"


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog)
    text = _cell(formatter._expand_help(action)) if action.help else ""
    text = text.replace("$", "\\$")  # which would begin a formula
    is_needed = action.required and action.option_strings
    return f"{text} (required)".strip() if is_needed else text or "see DomainBed"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def hyperparameters_page() -> str:
    """Every hyperparameter: valid values, defaults by data set and algorithm, what is drawn."""
    parts = [
        "# Hyperparameters",
        "Set them with `--hparams '{\"name\": value}'`, or under `hparams` in a declared sweep. "
        "[The method](../method.md#hyperparameters) gives the source of each default. "
        "The default is that of `CARFT` on PACS; exceptions by data set and by algorithm follow. "
        "EmojiStyles stands for all embedded data sets, DTD for the eleven tasks.",
        "| name | valid | default | exceptions | random search |\n|---|---|---|---|---|\n"
        + "\n".join(_hparam_row(hparam) for hparam in hparams.HPARAMS),
    ]
    return "\n\n".join(parts) + "\n"


def _hparam_row(hparam: hparams.Hparam) -> str:
    usual = default_of(hparam, "CARFT", "PACS")
    exceptions = [
        f"{dataset}: {_value(value)}"
        for dataset in SPECIAL_DATASETS
        if (value := default_of(hparam, "CARFT", dataset)) != _named(usual, "PACS", dataset)
    ]
    exceptions += [
        f"{algorithm}: {_value(value)}"
        for algorithm in ALGORITHMS
        if (value := default_of(hparam, algorithm, "PACS")) != usual
    ]
    valid = _cell(hparam.expected)
    search = "drawn" if hparam.draw else ""
    return f"| `{hparam.name}` | {valid} | {_value(usual)} | {', '.join(exceptions)} | {search} |"


def _named(value: Any, dataset: str, new_name: str) -> Any:
    """The value with another data set's name, such as ``dataset:PACS``."""
    return value.replace(dataset, new_name) if isinstance(value, str) else value


def default_of(hparam: hparams.Hparam, algorithm: str, dataset: str) -> Any:
    """The default of a hyperparameter in a job of this algorithm on this data set."""
    conditions = hparams.Conditions(algorithm, dataset)
    return hparam.default(conditions) if callable(hparam.default) else hparam.default


def _value(value: Any) -> str:
    return f"`{_cell(json.dumps(value))}`" if value != "" else "filled in"


def sweeps_page() -> str:
    """The table of the included sweeps, then each declaration with its number of jobs."""
    text = (ROOT / "sweeps" / "README.md").read_text(encoding="utf-8")
    parts = [re.sub(r"\]\(([\w-]+)\.yaml\)", r"](#\1)", text).strip()]
    for name, path in declaration_file.included_sweeps().items():
        declaration = declaration_file.load(name)
        count = len(declaration.jobs("DATA", Path("OUT")))
        stage = " in the first stage" if declaration.has_stages else ""
        parts.append(f"## {name}")
        parts.append(f"{declaration.description} {count:,} jobs{stage}.")
        parts.append(f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```")
    return "\n\n".join(parts) + "\n"


def api_page(names: Mapping[str, str] = LAZY_NAMES) -> str:
    """The public functions and classes, each by its docstring."""
    public = [f"{module}.{name}" for name, module in names.items() if name != "__version__"]
    parts = [
        "# Python API",
        "`import domainbed_carft` has the first of these names as attributes, up to `wise_ft`; "
        "[Trained runs in Python](../python.md) shows them at work.",
    ]
    parts += [f"::: {path}" for path in public]
    parts += [f"::: {path}\n    options: {{show_root_full_path: true}}" for path in FURTHER_API]
    return "\n\n".join(parts) + "\n"
