"""What the documentation lists is what the code has."""

import configparser
import re
from pathlib import Path

from domainbed_carft import process_variables
from domainbed_carft.method import hparams

ROOT = Path(__file__).resolve().parents[1]


def test_every_hparam_is_documented_and_no_other():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    table = text.split("## Hyperparameters")[1].split("\n## ")[0]

    documented = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert documented == [h.name for h in hparams.HPARAMS]


def test_the_page_of_process_variables_has_the_table_of_the_code():
    text = (ROOT / "docs" / "variables.md").read_text(encoding="utf-8")
    assert process_variables.as_markdown() in text


def test_links_between_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


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
