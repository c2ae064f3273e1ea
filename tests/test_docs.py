"""What the documentation lists is what the code has."""

import ast
import configparser
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import doc_blocks
import pytest

from domainbed_carft import LAZY_NAMES, cli
from domainbed_carft.jobs import folder
from domainbed_carft.jobs.algorithms import ALGORITHMS
from domainbed_carft.method import algorithms
from domainbed_carft.method.hparams import Conditions
from domainbed_carft.pictures.protocols import PROTOCOLS

ROOT = Path(__file__).resolve().parents[1]
METHOD_PAGES = sorted(
    {*(ROOT / "docs" / "methods").glob("*.md")} - {ROOT / "docs/methods/index.md"}
)
SECTIONS = ["When to use it", "Formula", "Hyperparameters", "Source and deviations", "Cite"]


@pytest.fixture(scope="module")
def reference():
    """The module that makes the pages of reference."""
    path = ROOT / "tools" / "site" / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["commands", "hyperparameters", "sweeps"])
def test_pages_of_reference_have_the_parts_that_the_code_makes(reference, name):
    page = (reference.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert f"<!-- begin {name} -->" in page
    assert page == reference.with_parts(page), "run python tools/site/reference.py"


def test_the_page_of_the_api_has_every_public_name_at_its_place(reference):
    page = (reference.FOLDER / "api.md").read_text(encoding="utf-8")
    paths = re.findall(r"^::: ([\w.]+)\.(\w+)$", page, re.MULTILINE)
    for module, name in paths:
        assert getattr(importlib.import_module(module), name).__module__ == module
    public = {(module, name) for name, module in LAZY_NAMES.items() if name != "__version__"}
    assert public <= {*paths}


def test_the_page_of_hyperparameters_has_each_with_its_meaning(reference):
    page = (reference.FOLDER / "hyperparameters.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| [`<].*\| (.+?) \|$", page, flags=re.MULTILINE)
    assert {name for name, meaning, source in rows} == {*algorithms.hparams_of("CARFT")}
    assert len(rows) == len(algorithms.hparams_of("CARFT"))
    # The probe's rate on the embedded data sets and the ends of its draw, in figures of their own.
    assert "CLIPLinearProbe: `5e-5` (tiny `3e-3`;" in page
    assert "CLIPLinearProbe, CLIPLoRA: 1e-5 to 3.2e-4 (tiny 3.2e-4 to 0.01) |" in page


def test_links_between_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_anchors_lead_to_headings_by_the_names_that_github_gives_them():
    """The site is built strictly and checks its names, which differ where a heading has signs."""
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    for document in [*documents, ROOT / "benchmarks" / "README.md"]:
        text = without_code(document.read_text(encoding="utf-8"))
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            page = document.parent / target if target else document
            if page.suffix == ".md":
                assert anchor in github_anchors(page), f"{document.name}: {target}#{anchor}"


def github_anchors(page):
    """The anchors of a page's headings on GitHub, of which repeated ones are numbered."""
    headings = re.findall(
        r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE
    )
    anchors = []
    for heading in headings:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        anchors.append(f"{anchor}-{anchors.count(anchor)}" if anchor in anchors else anchor)
    return anchors


def without_code(text):
    """A page without its fenced blocks, in which a comment looks like a heading."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


def texts_for_users():
    """File -> text, of all that tells users what to type; the changelog has what they once did."""
    patterns = ("*.md", "docs/*.md", "sweeps/*", "domainbed_carft/**/*.py", "third_party/**/*.py")
    paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for path in paths
        if path.name != "CHANGELOG.md"
    }


def test_extras_are_installed_from_a_clone():
    """The package is on no index, so its name cannot be installed."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {*setup["options.extras_require"]}

    mentioned = set()
    for name, text in texts_for_users().items():
        assert not re.search(r"pip\s+install\s+'?domainbed-carft", text), name
        mentioned |= {*re.findall(r"pip\s+install\s+'\.\[(\w+)\]'", text)}

    assert mentioned
    assert mentioned <= extras


def test_a_dry_run_has_one_spelling():
    for name, text in texts_for_users().items():
        if not name.endswith(".py"):
            assert "--dry_run" not in text, name


def documented_commands():
    """Each command line of ``carft`` in README and docs that a reader can type as it is."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    yield from re.findall(r"^    (carft .*)$", readme, flags=re.MULTILINE)

    for page in sorted((ROOT / "docs").rglob("*.md")):
        for block in doc_blocks.blocks(page):
            joined = re.sub(r"\s*\\\n\s*", " ", block.text)
            for line in joined.splitlines() if block.language == "bash" else ():
                if line.startswith("carft ") and "..." not in line and "$" not in line:
                    yield line


def test_the_parser_takes_each_documented_command():
    parser = cli._parser()
    lines = [*documented_commands()]
    assert len(lines) > 100

    for line in lines:
        words = shlex.split(line, comments=True)
        for sign in ("|", ">", "||", "&&", ";"):
            words = words[: words.index(sign)] if sign in words else words
        assert parser.parse_args(words[1:]).run, line


def test_troubleshooting_quotes_messages_that_the_code_has():
    texts = []
    for pattern in ("domainbed_carft/**/*.py", "third_party/**/*.py"):
        for path in ROOT.glob(pattern):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else "{}" for v in node.values]
                    texts.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    code = "\n".join(texts)

    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `(.*)`$", page, flags=re.MULTILINE)
    assert quoted
    assert [message for message in quoted if message not in code] == []


def test_the_first_page_links_to_every_other():
    """The contents for readers of the repository, in the order of the site's navigation."""
    index = ROOT / "docs" / "index.md"
    text = index.read_text(encoding="utf-8")
    pages = {page.relative_to(index.parent) for page in index.parent.rglob("*.md")}
    linked = {Path(target) for target in re.findall(r"\]\(([^)#]+\.md)\)", text)}
    assert pages - linked == {Path("index.md")}

    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1]
    assert {str(page) for page in pages} <= {*re.findall(r"\S+\.md", navigation)}


def test_no_page_needs_the_site_to_be_read():
    """GitHub shows admonitions, tabs and pictures of one colour scheme as they are written."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"^(!!!|\?\?\?|===) |#only-(light|dark)", text, re.MULTILINE), page


def algorithm_of(page):
    """The algorithm that the page of a method names first, as `--algorithm` takes it."""
    named = re.findall(r"`(\w+)`", page.read_text(encoding="utf-8"))
    return "CLIPFineTune" if named[0] == "average" else named[0]


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_the_page_of_a_method_has_all_sections_and_hyperparameters_that_train_takes(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall("^## (.*)$", text, flags=re.MULTILINE) == SECTIONS

    algorithm = algorithm_of(page)
    for shown in re.findall(r"`(\{\"[^`]+\})`", text):
        hparams = json.loads(shown)
        assert hparams.keys() <= algorithms.hparams_of(algorithm).keys()
        problems = algorithms.CLASSES[algorithm].hparam_problems("EmojiStyles", hparams)
        assert problems == [] or page.stem == "lora", shown  # which another method takes


def test_readme_the_page_and_the_citation_say_that_only_the_abstract_was_read():
    for name in ("README.md", "CITATION.cff", "docs/methods/carft.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        assert (
            "from the paper's abstract and from papers and code that quote it, and have not" in text
        )
        assert re.search(r"Compare its method section with \[?our formula\S* before you cite", text)

    for name, text in texts_for_users().items():
        assert not re.search(r"2211\.16175\W+section", text), name


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_the_defaults_on_the_page_of_a_method_are_the_declared_ones(page):
    """Of each line the default in front, and those that it gives for some data sets."""
    text = page.read_text(encoding="utf-8")
    hparams = algorithms.hparams_of(algorithm_of(page))
    section = text.split("## Hyperparameters")[1].split("\n## ")[0]
    compared = 0
    for names, cell in re.findall(r"^- (`.+?`): (.+?)(?: \(|$)", section, flags=re.MULTILINE):
        cell = re.sub("</?code>", "`", cell).replace("&#124;", "|")
        names = re.findall(r"`(\w+)`", names)
        usual = re.match(r"(\d[\d.e-]*|`[^`]+`)(?:,? (?:and )?(\d[\d.e-]*|`[^`]+`))?", cell)
        for name, shown in zip(names, usual.groups() if usual else ()):
            compared += shown is not None
            assert shown is None or is_default(shown, hparams[name], "PACS"), name

        for shown, datasets in re.findall(r"(\d[\d.e-]*) (?:for|on) ([^;|,]+)", cell):
            for dataset in re.findall(r"embedded|OfficeHome|DomainNet", datasets):
                dataset = dataset.replace("embedded", "EmojiStyles")
                assert is_default(shown, hparams[names[0]], dataset), (names, dataset)
    assert compared or page.stem == "zero-shot"


@pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda page: page.stem)
def test_the_sources_on_the_page_of_a_method_are_the_declared_ones(page):
    """In the parentheses that end a line, up to the first semicolon, behind which are remarks."""
    hparams = algorithms.hparams_of(algorithm_of(page))
    listing = page.read_text(encoding="utf-8").split("## Hyperparameters\n\n")[1].split("\n\n")[0]
    lines = re.findall(r"^- (.+(?:\n  .+)*)", listing, flags=re.MULTILINE)
    assert lines

    source = ""
    for line in map(str.split, lines):
        names, _, rest = " ".join(line).partition(": ")
        stated = re.search(r"\(([^();]*)(?:;[^()]*)?\)$", rest)
        assert stated, f"no source: {names}"
        source = source if stated[1] == "the same" else stated[1].replace("our choice", "ours")
        for name in {*re.findall(r"`(\w+)`", names)}:
            assert source == hparams[name].source.split(";")[0], name


def test_the_ranges_on_the_pages_of_methods_are_those_of_the_random_search(reference):
    stated = 0
    for page in METHOD_PAGES:
        text = page.read_text(encoding="utf-8")
        hparams = algorithms.hparams_of(algorithm_of(page))
        pattern = r"`(\w+)`[^`.]*random search\s+draws\s+from\s+([\d.e-]+) to ([\d.e-]+)"
        for name, low, high in re.findall(pattern, text):
            stated += 1
            assert f"{low} to {high}".rstrip(".") == reference._draws(hparams[name]).split(" (")[0]
    assert stated


def is_default(shown, hparam, dataset):
    """Whether a page shows the hyperparameter's default on a data set."""
    default = hparam.default_for(Conditions(dataset))
    if isinstance(default, str):
        return shown.strip("`") == default
    return float(shown) == pytest.approx(default)


def test_the_table_of_all_methods_has_each_algorithm_and_each_page():
    text = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[.+?\]\(([\w-]+\.md)\),? `(\w+)`", text, flags=re.MULTILINE)
    assert {page for page, _ in rows} == {path.name for path in METHOD_PAGES}
    assert {name for _, name in rows} == {*ALGORITHMS, "average"}
    for page, name in rows:
        if name != "average":
            assert algorithm_of(ROOT / "docs" / "methods" / page) == name


def test_the_exit_statuses_of_train_are_documented():
    page = (ROOT / "docs" / "reference" / "files-and-records.md").read_text(encoding="utf-8")
    table = page.split("### python -m domainbed.scripts.train")[1]

    documented = {int(status) for status in re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE)}
    uncounted = {status for status in folder.UNCOUNTED_STATUSES if status > 0}
    assert documented == {0, 1, folder.WRONG_ARGUMENTS, *uncounted}


def test_a_word_is_defined_in_one_glossary():
    """The glossary has what users read, and CONTRIBUTING the words that only the code uses."""
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    of_code = contributing.split("## Glossary\n")[1].split("\n## ")[0]

    words = terms(glossary)
    assert terms(of_code)
    assert not terms(of_code) & words
    for word in ("ERM", "lambda", "host", "in-domain selection"):
        assert word in words
    (protocol,) = re.findall(r"^\| protocol \| (.*) \|$", glossary, flags=re.MULTILINE)
    assert {*re.findall("`([^`]+)`", protocol)} == {*PROTOCOLS}


def terms(tables):
    """The words in the first column of tables, of which a cell may have several."""
    cells = re.findall(r"^\| ([^|]+?) \| ", tables, flags=re.MULTILINE)
    return {term.strip() for cell in cells for term in cell.split(",")} - {"word", "Term"}
