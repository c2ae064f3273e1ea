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


def test_an_unknown_one_is_named_before_anything_is_downloaded(calls, capsys):
    assert download.main(["--data_dir", "d", "--datasets", "PACS", "PAC"]) == 2
    assert calls == []
    assert "is called 'PAC'; did you mean PACS" in capsys.readouterr().err


def test_what_is_there_is_not_downloaded_again(tmp_path, capsys):
    (tmp_path / "PACS").mkdir()
    assert download.main(["--data_dir", str(tmp_path), "--datasets", "PACS"]) == 1
    assert "PACS is there already" in capsys.readouterr().err
