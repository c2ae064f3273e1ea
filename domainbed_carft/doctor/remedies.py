"""What to do: the sentences after the arrow."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata

from domainbed_carft.doctor.findings import Facts

# Modules that are not called as the distribution that brings them.
DISTRIBUTIONS = {
    "pkg_resources": "setuptools<82",
    "clip": "clip-anytorch",
    "PIL": "pillow",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}

ABOVE = "mend what is above first"
REPORT = "this is a fault of the doctor: report it with the output of carft doctor --json"
INSTALL_HERE = (
    f"see that domainbed-carft is installed in the environment of {sys.executable}: "
    f"{shlex.quote(sys.executable)} -m pip install DOMAINBED_CARFT_SOURCE"
)
CACHE = "set DOMAINBED_CARFT_CACHE to a folder that can be written and has space"
NO_DOMAINBED = (
    "make the hook active, which brings the harness of domainbed-carft; or start from your "
    "checkout's root, or put that on PYTHONPATH"
)
EXTENSION = (
    "mend what the warning names; python -c 'import domainbed_carft, domainbed.algorithms, "
    "domainbed.datasets, domainbed.hparams_registry; domainbed_carft.register()' shows where it is"
)
BY_HAND = "python -X faulthandler -m domainbed_carft.doctor.probe /dev/stdout shows more of it"
NO_GPU = "see nvidia-smi, CUDA_VISIBLE_DEVICES, and whether the driver is new enough for that CUDA"
CPU_TORCH = "to train on the GPU, install a CUDA build of torch and torchvision (pytorch.org)"
NEW_TORCH = "open only files that you trust, or pip install 'torch>=2.10'"
DOWNLOADED = "each is downloaded there when it is first used"


def for_section(failure: Facts) -> str:
    """For a section of the probe that failed as a whole."""
    if failure["missing"]:
        return f"pip install {_distribution(failure['missing'])}"
    return BY_HAND


def install(package: str) -> str:
    """Have the start files put into site-packages."""
    source = os.path.dirname(package)
    what = source if os.path.isfile(os.path.join(source, "setup.cfg")) else "DOMAINBED_CARFT_SOURCE"
    return (
        f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(what)} (with -e to work on the "
        "source); or call domainbed_carft.register() in your own training script"
    )


def activate(executable: str) -> str:
    """Have the command `python` be this interpreter."""
    script = os.path.join(os.path.dirname(executable), "activate")
    return f"source {shlex.quote(script)}, or start sweeps with --command_launcher pool"


def for_import(distribution: str, failure: Facts) -> str:
    """For one of our own dependencies that cannot be imported."""
    missing = failure["missing"]
    if missing == failure["module"] and failure["path"]:
        return (
            f"{failure['path']} is another package of that name: pip uninstall it, or move it "
            f"away; then pip install --force-reinstall {_declared(distribution)}"
        )
    if missing and missing != failure["module"].partition(".")[0]:
        return f"pip install {_distribution(missing)}"
    again = "" if missing else "--force-reinstall "
    return f"pip install {again}{_declared(distribution)}"


def for_host(failure: Facts, host: Facts) -> str:
    """For a module of domainbed that cannot be imported."""
    missing = failure["missing"]
    if missing is None:
        return f"mend it there; python -c 'import {failure['module']}' shows where it fails"
    if missing.partition(".")[0] == "domainbed":
        return (
            f"if {host['path']} is no DomainBed, rename it or start from another folder; else "
            "restore what is missing of the checkout"
        )
    listed = host.get("requirements")
    versions = f" ({listed} lists the versions that the host was made for)" if listed else ""
    return f"pip install {_distribution(missing)}{versions}"


def own_script(scripts: Sequence[str]) -> str:
    """For a checkout that trains in another way than upstream."""
    found = ", ".join(scripts) or "SWAD and MIRO have train_all.py"
    return f"start training as that checkout does ({found})"


def own_classes(names: Sequence[str]) -> str:
    """For a host that has classes of its own under our names."""
    return (
        f"rename {', '.join(names)} in that domainbed to get ours, or take --algorithm to mean "
        "that domainbed's own"
    )


def fetch(weights: Facts) -> str:
    """For OpenAI's weights that are not there."""
    return (
        "with internet access, nothing: the first job downloads it; without, copy "
        f"{os.path.basename(weights['path'])} (SHA-256 {weights['expected']}) to that path"
    )


def renew(weights: Facts) -> str:
    """For weights that are there, but are not whole."""
    if weights["name"] == "tiny":
        return "install domainbed-carft again (pip install --force-reinstall --no-deps)"
    return (
        f"rm {shlex.quote(weights['path'])}: it is downloaded again when it is next used; or copy "
        "a whole one there"
    )


def _distribution(module: str) -> str:
    top = module.partition(".")[0]
    return shlex.quote(DISTRIBUTIONS.get(top, top))


def _declared(distribution: str) -> str:
    """The distribution within the versions that we declare, where our metadata is installed."""
    try:
        declared = metadata.requires("domainbed-carft") or []
    except metadata.PackageNotFoundError:
        declared = []
    ours = [entry for entry in declared if re.split(r"[^\w.-]", entry)[0] == distribution]
    return shlex.quote(ours[0] if ours else distribution)
