"""The package index's page, which is made from README; all else stands in setup.cfg."""

import runpy
from configparser import ConfigParser
from pathlib import Path

import setuptools
from index_page import index_page  # in build_backend, which pyproject.toml puts on the path

config = ConfigParser()
config.read("setup.cfg")
version = runpy.run_path("domainbed_carft/version.py")["__version__"]

address = config["repository"]["address"]

setuptools.setup(
    url=address or None,
    long_description=index_page(
        Path("README.md").read_text(encoding="utf-8"),
        name=config["metadata"]["name"],
        version=version,
        address=address,
    ),
)
