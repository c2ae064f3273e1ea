"""The command that downloads data sets."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from domainbed.scripts import download

from domainbed_carft.errors import CarftError


@pytest.fixture
def calls(monkeypatch):
    seen = []

    def stand_in(name, folder):
        seen.append((name, str(folder)))
        if name == "VLCS":
            raise CarftError("the link is dead")
        return SimpleNamespace(verdict="verified", pictures=3, root=folder / name)

    monkeypatch.setattr(download, "download", stand_in)
    return seen


def test_upstreams_own_flag_gets_what_upstreams_script_gets(calls, capsys):
    assert download.main(["--data_dir", "some where"]) == 0
    assert calls == [("TerraIncognita", "some where")]
    assert "verified: 3 pictures in some where/TerraIncognita" in capsys.readouterr().out


def test_the_data_sets_that_are_asked_for(calls, capsys):
    assert download.main(["--data_dir", "d", "--datasets", "PACS", "VLCS"]) == 1
    assert calls == [("PACS", "d"), ("VLCS", "d")]
    assert capsys.readouterr().err == "download: the link is dead\n"
