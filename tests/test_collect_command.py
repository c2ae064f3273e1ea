"""``carft collect`` as a command: what it loads, prints and refuses; its benchmark."""

import subprocess
import sys

import collect_sweeps
import pytest

from domainbed_carft import cli

LOADED = """
import sys
from domainbed_carft import cli
assert cli.main(sys.argv[1:]) == 0
assert not {"torch", "matplotlib", "pandas", "jinja2", "domainbed", "clip"} & set(sys.modules)
"""


def test_collect_loads_neither_torch_nor_pandas(tmp_path):
    collect_sweeps.write_sweep(tmp_path)
    options = ["--compare", "published", "--against", "ERM", "--columns", "all"]
    subprocess.run([sys.executable, "-c", LOADED, "collect", tmp_path, *options], check=True)


def test_warnings_are_printed_beside_the_tables(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    for number in range(25):
        (tmp_path / f"none {number:02}").mkdir()
        (tmp_path / f"none {number:02}" / "results.jsonl").touch()

    path = tmp_path / "ERM-0-0-0" / "results.jsonl"
    with path.open("a") as file:
        file.write('{"args": {"data')

    assert cli.main(["collect", str(tmp_path), "--select", "oracle"]) == 0

    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert f"cut line: {path}: line 4 is not a complete record; skipped" in lines
    assert f"no records: {tmp_path / 'none 19'}: no record" in lines
    assert "  ... and 5 more" in lines
    assert lines[-1] == "48 records of 16 jobs."
    assert "none" not in out


def test_the_legend_is_one_line_as_text_and_whole_in_the_other_formats(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    short = "Cells: mean +/- standard deviation (n trials). More: docs/collect.md"
    command = ["collect", str(tmp_path), "--select", "oracle", "--error", "std"]

    assert cli.main(command) == 0
    assert capsys.readouterr().out.rstrip().split("\n\n")[-1] == short

    assert cli.main([*command, "--format", "markdown"]) == 0
    out = capsys.readouterr().out
    assert "Standard deviation over the n trials, divisor n - 1" in out
    assert short not in out


def test_groups_have_rows_and_notes_of_their_own(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path / "a", ["ERM"], steps=1)
    collect_sweeps.write_sweep(tmp_path / "b", ["ERM"], steps=2)
    collect_sweeps.write_sweep(tmp_path / "c", ["CARFT"], steps=2, task="other")

    assert cli.main(["collect", str(tmp_path), "--format", "csv"]) == 0

    out, err = capsys.readouterr()
    assert "steps 2: Not all runs have the same task" in err
    assert out.startswith("setting,selection,") and "\nsteps 1,oracle,PACS,A,ERM," in out


def test_wrong_arguments_are_refused(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path)
    folder = str(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["collect", folder, "--select", "oracle,iid"])

    assert "'oracle,iid'; expected one or more of training-domain," in capsys.readouterr().err

    options = ["--format", "csv", "--compare", "published", "--against", "ERM"]
    assert cli.main(["collect", folder, *options]) == 1
    assert "--format csv holds one table" in capsys.readouterr().err
    assert cli.main(["collect", str(tmp_path / "no")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert cli.main(["top", folder, "--only", "ERN"]) == 1
    assert "no chosen job matches 'ERN'" in capsys.readouterr().err
    assert cli.main(["top", "--select", "leave-one-domain-out", "--", folder]) == 1
    assert "no run was selected with selection leave-one-domain-out" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["collect", "--strict"], ["top"], ["report"]])
def test_a_selection_method_without_jobs_is_refused(tmp_path, capsys, command):
    collect_sweeps.write_sweep(tmp_path / "it", ["ERM"], choices=1)
    output = ["-o", str(tmp_path / "page")] if command == ["report"] else []
    words = [*command, str(tmp_path / "it"), *output, "--select", "in-domain"]

    assert cli.main(words) == 1

    out, err = capsys.readouterr()
    assert out == "" and "--select in-domain: no jobs for this method; expected one of" in err


@pytest.mark.slow
def test_the_collect_benchmark_gets_the_harnesss_values(tmp_path):
    """240 jobs, the fewest that it writes."""
    command = [sys.executable, "benchmarks/collect.py", str(tmp_path / "sweep")]
    process = subprocess.run(
        [*command, "--jobs", "1", "--rounds", "1"],
        cwd=collect_sweeps.REPO,
        capture_output=True,
        text=True,
    )

    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.startswith("240 jobs, 4,080 records, ")
    assert "the harness's collect_results: 156 of 156 values equal as printed" in process.stdout
