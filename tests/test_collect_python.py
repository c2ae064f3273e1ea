"""`collect`, `top` and `write_report` as functions of Python: folders and frames."""

import json
import re
from pathlib import Path

import collect_sweeps
import numpy as np
import pytest

from domainbed_carft.errors import CarftError
from domainbed_carft.report.page import write_report
from domainbed_carft.results.collect import collect
from domainbed_carft.results.top import top


@pytest.mark.parametrize("form", [str, Path, lambda path: [str(path)], lambda path: (path,)])
def test_folders_are_a_path_or_several(tmp_path, form):
    collect_sweeps.write_sweep(tmp_path)
    folders = form(tmp_path)
    assert collect(folders).as_dict() == collect([tmp_path]).as_dict()
    assert top(folders).entries == top([tmp_path]).entries


@pytest.mark.parametrize("function", [collect, top, lambda folders: write_report(folders, "page")])
@pytest.mark.parametrize("wrong", ["runs", ["runs"], 5, None, [5], b"runs"])
def test_what_is_no_folder_is_named(wrong, function, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = str(wrong[0] if isinstance(wrong, list) else wrong)
    with pytest.raises(CarftError, match=f"(folder: |path is ){re.escape(name)}"):
        function(wrong)


def test_records_have_the_accuracies_of_the_files_and_nan_for_other_environments(tmp_path):
    collect_sweeps.write_job(tmp_path, "small", environments=["a", "b"], dataset="Own")
    folder = collect_sweeps.write_job(tmp_path, "large", test_envs=[1])
    rows = collect([tmp_path]).records.set_index(["folder", "step"])
    assert len(rows) == 6

    for line in (folder / "results.jsonl").read_text().splitlines():
        recorded = json.loads(line)
        row = rows.loc[(str(folder), recorded["step"])]
        assert row["test_envs"] == (1,)
        for env in range(4):
            assert row[f"env{env}_in_acc"] == recorded[f"env{env}_in_acc"]
            assert row[f"env{env}_out_acc"] == recorded[f"env{env}_out_acc"]
    assert np.isnan(rows.loc[str(tmp_path / "small"), "env3_in_acc"]).all()
