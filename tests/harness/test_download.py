"""The command that will download data sets."""

from __future__ import annotations

import pytest
from domainbed.scripts import download


def test_it_says_which_command_downloads(capsys):
    assert download.main(["--data_dir", "some where"]) == 1
    err = capsys.readouterr().err
    assert "nothing was downloaded" in err
    assert "`carft data download`" in err
    assert "some where" in err


def test_the_folder_has_to_be_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        download.main([])
    assert stopped.value.code == 2
    assert "--data_dir" in capsys.readouterr().err
