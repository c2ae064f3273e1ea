"""What the documentation lists is what the code has."""

import re
from pathlib import Path

from domainbed_carft.method import hparams

ROOT = Path(__file__).resolve().parents[1]


def test_every_hparam_is_documented_and_no_other():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    table = text.split("## Hyperparameters")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)
    assert documented == [h.name for h in hparams.HPARAMS]


def test_links_between_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
