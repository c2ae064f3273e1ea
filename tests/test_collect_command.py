"""``carft collect`` as a command and a function: imports, output, and wrong arguments."""

import subprocess
import sys
from pathlib import Path

import collect_sweeps
import packed_records
import pytest

from domainbed_carft import cli
from domainbed_carft.results.collect import collect
from domainbed_carft.results.top import top

LOADED = """
import sys
from domainbed_carft import cli
sweep, job, report = sys.argv[1:]
heavy = {"torch", "matplotlib", "pandas", "jinja2", "domainbed", "clip"}
words = "--compare published --against ERM --columns all".split()
assert cli.main(["collect", sweep, *words]) == cli.main(["top", sweep]) == 0
assert not heavy & {*sys.modules}
assert cli.main(["report", job, "-o", report]) == 0
assert not {"torch", "domainbed", "clip"} & {*sys.modules}
"""


def test_commands_on_records_do_not_import_torch_nor_tables_pandas(tmp_path):
    collect_sweeps.write_sweep(tmp_path / "sweep", trials=1, choices=1)
    job = collect_sweeps.write_job(tmp_path, test_envs=[])
    words = [sys.executable, "-c", LOADED, tmp_path / "sweep", job, tmp_path / "report"]
    subprocess.run(words, check=True)


@pytest.fixture(scope="module")
def amp_emoji(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    packed_records.unpack(folder, "amp-emoji")
    return folder / "amp-emoji"


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        ("", "Cells: mean ± standard error (n trials). More: carft collect --columns help"),
        ("--error std", "Cells: mean ± standard deviation (n trials)."),
        ("--error std --format markdown", "Standard deviation over the n trials, divisor n - 1"),
        ("--columns worst,jobs", "Worst"),
        ("--compare published", "Compared with published numbers"),
        ("--by amp --against", "Minus CARFT (amp off); unit: environment"),
        ("--format csv --columns all", "setting,selection,dataset,algorithm,column,of,"),
        ("--format csv --by amp --against", "setting,selection,measure,unit,algorithm,against,"),
        ("--format json", '"column": "environments", "of": "fluent3d"'),
        ("--format latex", r"\begin{tabular}"),
    ],
)
def test_flags_change_the_output(amp_emoji, capsys, flags, printed):
    words = flags.split()
    if "--against" in words:
        words.append("CARFT (amp off)")
    assert cli.main(["collect", str(amp_emoji), *words]) == 0
    out, err = capsys.readouterr()
    assert printed in " ".join(out.split()).replace("+/-", "±")
    assert err.splitlines()[-1].endswith(" of 40 jobs.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("collect OUT --format csv --compare published --against E", "csv holds one table"),
        ("collect OUT --format csv --columns all --against E", "either --columns or --against"),
        ("collect OUT --format latex --compare published", "latex holds one table"),
        ("collect NO OUT NO2", "NO, NO2"),
        ("collect OUT --strict --select in-domain", "in-domain: no jobs for this rule"),
        ("top OUT --select in-domain", "in-domain: no jobs for this rule"),
        ("report OUT --select in-domain", "in-domain: no jobs for this rule"),
        ("top OUT --only ERN", "no chosen job matches 'ERN'"),
        ("top --select leave-one-domain-out -- OUT", "selection leave-one-domain-out"),
    ],
)
def test_wrong_arguments_are_reported(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    collect_sweeps.write_sweep(tmp_path / "OUT", ["ERM"])
    assert cli.main(words.split()) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err


def test_warnings_and_notes_go_to_stderr(tmp_path, capsys):
    collect_sweeps.write_job(tmp_path / "a", steps=1)
    collect_sweeps.write_job(tmp_path / "b", steps=2)
    collect_sweeps.write_job(tmp_path / "c", steps=2, algorithm="CARFT", task="other")
    for number in range(25):
        empty = collect_sweeps.write_job(tmp_path, f"none {number:02}", at=())
    assert cli.main(["collect", str(tmp_path), "--select", "oracle", "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert "\nsteps 1,oracle,PACS,ERM,environments,A," in out and "none" not in out
    assert "steps 2: Runs differ in task: " in err
    assert f"no records: {tmp_path / 'none 19'}: no record" in err and str(empty) not in err
    assert err.splitlines()[-1].startswith("9 records of 3 jobs; incomplete: ")


@pytest.mark.parametrize("convert", [str, Path, lambda path: [str(path)], lambda path: (path,)])
def test_folders_can_be_one_path_or_several(tmp_path, convert):
    collect_sweeps.write_sweep(tmp_path)
    folders = convert(tmp_path)
    assert collect(folders).as_dict() == collect([tmp_path]).as_dict()
    assert top(folders).entries == top([tmp_path]).entries
