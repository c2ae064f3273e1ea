"""README's figure: it plots what the packed records say, computed here without our package."""

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

IMAGES = Path(__file__).parents[1] / "docs" / "images"
ROUNDED = "{:.6g}".format


def means_of_trials(selected):
    """Row -> mean and standard error (divisor n) of both accuracies, and the trials."""
    rows = selected.assign(row=selected.algorithm)
    several = rows.algorithm == "CARFT"
    rows.loc[several, "row"] += " (" + rows.variant + ")"
    for algorithm, jobs in rows.groupby("row"):
        trials = jobs.groupby("trial")[["in", "out"]].mean()
        means = trials.mean()
        errors = trials.std(ddof=0) / np.sqrt(len(trials))
        yield algorithm, means["in"], errors["in"], means["out"], errors["out"], len(trials)


def test_the_figure_of_readme_has_the_digest_of_the_packed_records(fresh):
    header = "algorithm,in_domain,in_domain_error,out_of_domain,out_of_domain_error,trials\n"
    rows = [
        ",".join([algorithm, *map(ROUNDED, values), str(trials)]) + "\n"
        for algorithm, *values, trials in means_of_trials(fresh)
    ]
    assert len(rows) == 7

    digest = hashlib.sha256((header + "".join(rows)).encode()).hexdigest()
    for scheme in ("light", "dark"):
        svg = (IMAGES / f"robustness-{scheme}.svg").read_text()
        assert f"<desc>Data: SHA-256 {digest}</desc>" in svg, "run tools/readme_pictures.py"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_figure_of_readme_names_every_method_on_its_own_ground(scheme):
    svg = (IMAGES / f"robustness-{scheme}.svg").read_text()
    texts = {element.text for element in ElementTree.fromstring(svg).iter() if element.text}
    assert {"CAR-FT", "ERM", "linear probe", "zero-shot CLIP", "WiSE-FT", "Lipsum-FT"} <= texts

    ground = re.search(r'id="patch_1".*?fill: (#[0-9a-f]{6})', svg, re.DOTALL)[1]
    assert (int(ground[1:3], 16) > 128) == (scheme == "light")
