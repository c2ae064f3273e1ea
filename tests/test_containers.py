"""The container recipes: syntax, version, what they copy and what they pin."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser

import pytest
from fake_checkout import REPO, run_python
from packaging.requirements import Requirement

from domainbed_carft.version import __version__

DOCKERFILE = REPO / "containers" / "Dockerfile"
DEFINITION = REPO / "containers" / "carft.def"
VERSIONS = REPO / "containers" / "versions.txt"

# Docker's reference, but for what builds in several stages or is deprecated.
INSTRUCTIONS = {
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL"),
    *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}
# Apptainer's user guide
SECTIONS = {
    *("setup", "files", "pre", "post", "environment", "labels", "runscript", "startscript"),
    *("test", "help", "arguments"),
}


def docker_instructions() -> list[tuple[str, str]]:
    """(Instruction, its arguments) in the order of the Dockerfile, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.partition(" ") for line in joined.splitlines() if line]
    return [(instruction, arguments.strip()) for instruction, _, arguments in pairs]


def apptainer_parts() -> tuple[dict[str, str], dict[str, list[str]]]:
    """The header's keywords, and each section's lines without comments."""
    header: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    section: list[str] | None = None

    for line in DEFINITION.read_text().splitlines():
        if line.startswith("%"):
            name = line.removeprefix("%")
            assert name not in sections, f"{name} is there twice"
            section = sections[name] = []
        elif not line.strip() or line.lstrip().startswith("#"):
            continue
        elif section is None:
            keyword, separator, value = line.partition(": ")
            assert separator, f"no keyword of a header: {line}"
            header[keyword] = value
        else:
            section.append(line.strip())
    return header, sections


def arguments_of(name: str) -> list[str]:
    return [arguments for instruction, arguments in docker_instructions() if instruction == name]


def copied_by_docker() -> Iterator[tuple[str, str]]:
    """(Source, target) of each copied file or folder."""
    for arguments in arguments_of("COPY"):
        *sources, target = arguments.split()
        for source in sources:
            yield source, f"{target}{source}" if target.endswith("/") else target


def copied_by_apptainer() -> list[tuple[str, ...]]:
    _, sections = apptainer_parts()
    return [tuple(line.split()) for line in sections["files"]]


def test_the_dockerfile_has_instructions_that_docker_knows():
    instructions = docker_instructions()
    assert instructions[0][0] == "FROM"
    assert {name for name, _ in instructions} <= INSTRUCTIONS
    assert all(arguments for _, arguments in instructions)
    assert json.loads(*arguments_of("CMD")) == ["carft", "doctor"]


def test_the_apptainer_definition_has_sections_that_apptainer_knows():
    header, sections = apptainer_parts()
    assert header.keys() == {"Bootstrap", "From"}
    assert sections.keys() <= SECTIONS
    assert all(sections.values()), "no section is empty"


def test_both_recipes_are_of_this_version_and_start_from_the_same_image():
    header, sections = apptainer_parts()
    assert arguments_of("FROM") == [header["From"]]

    (labels,) = arguments_of("LABEL")
    of_docker = dict(re.findall(r'([\w.]+)="([^"]*)"', labels))
    of_apptainer = dict(line.split(maxsplit=1) for line in sections["labels"])
    assert of_docker == of_apptainer
    assert of_docker["org.opencontainers.image.version"] == __version__


def test_the_shell_reads_every_command_of_both_recipes():
    _, sections = apptainer_parts()
    scripts = [sections[name] for name in ("post", "environment", "test", "runscript")]
    for script in (arguments_of("RUN"), *scripts):
        subprocess.run(["sh", "-n"], input="\n".join(script), text=True, check=True)


def test_both_recipes_copy_the_same_files_which_exist():
    copies = [*copied_by_docker()]
    assert sorted(copies) == sorted(copied_by_apptainer())
    assert not [source for source, _ in copies if not (REPO / source).exists()]


@pytest.mark.slow
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
    assert (root / "dist" / name).stat().st_size > sum(
        path.stat().st_size for path in (REPO / "domainbed_carft" / "assets").glob("*.zip")
    )


def test_every_dependency_is_pinned_to_a_version_that_the_package_allows():
    lines = VERSIONS.read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))

    setup = ConfigParser()
    setup.read(REPO / "setup.cfg")
    requirements = [
        Requirement(line)
        for line in setup["options"]["install_requires"].splitlines()
        if line and not line.startswith("#")
    ]
    assert len(requirements) > 10
    for requirement in requirements:
        assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_the_page_of_containers_builds_these_recipes():
    page = (REPO / "docs" / "containers.md").read_text()
    for command in (
        "docker build --file containers/Dockerfile --tag domainbed-carft .",
        "apptainer build carft.sif containers/carft.def",
    ):
        assert f"\n{command}\n" in page
        assert [word for word in command.split() if (REPO / word).is_file()]
