"""The command that downloads data sets, by whatever a plugin knows of them."""

from __future__ import annotations

import pytest
from domainbed import datasets
from domainbed.scripts import download


@pytest.fixture
def calls(monkeypatch):
    seen = []

    def fail(folder):
        raise ValueError("the link is dead")

    ways = {"Pets": lambda folder: seen.append(("Pets", folder)), "Dead": fail}
    ways["TerraIncognita"] = lambda folder: seen.append(("TerraIncognita", folder))
    monkeypatch.setattr(datasets, "DOWNLOADERS", ways)
    return seen


def test_upstreams_own_flag_gets_what_upstreams_script_gets(calls):
    assert download.main(["--data_dir", "some where"]) == 0
    assert calls == [("TerraIncognita", "some where")]


def test_the_help_says_what_it_gets_without_being_asked(calls, capsys):
    with pytest.raises(SystemExit):
        download.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "(default: TerraIncognita, as upstream's script does; begins without asking)" in said
    assert "there are: Pets, Dead, TerraIncognita" in said


def test_the_data_sets_that_are_asked_for(calls, capsys):
    assert download.main(["--data_dir", "d", "--datasets", "Pets", "Dead"]) == 1
    assert calls == [("Pets", "d")]
    assert capsys.readouterr().err == "download: the link is dead\n"


def test_an_unknown_one_is_named_before_anything_is_downloaded(calls, capsys):
    assert download.main(["--data_dir", "d", "--datasets", "Pets", "Pet"]) == 2
    assert calls == []
    err = capsys.readouterr().err
    assert "not found: Pet." in err and "Nearest: Pets" in err


def test_the_folder_has_to_be_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        download.main([])
    assert stopped.value.code == 2
    assert "--data_dir" in capsys.readouterr().err


def test_the_plugin_knows_the_five(command, tmp_path):
    (tmp_path / "PACS").mkdir()
    done = command("download", "--data_dir", ".", "--datasets", "PACS")
    assert done.returncode == 1
    assert "PACS is there already" in done.stderr
