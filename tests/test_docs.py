"""Documentation: generated parts, commands that parse, words, and a tutorial that runs."""

import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from domainbed.lib import sweep_arguments, train_arguments
from fake_checkout import REPO
from helpers.pages import Block, blocks
from PIL import Image

from domainbed_carft import LAZY_NAMES, cli
from domainbed_carft.data import benchmarks
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms, prompts
from domainbed_carft.method.hparams import Conditions
from domainbed_carft.preflight import zero_shot_gate
from domainbed_carft.results import comparisons
from domainbed_carft.results.collect import collect
from domainbed_carft.sweep.declaration_file import included_sweeps

DOCS = REPO / "docs"
PAGES = [REPO / "README.md", *sorted(DOCS.rglob("*.md"))]
SCRIPTS = {
    "python -m domainbed.scripts.train": train_arguments.build_parser,
    "python -m domainbed.scripts.sweep": sweep_arguments.build_parser,
}
# Page, section ("" if the whole page is about the method) and algorithm, or `average`.
METHOD_SECTIONS = re.findall(
    r"^\| \[.+?\]\(([\w-]+\.md)#?([\w-]*)\),? `(\w+)`",
    (DOCS / "methods" / "index.md").read_text(encoding="utf-8"),
    flags=re.MULTILINE,
)


# Tables and lists that tools make


@pytest.mark.parametrize(
    "tool",
    [pytest.param("page_tables", marks=pytest.mark.slow), "readme_figures", "site/reference"],
)
def test_generated_parts_of_pages_are_up_to_date(tool, monkeypatch):
    path = REPO / "tools" / f"{tool}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0


def test_sources_of_a_hyperparameter_have_a_line_for_each_algorithm():
    page = (DOCS / "reference" / "hyperparameters.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| `kl_weight` \|.*$", page, re.MULTILINE)
    lines = row.split(" | ")[-1].split("<br>")
    assert lines[0].startswith("this package")
    assert [line.partition(":")[0] for line in lines[1:]] == ["FDAlign", "StarFT"]


def test_errors_of_the_protocols_difference_are_sample_errors(fresh):
    """Of zero-shot CLIP: over trials, and by splitting its right and wrong answers at random."""
    differences = {}
    accuracies = {}
    for row in fresh[fresh["algorithm"] == "CLIPZeroShot"].itertuples():
        record = json.loads((row.folder / "results.jsonl").read_text().splitlines()[-1])
        splits = [100 * record[f"env{row.target}_{name}_acc"] for name in ("in", "out")]
        differences.setdefault(row.trial, []).append(splits[1] - splits[0])
        accuracies.setdefault(row.target, []).append(splits[0])
    by_trial = np.mean([*differences.values()], axis=1)
    error = by_trial.std(ddof=1) / len(by_trial) ** 0.5

    draw = np.random.default_rng(0)
    answers = [
        draw.permuted(np.arange(429) < 4.29 * np.mean(values)) for values in accuracies.values()
    ]
    simulated = []
    for _ in range(500):
        shuffled = [draw.permuted(np.tile(answer, (10, 1)), axis=1) for answer in answers]
        outs, ins = np.mean([[s[:, :85].mean(), s[:, 85:].mean()] for s in shuffled], axis=0)
        simulated.append(100 * (outs - ins))

    page = (DOCS / "statistics.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| zero-shot CLIP \|.* (\S+) \((.*)\) \|$", page, re.MULTILINE)
    assert row == (f"{by_trial.mean():+.1f}", f"{error:.1f}")
    (by_chance,) = re.findall(r"^\| `fresh-emoji` \|.* (\S+) \|$", page, re.MULTILINE)
    assert float(by_chance) == pytest.approx(np.std(simulated), abs=0.06)


def test_api_page_has_every_public_name():
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    documented = {tuple(path) for path in re.findall(r"^::: ([\w.]+)\.(\w+)$", page, re.MULTILINE)}
    public = {(module, name) for name, module in LAZY_NAMES.items() if name != "__version__"}
    assert public <= documented


def test_names_in_read_this_first_exist():
    """Files by path, and functions as module.function or Class.method."""
    page = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Read this first\n")[2].partition("\n## ")[0]
    files = re.findall(r"^\d\. `([\w/]+\.py)`", section, re.MULTILINE)
    assert len(files) == 7 and all((REPO / path).is_file() for path in files)

    names = {*re.findall(r"`(\w+)\.(\w+)`", section)} - {("results", "jsonl")}
    assert len(names) > 20
    defined = set()
    for folder in ("domainbed_carft", "third_party/domainbed"):
        for path in (REPO / folder).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    defined.add((path.stem, node.name))
                for child in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(child, ast.FunctionDef):
                        defined.add((node.name, child.name))
    assert names <= defined, names - defined


# The build of the site checks the links of all other pages.
@pytest.mark.parametrize(
    "document",
    [
        *sorted(path.name for path in REPO.glob("*.md")),
        "benchmarks/README.md",
        "benchmarks/records/README.md",
        "domainbed_carft/assets/README.md",
        "third_party/domainbed/README.md",
    ],
)
def test_links_of_a_document_outside_the_site_lead_to_headings(document):
    path = REPO / document
    links = re.findall(r"\]\(([^)#\s:]*)(#[^)\s]*)?\)", path.read_text(encoding="utf-8"))
    for target, anchor in links:
        page = path.parent / target if target else path
        assert page.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            words = [re.sub(r"[^\w\s-]", "", title).lower() for title in titles]
            assert anchor[1:] in {re.sub(r"\s", "-", text) for text in words}, (target, anchor)


# Pages of methods


def test_table_of_methods_has_every_algorithm_and_page():
    pages = {path.name for path in (DOCS / "methods").glob("*.md")} - {"index.md"}
    assert {page for page, _, _ in METHOD_SECTIONS} == pages
    assert {name for _, _, name in METHOD_SECTIONS} == {*ALGORITHMS, "average"}


@pytest.mark.parametrize(("page", "section", "name"), METHOD_SECTIONS)
def test_defaults_and_sources_on_a_method_page_equal_the_declared_ones(page, section, name):
    text = (DOCS / "methods" / page).read_text(encoding="utf-8")
    title = (section or "hyperparameters").replace("-", "[ -]")
    (content,) = re.findall(rf"(?im)^## {title}\n((?:(?!^## ).*\n)*)", text)
    defaults = re.findall(r"^- `(\w+)`: (\d[\d.e-]*|`[^`]+`)", content, flags=re.MULTILINE)
    assert defaults or name in ("CLIPZeroShot", "CLIPFineTune"), "no default is shown"

    hparams = algorithms.recorded_hparams("CLIPFineTune" if name == "average" else name)
    for hparam, shown in defaults:
        source, *_ = hparams[hparam].source.split(";")
        assert "/" not in source or source in " ".join(content.split()), hparam
        default = hparams[hparam].default_for(Conditions("PACS"))
        if isinstance(default, str):
            assert shown.strip("`") == default
        else:
            assert float(shown) == pytest.approx(default), hparam


# Commands and messages


def documented_commands():
    """The commands in README and docs/ that our parsers read, each a list of words."""
    programs = tuple(f"{program} " for program in ("carft", *SCRIPTS))
    shell = [block.text for page in PAGES for block in blocks(page) if block.language == "bash"]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(shell))
    for line in joined.splitlines():
        is_whole = "..." not in line and "$" not in line and line.count("'") % 2 == 0
        if line.startswith(programs) and is_whole:
            words = shlex.split(line, comments=True)
            ends = [number for number, word in enumerate(words) if word in ("|", ">", "&&", "||")]
            yield words[: ends[0]] if ends else words


def test_documented_commands_parse():
    commands = [*documented_commands()]
    assert len(commands) > 100
    parser = cli._parser()
    for words in commands:
        if words[0] == "carft":
            assert parser.parse_args(words[1:]).run, words
        else:
            SCRIPTS[" ".join(words[:3])]().parse_args(words[3:])


def test_messages_in_troubleshooting_exist_in_the_code():
    paths = [*(REPO / "domainbed_carft").rglob("*.py"), *(REPO / "third_party").rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))  # joins the parts of a message
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.*)`$", page, flags=re.MULTILINE)
    assert quoted
    assert [message for message in quoted if message not in code] == []


@pytest.mark.parametrize("page", ["pacs", "fair-comparison"])
def test_dry_runs_print_the_jobs_and_images_of_their_page(page, carft, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ""
    compared = 0
    for block in blocks(DOCS / "howto" / f"{page}.md"):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "bash":
            command = block.text.splitlines()[-1]
        elif block.language == "text" and command.endswith(" --dry-run"):
            shown = [line for line in block.text.splitlines() if line != "..."]
            printed = carft(*shlex.split(command)[1:]).stdout.splitlines()
            assert [line for line in printed if line in shown] == shown, f"line {block.line}"
            compared += 1
    assert compared


def test_table_of_included_sweeps_has_each_of_them():
    page = (DOCS / "sweeps.md").read_text(encoding="utf-8")
    table = page.partition("## Included sweeps\n")[2].partition("\n## ")[0]
    names = re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)
    assert sorted(names) == sorted(included_sweeps())


def test_table_of_needed_environments_equals_holms_correction():
    """If one of k rows has the smallest p-value of n environments, and the others have none."""
    page = (DOCS / "howto" / "fair-comparison.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| (\d+)(?: \w+ (\d+))? \| (\d+) \| (.*) \|$", page, re.MULTILINE)
    listed = []
    for first, last, n_environments, shown in lines:
        n_rows = range(int(first), int(last or first) + 1)
        listed += n_rows
        for n in (int(n_environments) - 1, int(n_environments)):
            p = comparisons.smallest_p(n)
            lowest = [
                comparisons.holm({"": p, **dict.fromkeys(range(k - 1), 1.0)})[""] for k in n_rows
            ]
            is_enough = n == int(n_environments)
            assert all((value < 0.05) == is_enough for value in lowest)
        ends = dict.fromkeys([f"{lowest[0]:.3f}", f"{lowest[-1]:.3f}"])
        assert re.split(" to | or ", shown) == [*ends]
    assert listed == [*range(1, 13)]


def test_expected_values_of_zero_shot_clip_on_pacs_are_those_of_the_preflight():
    page = " ".join((DOCS / "howto" / "pacs.md").read_text(encoding="utf-8").split())
    templates = prompts.parse_contexts("imagenet")
    digest = prompts.digest(templates, benchmarks.get("PACS").classes)
    assert f"| `prompts {digest}` |" in page

    *others, last = [row.accuracy for row in zero_shot_gate.published_rows("PACS", "ViT-B/16")]
    accuracies = f"{', '.join(f'{other}%' for other in others)} and {last}%"
    assert len(others) == 2 and f"are included, {accuracies}." in page
    images = zero_shot_gate.MAX_IMAGES
    assert f"predicts {images:,} images, {images // 4} from each environment" in page


# The glossary

FORMER_WORDS = {
    "picture": "image",
    "data set": "dataset",
    "data_set": "dataset",
    "processor": "CPU",
    "verdict": "status, or comparison",
    "remed": "hint",
    "rehears": "preflight",
    "stranger": "untrusted",
    "one left out": "target",
}
# HTML's element, a class of DomainNet, and names of Hugging Face's tokenizers and transforms.
OTHER_MEANINGS = re.compile(
    r"</?picture>|picture[ _]frame|(post_|[Pp]re)processor"
    r"|processors\.TemplateProcessing|pre_tokenizers, processors"
    r"|CLIP(Image)?Processor|image_processor_type|processor_class"
)


def test_each_thing_has_the_word_of_the_glossary():
    folders = ("domainbed_carft", "third_party", "tests", "benchmarks", "tools", "docs", "sweeps")
    files = [file for folder in folders for file in (REPO / folder).rglob("*")]
    text_files = [file for file in files if file.suffix in (".py", ".md", ".yaml", ".j2")]
    assert len(text_files) > 400
    found = []
    for path in {*text_files, *REPO.glob("*.md")} - {Path(__file__).resolve()}:
        text = OTHER_MEANINGS.sub("", path.read_text(encoding="utf-8")).lower()
        words = " ".join(re.sub(r"^\s*#", "", text, flags=re.MULTILINE).split())
        found += [
            f"{path.relative_to(REPO)}: {former} -> {word}"
            for former, word in FORMER_WORDS.items()
            if former in words
        ]
    assert sorted(found) == []


@pytest.mark.slow
def test_python_example_of_readme_runs(tmp_path, monkeypatch, capsys):
    (example,) = (block.text for block in blocks(PAGES[0]) if block.language == "python")
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "dog.png"):
        Image.new("RGB", (48, 48), "white").save(name)

    names = {}
    assert "steps=26)" in example
    exec(example.replace("steps=26)", "steps=1, skip_training_in_splits=True)"), names)
    probabilities = names["run"].predict(["cat.png", "dog.png"]).class_probabilities
    assert probabilities.shape == (2, 10)
    assert capsys.readouterr().out.endswith(f"\n{probabilities}\n")


# What is run, in the slow suite

# Presses Ctrl-C once two jobs are training, however long that takes on this machine. Jobs of
# CLIPZeroShot do not count, because they end too soon.
PRESS_CTRL_C = """
import pathlib, signal, subprocess, sys, time

def trains(records):
    is_done = (records.parent / "done").exists()
    return not is_done and "CLIPZeroShot" not in records.read_text()

process = subprocess.Popen(sys.argv[1:])
while process.poll() is None and sum(map(trains, pathlib.Path().glob("*/*/results.jsonl"))) < 2:
    time.sleep(0.1)
process.send_signal(signal.SIGINT)
sys.exit(process.wait())
"""


def run_block(block, folder, **variables):
    """Run a block and return its output, or write it to the file that its title names."""
    if block.title:
        path = folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a" if path.suffix == ".py" else "w", encoding="utf-8") as file:
            file.write(block.text)
        return ""

    press = f"{sys.executable} -c {shlex.quote(PRESS_CTRL_C)} "
    text = re.sub(r"timeout --signal INT \d+ ", lambda _: press, block.text)
    program = ["bash", "-e", "-o", "pipefail"] if block.language == "bash" else [sys.executable]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [*program, "-c", text],
        cwd=folder,
        env={**os.environ, "PATH": path, "COLUMNS": "100", **variables},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"line {block.line}:\n{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def without_variables(text):
    """Replace the parts of an output that differ between two runs."""
    for pattern, replacement in (
        (r"\b[0-9a-f]{8,}\b", "HASH"),
        (r"(?<![\w.])/[\w./-]+", "PATH"),
        (r"[+-]?\d[\d,.:]*", "N"),
        (r"[-=+|─]{3,}", "---"),
        (r"[ \t]+", " "),
    ):
        text = re.sub(pattern, replacement, text)
    return "\n".join(line.strip() for line in text.strip().splitlines())


def is_shown(output, expected):
    """Return True if an output matches a page: ``...`` is any text, and on its own any lines."""
    pattern = ""
    for line in without_variables(expected).splitlines():
        any_text = re.escape(line).replace(r"\.\.\.", ".*") + "\n"
        pattern += "(?:.*\n)*" if line == "..." else any_text
    return re.fullmatch(pattern, without_variables(output) + "\n") is not None


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory):
    """The folder in which the tutorial was followed, and the blocks of text that it showed."""
    folder = tmp_path_factory.mktemp("tutorial")
    shown = []
    printed = ""
    for block in blocks(DOCS / "tutorial.md"):
        if block.language == "text":
            shown.append((block, printed))
        else:
            printed = run_block(block, folder)
    return folder, shown


@pytest.mark.slow
def test_tutorial_prints_the_shown_output(tutorial):
    _, shown = tutorial
    assert len(shown) > 9
    for block, printed in shown:
        assert is_shown(printed, block.text), f"line {block.line}:\n{printed}"


@pytest.mark.slow
def test_reference_lists_all_files_of_a_job_and_keys_of_a_record(tutorial):
    page = (DOCS / "reference" / "files-and-records.md").read_text(encoding="utf-8")
    listed = {*re.findall(r"`([^`]+)`", page)}
    for records in (tutorial[0] / "runs").glob("*/results.jsonl"):
        files = {re.sub(r"_step\d+", "_stepN", path.name) for path in records.parent.iterdir()}
        assert files <= listed
        for line in records.read_text(encoding="utf-8").splitlines():
            assert {re.sub(r"^env\d+", "envN", key) for key in json.loads(line)} <= listed


@pytest.mark.slow
def test_ends_of_the_mixtures_of_the_pacs_page_repeat_the_table(tutorial):
    """The script of the page, on the tutorial's runs."""
    folder, _ = tutorial
    (block,) = (b for b in blocks(DOCS / "howto" / "pacs.md") if b.language == "python")
    code = block.text.replace('"OUT"', '"runs"')
    printed = run_block(Block("python", "", code, block.line), folder)

    pattern = r"^alpha (\S+): in-domain .*%, out-of-domain (.*)%$"
    out_of_domain = dict(re.findall(pattern, printed, re.MULTILINE))
    assert out_of_domain.keys() == {"0", "0.5", "1"}
    cells = collect(folder / "runs", columns=["average"]).cells.query("dataset != ''")
    averages = cells.set_index("algorithm")["mean"]
    assert float(out_of_domain["1"]) == pytest.approx(averages["CLIPFineTune"], abs=0.051)
    assert float(out_of_domain["0"]) == pytest.approx(averages["CLIPZeroShot"], abs=0.3)


@pytest.mark.slow
def test_own_method_page_runs(tmp_path):
    page = DOCS / "howto" / "own-method.md"
    printed = ""
    variables = {"CUDA_VISIBLE_DEVICES": ""}  # the page shows a machine without a GPU
    for block in blocks(page):
        if block.language == "text":
            assert is_shown(printed, f"{block.text}...")
        elif block.title or block.language == "bash":
            train = r"(-m domainbed\.scripts\.train (?:.*\\\n)*.*)"
            quick = block._replace(text=re.sub(train, r"\1 --steps 2", block.text))
            printed = run_block(quick, tmp_path, **variables)
            variables |= dict(re.findall(r"^export (\w+)=(.*)$", block.text, re.MULTILINE))

    records = (tmp_path / "ANCHOR" / "results.jsonl").read_text(encoding="utf-8")
    assert '"loss_anchor"' in records and '"method_digest"' in records


# The page of features and heat maps


def test_examples_on_pages_are_parts_of_the_files():
    shown = [
        block for page in PAGES for block in blocks(page) if block.title.startswith("examples/")
    ]
    assert len(shown) == 2
    for block in shown:
        text = (REPO / block.title).read_text(encoding="utf-8")
        assert block.text in text and len(block.text) < len(text) / 2, block.title


def run_example(name, job, figure_file, monkeypatch, replaced=("", "")):
    """Run an example for a job, check that it draws a figure, and return its names."""
    monkeypatch.setattr(sys, "argv", [name, str(job), str(figure_file)])
    names = {}
    exec((REPO / "examples" / name).read_text(encoding="utf-8").replace(*replaced), names)
    assert len(Image.open(figure_file).convert("RGB").getcolors(1 << 20)) > 100
    names["plt"].close("all")
    return names


@pytest.mark.slow
def test_example_draws_features_and_prints_shares_of_neighbours(
    trained, tmp_path, monkeypatch, capsys
):
    neighbours = pytest.importorskip("sklearn.neighbors")
    figure_file = tmp_path / "features.png"
    few = ('.png"))', '.png"))[::20]')
    names = run_example("features.py", trained, figure_file, monkeypatch, few)

    printed = capsys.readouterr().out.splitlines()[-1]
    search = neighbours.NearestNeighbors(metric="cosine").fit(names["features"].numpy())
    nearest = search.kneighbors(n_neighbors=1, return_distance=False)[:, 0]
    classes = np.array(names["classes"])
    share = 100 * np.mean(classes == classes[nearest])
    assert printed == f"CARFT: {share:.1f}% of nearest neighbours have the same class"


@pytest.mark.slow
def test_example_draws_heat_maps_of_patches_in_the_order_of_rows(trained, tmp_path, monkeypatch):
    pytest.importorskip("pytorch_grad_cam")
    names = run_example("heat_maps.py", trained, tmp_path / "heat-maps.png", monkeypatch)
    heat_maps = names["heat_maps"]
    assert heat_maps.shape == (10, 48, 48) and heat_maps.min() == 0 and heat_maps.max() <= 1

    tokens = torch.arange(-1, 36).view(37, 1, 1)  # the class token, then 6 x 6 patches
    assert names["tokens_as_map"](tokens)[0, 0, 2, 4] == 2 * 6 + 4
