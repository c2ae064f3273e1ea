"""The container recipes: versions, commands, what they copy and what they pin."""

import re
import shutil
import subprocess
from configparser import ConfigParser

import pytest
from fake_checkout import REPO, run_python
from packaging.requirements import Requirement

from domainbed_carft.version import __version__

pytestmark = pytest.mark.slow
CONTAINERS = REPO / "containers"


def dockerfile(instruction):
    """The arguments of an instruction wherever the Dockerfile has it, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (CONTAINERS / "Dockerfile").read_text())
    return re.findall(rf"^{instruction} (.+)$", text, re.MULTILINE)


def apptainer(section):
    """The lines of a section of the definition, without comments."""
    text = (CONTAINERS / "carft.def").read_text()
    lines = text.split(f"\n%{section}\n")[1].split("\n%")[0].splitlines()
    return [line.strip() for line in lines if line.strip() and "# " not in line]


def copied_by_docker():
    """(Source, target) of each copied file or folder."""
    for arguments in dockerfile("COPY"):
        *sources, target = arguments.split()
        for source in sources:
            yield source, f"{target}{source}" if target.endswith("/") else target


def test_both_recipes_are_of_this_version_and_copy_the_same_files_to_the_same_image():
    assert f"\nFrom: {dockerfile('FROM')[0]}\n" in (CONTAINERS / "carft.def").read_text()
    of_docker = dict(re.findall(r'([\w.]+)="([^"]*)"', dockerfile("LABEL")[0]))
    assert of_docker == dict(line.split(maxsplit=1) for line in apptainer("labels"))
    assert of_docker["org.opencontainers.image.version"] == __version__
    copied_by_apptainer = [tuple(line.split()) for line in apptainer("files")]
    assert sorted(copied_by_docker()) == sorted(copied_by_apptainer)


def test_the_shell_reads_every_command_of_both_recipes():
    scripts = [apptainer(name) for name in ("post", "environment", "test", "runscript")]
    for script in (dockerfile("RUN"), *scripts):
        subprocess.run(["sh", "-n"], input="\n".join(script), text=True, check=True)


def test_what_the_recipes_copy_is_enough_to_build_the_package(tmp_path):
    for source, target in copied_by_docker():
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


def test_every_dependency_is_pinned_to_a_version_that_the_package_allows():
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (CONTAINERS / "versions.txt").read_text(), re.M))
    setup = ConfigParser()
    setup.read(REPO / "setup.cfg")
    lines = setup["options"]["install_requires"].splitlines()
    for requirement in [Requirement(line) for line in lines if line and line[0] != "#"]:
        assert requirement.specifier.contains(pins[requirement.name]), requirement
