"""What a release repeats in several files: the version, and the address of the repository."""

import re
from configparser import ConfigParser
from types import SimpleNamespace

import pytest
from fake_checkout import REPO

from domainbed_carft.version import __version__

NO_ADDRESS = "no public address yet"


def read_words(name):
    return " ".join((REPO / name).read_text(encoding="utf-8").split())


@pytest.fixture(scope="module")
def setup_file():
    config = ConfigParser()
    config.read(REPO / "setup.cfg", encoding="utf-8")
    return config


def read_citation(key):
    text = (REPO / "CITATION.cff").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w-]+): (.+)$", text, re.MULTILINE)).get(key, "")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("CITATION.cff", r"^version: (.+)$"),
        ("containers/Dockerfile", r'image\.version="(.+)"'),
        ("containers/carft.def", r"image\.version (.+)$"),
        ("RELEASING.md", r"`VERSION=(.+)`"),
        ("RELEASING.md", r"^\*\*State of (\S+) on "),
    ],
)
def test_files_have_the_version_of_the_package(name, pattern):
    text = (REPO / name).read_text(encoding="utf-8")
    assert re.findall(pattern, text, re.MULTILINE) == [__version__]


def test_metadata_reads_the_version_of_the_package(setup_file):
    assert setup_file["metadata"]["version"] == "attr: domainbed_carft.version.__version__"


def test_state_of_the_release_has_the_date_of_the_citation():
    text = (REPO / "RELEASING.md").read_text(encoding="utf-8")
    (date,) = re.findall(r"^\*\*State of \S+ on ([\d-]+)\.", text, re.MULTILINE)
    assert date == read_citation("date-released")


def test_address_of_the_repository_is_the_same_everywhere(setup_file):
    address = setup_file["repository"]["address"]
    assert "url" not in setup_file["metadata"]
    assert read_citation("repository-code") == address
    for page in ("README.md", "docs/install.md"):
        words = read_words(page)
        assert (f"git clone {address}" in words) == bool(address), page
        assert (NO_ADDRESS in words) != bool(address), page
    mkdocs = (REPO / "mkdocs.yml").read_text(encoding="utf-8")
    assert not re.findall(r"^(?:repo|site)_url:", mkdocs, re.MULTILINE)


@pytest.mark.parametrize("address", ["", "https://example.org/group/domainbed-carft"])
def test_site_links_to_the_address_in_the_setup_file(address, tmp_path, monkeypatch):
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("latex2mathml", reason="needs the extra docs")
    monkeypatch.syspath_prepend(REPO / "tools" / "site")
    import hooks

    (tmp_path / "setup.cfg").write_text(f"[repository]\naddress = {address}\n")
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    config = hooks.on_config(SimpleNamespace(copyright="MIT licence", repo_url=None))
    assert config.repo_url == (address or None) and __version__ in config.copyright
