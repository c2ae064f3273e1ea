"""``carft collect`` as a command: what it loads, prints and refuses; its benchmark."""

import collect_sweeps
import pytest

from domainbed_carft import cli


def test_nothing_heavy_is_loaded(tmp_path):
    collect_sweeps.write_sweep(tmp_path)
    more = ["--compare", "published", "--paired", "ERM", "Mixup", "--format", "latex"]
    assert collect_sweeps.loaded("collect", tmp_path, *more) == [0, []]


def test_what_was_wrong_is_told_beside_the_tables(tmp_path, capsys):
    collect_sweeps.write_sweep(tmp_path, ["ERM"])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "results.jsonl").touch()
    path = tmp_path / "ERM-0-0-0" / "results.jsonl"
    with path.open("a") as file:
        file.write('{"args": {"data')
    assert cli.main(["collect", str(tmp_path), "--select", "oracle"]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert f"cut line: {path}: line 4 is not a whole record, skipped" in lines
    assert f"no records: {tmp_path / 'none'}: no record" in lines
    assert lines[-1] == "48 records of 16 jobs." and "none" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("collect --format csv --compare published --paired ERM Mixup", "--format csv is one"),
        ("collect --paired ERM ERM", "--paired ERM ERM compares an algorithm with itself"),
        ("collect --paired ERM CLIP", "there are: ERM, Mixup"),
        ("collect /no/such/folder", "no folder"),
        ("top --algorithm ERN", "--algorithm ERN: nothing was selected for it; there are: ERM"),
        ("top --select leave-one-domain-out", "nothing was selected by leave-one-domain-out"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, capsys, words, message):
    collect_sweeps.write_sweep(tmp_path)
    command, *more = words.split()
    assert cli.main([command, str(tmp_path), *more]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["collect", "--strict"], ["top"], ["report"]])
def test_a_method_without_any_job_is_refused(tmp_path, capsys, command):
    collect_sweeps.write_sweep(tmp_path / "it", ["ERM"], choices=1)
    output = ["-o", str(tmp_path / "page")] if command == ["report"] else []
    words = [*command, str(tmp_path / "it"), *output, "--select", "in-domain"]
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert out == "" and "--select in-domain: there are no jobs for it; expected one of" in err
