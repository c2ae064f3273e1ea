"""The container recipes: versions, copied files and pinned packages."""

import re
import shutil
from configparser import ConfigParser

import pytest
from fake_checkout import REPO, run_python
from packaging.requirements import Requirement

from domainbed_carft.version import __version__

pytestmark = pytest.mark.slow
CONTAINERS = REPO / "containers"


def read_dockerfile(instruction):
    """Return the arguments of all uses of an instruction in the Dockerfile."""
    text = re.sub(r"\\\n\s*", "", (CONTAINERS / "Dockerfile").read_text())
    return re.findall(rf"^{instruction} (.+)$", text, re.MULTILINE)


def read_apptainer(section):
    """Return the lines of a section of the Apptainer definition, without comments."""
    text = (CONTAINERS / "carft.def").read_text()
    lines = text.split(f"\n%{section}\n")[1].split("\n%")[0].splitlines()
    return [line.strip() for line in lines if line.strip() and "# " not in line]


def list_docker_copies():
    """Iterate over source and target of each copied file or folder."""
    for arguments in read_dockerfile("COPY"):
        *sources, target = arguments.split()
        for source in sources:
            yield source, f"{target}{source}" if target.endswith("/") else target


def test_both_recipes_have_same_version_and_files():
    assert f"\nFrom: {read_dockerfile('FROM')[0]}\n" in (CONTAINERS / "carft.def").read_text()
    docker_labels = dict(re.findall(r'([\w.]+)="([^"]*)"', read_dockerfile("LABEL")[0]))
    assert docker_labels == dict(line.split(maxsplit=1) for line in read_apptainer("labels"))
    assert docker_labels["org.opencontainers.image.version"] == __version__
    copied_by_apptainer = [tuple(line.split()) for line in read_apptainer("files")]
    assert sorted(list_docker_copies()) == sorted(copied_by_apptainer)


def test_package_can_be_built_from_copied_files(tmp_path):
    for source, target in list_docker_copies():
        copy = tmp_path / target.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        if (REPO / source).is_dir():
            shutil.copytree(REPO / source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(REPO / source, copy)

    root = tmp_path / "opt" / "carft" / "source"
    code = "import carft_backend; print(carft_backend.build_wheel('dist'))"
    done = run_python("-c", code, cwd=root, path=[root / "build_backend"])
    assert done.returncode == 0, done.stderr
    name = f"domainbed_carft-{__version__}-py3-none-any.whl"
    assert done.stdout.splitlines()[-1] == name
    assert (root / "dist" / name).stat().st_size > 10e6, "the assets are in the wheel"


def test_pinned_versions_satisfy_dependencies():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (CONTAINERS / "versions.txt").read_text(), re.M))
    setup = ConfigParser()
    setup.read(REPO / "setup.cfg")
    lines = setup["options"]["install_requires"].splitlines()
    for requirement in [Requirement(line) for line in lines if line and line[0] != "#"]:
        assert requirement.specifier.contains(pins[requirement.name]), requirement
