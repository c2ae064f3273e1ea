"""Writes the pages of docs/reference that are made from the code; a test says when they are stale.

python tools/site/reference.py
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from domainbed_carft import LAZY_NAMES, cli, process_variables
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms
from domainbed_carft.method.algorithm import CLIPAlgorithm
from domainbed_carft.method.hparams import Conditions, Hparam
from domainbed_carft.sweep import declaration_file

ROOT = Path(__file__).resolve().parents[2]
GENERATED = "<!-- made by tools/site/reference.py -->\n"
FOLDER = ROOT / "docs" / "reference"
LONGEST_SIGNATURE = 88
_EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)
USUAL_DATASET = "PACS"
# Data sets whose defaults differ from those of all others, and what the page calls them.
SPECIAL_DATASETS = {
    "EmojiStyles": "tiny",
    "VLCS": "VLCS",
    "OfficeHome": "OfficeHome",
    "DomainNet": "DomainNet",
    "ImageNet": "ImageNet",
    "DTD": "tasks",
}
_HYPERPARAMETERS = """This page is made from the declarations in `domainbed_carft/method`, by
`python tools/site/reference.py`. Set hyperparameters with `--hparams '{"name": value}'`
([examples](../howto/search.md)), or under `hparams` in a declared sweep.

- All methods accept all names, because a sweep passes one `--hparams` to all of them. A name that
  only one method has is without an effect in the others, but they refuse `margin` and `lp_steps`.
- Unknown and misspelt names are refused with a list of the valid ones. Names that a fork adds are
  accepted.
- Records have every value that a job used. `out.txt` lists those that differ from the defaults, and
  in a DomainBed checkout those that you set. If a value is a path, keep the file with the records.
- In parentheses are the data sets with another default or range. *Tiny* stands for the embedded
  data sets and Debug28 and Debug224, *tasks* for the eleven tasks, of which the page has DTD's.
  With `clip_backbone` `tiny` on other data sets only `lr` and `batch_size` are tiny's.
- Random search draws uniformly in the logarithm, `wise_alpha` uniformly in the value. What has no
  range keeps its default."""
_HPARAM_COLUMNS = (
    "| name | what it does | default | values; random search | source |\n|---|---|---|---|---|"
)
# Title of a table -> the first of its names; it goes on to the first one of the next table.
_GROUPS_OF_ALL = {
    "CLIP, prompts and images": "clip_backbone",
    "The head": "head_init",
    "Optimizer and schedule": "lr",
    "Precision, memory and measurements": "amp",
    "Weights that predict": "average",
    "LoRA": "lora_rank",
    "Penalties": "sp_weight",
}
_NOTES = """## Notes

- `total_steps` is the number of steps that the job trains: `--steps`, or else the data set's own.
  If you set it, the learning rate reaches 0 there and stays.
- `head_scale`: with `folded` the head starts as the class weights times CLIP's logit scale, with a
  bias that starts at 0. AdamW then moves it a hundred times less for its size than with `outside`,
  where its rows have length 1 and the scale multiplies its logits. A linear probe, LP-FT's first
  phase and a random head are always outside.
- `amp`: `auto` is resolved where a job starts, to `bf16` on a CUDA device of compute capability 8.0
  or more and to `off` on others and on processors. Records have what it was resolved to. If the
  machines of a sweep differ, give `bf16` or `off`, or the jobs of one cell are trained in both.
- `compile_blocks` changes results by rounding only. It needs a C++ compiler.
- `sampling`: other repositories train on ImageNet in `passes`, which needs the included harness.
- DomainBed's own `data_augmentation` and `class_balanced` keep their meaning. The others that it
  adds to every run (`resnet18`, `freeze_bn`, `vit`, ...) have no effect here."""

# What the commands of sweeps and tables are in Python, beside the names of the package itself.
FURTHER_API = (
    "domainbed_carft.plugin.register",
    "domainbed_carft.runs.sweep.SweepOptions",
    "domainbed_carft.sweep.launch.plan",
    "domainbed_carft.sweep.launch.run_plan",
    "domainbed_carft.sweep.states.of_output",
    "domainbed_carft.sweep.upkeep.retry",
    "domainbed_carft.results.top.top",
    "domainbed_carft.report.page.write_report",
    "domainbed_carft.errors.CarftError",
)

_PROCESS_VARIABLES = """A flag of `train` or `carft sweep launch` overrides the variable of the same
setting. No variable is part of a job's identity, so none changes the folder that a job has.

A launcher also sets the number of threads (`OMP_NUM_THREADS`, `MKL_NUM_THREADS`) and OpenMP's wait
policy (`OMP_WAIT_POLICY`), unless you have set them. `CUDA_VISIBLE_DEVICES` says which GPUs the
launchers give to jobs."""


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
    parts += ["## Process variables", _PROCESS_VARIABLES, process_variables.as_markdown()]
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
    yield f"```text\n{_usage(command, parser)}\n```"
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
        actions = [a for a in actions if not isinstance(a, argparse._HelpAction)]
        if not actions:
            continue
        is_named = group.title not in ("positional arguments", "options")
        title = f"**{(group.title or '').capitalize()}**\n\n" if is_named else ""
        rows = (
            f"| `{_cell(_invocation(action))}` | {_help(action, parser)} |" for action in actions
        )
        yield f"{title}| argument | meaning |\n|---|---|\n" + "\n".join(rows)
    if parser.epilog:
        yield f"```text\n{parser.epilog.strip()}\n```"


def _text(description: str) -> str:
    """A parser's description as a sentence; examples in it follow as commands."""
    sentence, _, examples = description.strip().partition("\n\nexamples:\n")
    text = f"{sentence[:1].upper()}{sentence[1:].rstrip('.')}."
    commands = textwrap.dedent(examples).strip()
    return f"{text}\n\n```bash\n{commands}\n```" if commands else text


def _usage(command: str, parser: argparse.ArgumentParser) -> str:
    """The command with what it requires; the table below it has the rest."""
    actions = [action for action in parser._actions if action.required or not action.option_strings]
    options = [action for action in parser._actions if action not in actions]
    words = [_invocation(action) for action in actions if action.help != argparse.SUPPRESS]
    return " ".join([command, *words, *(["[options]"] if len(options) > 1 else [])])


def _invocation(action: argparse.Action) -> str:
    """An argument as it is typed, the same in all versions of Python."""
    formatter = argparse.HelpFormatter("")
    if not action.option_strings:
        (metavar,) = formatter._metavar_formatter(action, action.dest)(1)
        return formatter._format_args(action, metavar) if action.nargs else metavar

    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    return f"{names} {formatter._format_args(action, action.dest.upper())}"


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog)
    text = _cell(formatter._expand_help(action)) if action.help else ""
    text = text.replace("$", "\\$")  # which would begin a formula
    is_needed = action.required and action.option_strings
    return f"{text} (required)".strip() if is_needed else text or "see DomainBed"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def hyperparameters_page() -> str:
    """Every hyperparameter of our algorithms, from their declarations."""
    everyone = [*CLIPAlgorithm.own_hparams()]
    groups = {first: title for title, first in _GROUPS_OF_ALL.items()}
    shared: dict[str, tuple[Sequence[str], list[str]]] = {}
    of_some: dict[str, tuple[Sequence[str], list[str]]] = {}
    title = ""
    for name in everyone:
        title = groups.get(name, title)
        shared.setdefault(title, (ALGORITHMS, []))[1].append(name)

    for name in algorithms.hparams_of("CARFT"):
        if name not in everyone:
            owners = tuple(a for a in ALGORITHMS if name in algorithms.CLASSES[a].own_hparams())
            of_some.setdefault(f"Only {', '.join(owners)}", (owners, []))[1].append(name)

    (first, of_carft), *others = of_some.items()  # CAR-FT's own, which most readers look for
    sections = {first: of_carft, **shared, **dict(others)}
    parts = ["# Hyperparameters", _HYPERPARAMETERS]
    for title, (owners, names) in sections.items():
        rows = "\n".join(_hparam_row(name, owners) for name in names)
        parts.append(f"## {title}\n\n{_HPARAM_COLUMNS}\n{rows}")
    return "\n\n".join([*parts, _NOTES]) + "\n"


def _hparam_row(name: str, owners: Sequence[str]) -> str:
    """The row of a hyperparameter; ``owners``: the algorithms on which it has an effect."""
    hparams = {owner: algorithms.hparams_of(owner)[name] for owner in owners}
    hparam = hparams[owners[0]]
    values = _plain(hparam.expected).replace("False, True", "false, true")  # as in JSON
    search = _usual_and_exceptions({owner: _draws(owned) for owner, owned in hparams.items()})
    cells = [
        f"`{name}`",
        _cell(hparam.meaning),
        _usual_and_exceptions({owner: _defaults(owned) for owner, owned in hparams.items()}),
        f"{values}; *search* {search}" if search else values,
        _cell(_usual_and_exceptions({owner: owned.source for owner, owned in hparams.items()})),
    ]
    return f"| {' | '.join(cells)} |"


def _usual_and_exceptions(texts: Mapping[str, str]) -> str:
    """The text of the first algorithm, then those that differ, with their algorithms."""
    usual, *_ = texts.values()
    algorithms_of: dict[str, list[str]] = {}
    for algorithm, text in texts.items():
        if text != usual:
            algorithms_of.setdefault(text, []).append(algorithm)
    exceptions = [f"{', '.join(names)}: {text or 'fixed'}" for text, names in algorithms_of.items()]
    return "; ".join(filter(None, [usual, *exceptions]))


def _defaults(hparam: Hparam) -> str:
    def default(dataset: str) -> str:
        value = hparam.default_for(Conditions(dataset))
        if isinstance(value, str):
            value = value.replace(dataset, "NAME")
        return _code(_number(value) if isinstance(value, float) else json.dumps(value))

    return _by_dataset(default)


def _number(value: float) -> str:
    """A number as papers write it: 5e-6, 0.25."""
    if 0 < value < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.3g}"


def _code(text: str) -> str:
    """Code in a cell. In backticks a bar is shown with its backslash by some renderers."""
    return f"<code>{_plain(text)}</code>" if "|" in text else f"`{text}`"


def _plain(text: str) -> str:
    """Text in a cell with its bars as entities, which every renderer shows as bars."""
    return text.replace("<", "&lt;").replace("|", "&#124;")


def _draws(hparam: Hparam) -> str:
    """The range of a random search, found by a generator that returns the ends of its ranges."""
    draw = hparam.draw
    if draw is None:
        return ""

    def ends(dataset: str) -> str:
        low, high = (float(f"{draw(end, Conditions(dataset)):.2g}") for end in _ENDS)
        return f"{_number(low)} to {_number(high)}"

    return _by_dataset(ends)


def _by_dataset(text_for: Callable[[str], str]) -> str:
    """The text of most data sets, then in parentheses those that differ, with their data sets."""
    usual = text_for(USUAL_DATASET)
    datasets_of: dict[str, list[str]] = {}
    for dataset, label in SPECIAL_DATASETS.items():
        if (text := text_for(dataset)) != usual:
            datasets_of.setdefault(text, []).append(label)
    others = "; ".join(f"{', '.join(names)} {text}" for text, names in datasets_of.items())
    return f"{usual} ({others})" if others else usual


class _End(np.random.RandomState):
    """A generator whose numbers are at the end ``index`` of each range: 0 the low, 1 the high."""

    def __init__(self, index: int) -> None:
        super().__init__(0)
        self.index = index

    def uniform(self, *ends: float) -> float:  # type: ignore[override]
        """The end of a range."""
        return ends[self.index]


_ENDS = (_End(0), _End(1))


def sweeps_page() -> str:
    """The table of the included sweeps, then each declaration with its number of jobs."""
    text = (ROOT / "sweeps" / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(([\w-]+)\.yaml\)", r"](#\1)", text).replace("](../docs/", "](../")
    parts = [text.strip()]
    for name, path in declaration_file.included_sweeps().items():
        declaration = declaration_file.load(name)
        count = len(declaration.jobs("DATA", Path("OUT")))
        stage = " in the first stage" if declaration.has_stages else ""
        parts.append(f"## {name}")
        parts.append(f"{declaration.description} {count:,} jobs{stage}.")
        parts.append(f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```")
    return "\n\n".join(parts) + "\n"


def api_page(names: Mapping[str, str] = LAZY_NAMES) -> str:
    """The public functions and classes, each by its signature and docstring."""
    public = [f"{module}.{name}" for name, module in names.items() if name != "__version__"]
    parts = [
        "# Python API",
        "`import domainbed_carft` has the first of these names as attributes, up to `wise_ft`; "
        "[Trained runs](../runs.md) shows them at work.",
    ]
    for path in public:
        parts += _api_section(path.rpartition(".")[2], path)
    for path in FURTHER_API:
        parts += _api_section(path, path)
    return "\n\n".join(parts) + "\n"


def _api_section(title: str, path: str) -> Iterator[str]:
    """A function, or a class with its public methods and properties."""
    module, _, name = path.rpartition(".")
    member = getattr(importlib.import_module(module), name)
    yield f"## {title}"
    yield _signature(name, member)
    yield _docstring(member)
    if not inspect.isclass(member):
        return

    for method_name, attribute in vars(member).items():
        if method_name.startswith("_"):
            continue
        method = getattr(attribute, "__func__", attribute)
        if inspect.isfunction(method):
            yield f"### {name}.{method_name}"
            yield _signature(method_name, method)
            yield _docstring(method)
        elif isinstance(attribute, property | functools.cached_property):
            yield f"### {name}.{method_name}"
            yield _docstring(attribute)


def _signature(name: str, member: Any) -> str:
    """The call as a block of code, with a line for each argument if one line is too long."""
    signature = inspect.signature(member)
    arguments = []
    for parameter in signature.parameters.values():
        is_keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if is_keyword and not any(argument.startswith("*") for argument in arguments):
            arguments.append("*")
        if parameter.name != "self":
            arguments.append(_argument(parameter))

    returned = ""
    if signature.return_annotation is not inspect.Signature.empty and not inspect.isclass(member):
        returned = f" -> {signature.return_annotation}"
    text = f"{name}({', '.join(arguments)}){returned}"
    if len(text) > LONGEST_SIGNATURE:
        lines = "".join(f"    {argument},\n" for argument in arguments)
        text = f"{name}(\n{lines}){returned}"
    return f"```text\n{text}\n```"


def _argument(parameter: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    text = stars.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not inspect.Parameter.empty:
        text += f": {parameter.annotation}"
    if parameter.default is not inspect.Parameter.empty:
        text += f" = {parameter.default!r}"
    return text


def _docstring(member: Any) -> str:
    """The docstring with its examples, from `>>>` to the next empty line, as blocks of code."""
    text = inspect.getdoc(member) or ""
    return _EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)


# The pages and what makes each; readers of the repository have them, too.
PAGES = {
    "commands": commands_page,
    "hyperparameters": hyperparameters_page,
    "sweeps": sweeps_page,
    "api": api_page,
}


if __name__ == "__main__":
    for page_name, make_page in PAGES.items():
        (FOLDER / f"{page_name}.md").write_text(GENERATED + make_page(), encoding="utf-8")
