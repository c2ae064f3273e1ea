"""Tables of the packed records, to the digit as an earlier version of this package printed them."""

import json
import lzma

import packed_records
import pytest
from fake_checkout import REPO

from domainbed_carft.results import collection
from domainbed_carft.results.collect import collect
from domainbed_carft.results.top import top

GOLDEN = REPO / "tests" / "golden" / "tables"
PACKS = sorted(path.name.removesuffix(".json.xz") for path in GOLDEN.glob("*.json.xz"))


@pytest.mark.parametrize("pack", PACKS)
def test_tables_of_packed_records_are_equal_to_the_digit(pack, peers_emoji, tmp_path, monkeypatch):
    golden = json.loads(lzma.decompress((GOLDEN / f"{pack}.json.xz").read_bytes()))
    if pack == peers_emoji.name:
        folder = peers_emoji.parent
    else:
        folder = tmp_path
        packed_records.unpack(folder, pack)
    monkeypatch.chdir(folder)  # warnings and entries have the folders
    methods = ["training-domain", "oracle"]
    plain = collection.gather([pack], methods)
    all_columns = collect(plain, columns=["all"])

    assert collect(plain).write("csv") == golden["csv"]
    assert all_columns.write("csv") == golden["columns_csv"]
    assert [list(grid) for grid in all_columns.grids] == golden["text"]

    entries = json.loads(json.dumps([entry.as_dict() for entry in top(plain).entries]))
    names = golden["top"][0].keys()
    assert [{name: entry[name] for name in names} for entry in entries] == golden["top"]

    joint = collection.gather([pack], methods, by=golden["options"]["by"])
    results = collect(joint, columns=["all"], against=golden["options"]["against"])
    content = json.loads(results.write("json"))
    content.pop("caption")
    assert content == golden["json"]
