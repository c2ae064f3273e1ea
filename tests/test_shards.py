"""A stranger's shards and an altered index: a line of text, never a wrong label or a traceback."""

import io
import os
import tarfile

import numpy as np
import pytest

from domainbed_carft.data import shard_reading, shards
from domainbed_carft.errors import CarftError

pytest.importorskip("webdataset")

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DOMAINBED_CARFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def write_members(path, members, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def write_labels(path, labels, prefix="s"):
    """A shard of pictures without content, one for each label."""
    parts = []
    for number, label in enumerate(labels):
        parts.append(member(f"{prefix}{number}.jpg", b"x" * 700))
        parts.append(member(f"{prefix}{number}.cls", str(label).encode()))
    return write_members(path, parts)


def labels_by_name(path):
    """The label of each picture, by the picture's place in the shard, from its index."""
    index = shards.index([path], CLASSES)
    return [
        label for _, label in sorted((index[i][0].offset, index[i][1]) for i in range(len(index)))
    ]


# The index belongs to its shards


def test_indexes_of_two_folders_are_not_confused(tmp_path):
    """With equal names, sizes and times, as images of a file system have them."""
    first_path = write_labels(tmp_path / "a" / "0.tar", [0, 0, 1, 1])
    second_path = write_labels(tmp_path / "b" / "0.tar", [1, 1, 0, 0])
    for path in (first_path, second_path):
        os.utime(path, ns=(10**18, 10**18))
    assert first_path.stat().st_size == second_path.stat().st_size
    assert labels_by_name(first_path) == [0, 0, 1, 1]
    assert labels_by_name(second_path) == [1, 1, 0, 0]


def test_an_index_follows_a_changed_symlink(tmp_path):
    for name, labels in (("a", [0, 1]), ("b", [1, 0])):
        os.utime(write_labels(tmp_path / name / "0.tar", labels), ns=(10**18, 10**18))
    link = tmp_path / "data"
    for name, expected in (("a", [0, 1]), ("b", [1, 0])):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / name)
        assert labels_by_name(link / "0.tar") == expected


def test_an_index_follows_a_replaced_file(tmp_path):
    path = write_labels(tmp_path / "0.tar", [0, 1])
    os.utime(path, ns=(10**18, 10**18))
    assert labels_by_name(path) == [0, 1]
    write_labels(path, [1, 0])
    os.utime(path, ns=(10**18, 10**18))
    assert labels_by_name(path) == [1, 0]


def test_shards_of_equal_size_and_time_are_told_apart_by_content(tmp_path, monkeypatch):
    """Where even inode and times are equal, as two images mounted one after the other have them."""
    path = write_labels(tmp_path / "0.tar", [0, 1])
    status = path.stat()
    monkeypatch.setattr(shards.os, "fstat", lambda descriptor: status)
    assert labels_by_name(path) == [0, 1]
    write_labels(path, [1, 0])
    assert labels_by_name(path) == [1, 0]


def test_the_index_is_cached_until_the_shards_change(tmp_path, monkeypatch):
    path = write_labels(tmp_path / "0.tar", [0, 2, 1])
    first = shards.index([path], CLASSES)
    monkeypatch.setattr(shard_reading, "read_samples", None)
    cached_index = shards.index([path], CLASSES)
    assert np.array_equal(
        cached_index.locations, first.locations
    ) and cached_index.labels.tolist() == [0, 1, 2]


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "0.tar").symlink_to("0.tar")
    for name in ("0.tar", "1.tar"):
        with pytest.raises(CarftError, match=f"{name} cannot be read: .*; restore the shard"):
            shards.index([tmp_path / name], CLASSES)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.tar")
    with pytest.raises(CarftError, match="0.tar cannot be read: .* it is a pipe"):
        shards.index([tmp_path / "0.tar"], CLASSES)


# An altered index


def altered(table, **columns):
    names = ("shard", "offset", "size", "label")
    table = table.copy()
    for name, value in columns.items():
        table[1, names.index(name)] = value
    return table


ALTERED = {
    "no index": lambda table: b"no index",
    "nothing": lambda table: b"",
    "without its last row": lambda table: table[:-1].tobytes(),
    "cut off": lambda table: table.tobytes()[:-3],
    "another order": lambda table: table[::-1].tobytes(),
    "a label too large": lambda table: altered(table, label=99).tobytes(),
    "a negative label": lambda table: altered(table, label=-1).tobytes(),
    "a shard that is not there": lambda table: altered(table, shard=7).tobytes(),
    "a negative shard": lambda table: altered(table, shard=-1).tobytes(),
    "a picture behind the end": lambda table: altered(table, offset=1 << 40).tobytes(),
    "a picture of any size": lambda table: altered(table, size=2**63 - 1).tobytes(),
    "a negative offset": lambda table: altered(table, offset=-5).tobytes(),
    "floats": lambda table: table.astype(float).tobytes(),
    "one column": lambda table: table[:, 3].tobytes(),
    "far more rows": lambda table: table.tobytes() * 10_000,
}


@pytest.mark.parametrize("alteration", ALTERED)
def test_an_altered_index_is_built_again(alteration, tmp_path, cache):
    path = write_labels(tmp_path / "0.tar", [0, 0, 1, 2])
    first = shards.index([path], CLASSES)
    (cache_file,) = (cache / "shards").iterdir()

    table = np.column_stack([first.locations, first.labels]).astype("<i8")
    rows = ALTERED[alteration](table)
    cache_file.write_bytes(rows)

    index = shards.index([path], CLASSES)
    assert np.array_equal(index.locations, first.locations)
    assert np.array_equal(index.labels, first.labels)
    assert cache_file.read_bytes() != rows  # and is right again


def test_an_index_with_a_flipped_bit_is_built_again(tmp_path, cache):
    path = write_labels(tmp_path / "0.tar", [0, 0, 1, 2])
    first = shards.index([path], CLASSES)
    (cache_file,) = (cache / "shards").iterdir()
    original_content = cache_file.read_bytes()
    for position in range(0, len(original_content), 7):
        content = bytearray(original_content)
        content[position] ^= 1 << position % 8
        cache_file.write_bytes(content)
        index = shards.index([path], CLASSES)
        assert np.array_equal(index.locations, first.locations)
        assert np.array_equal(index.labels, first.labels)


def test_an_index_of_other_shards_is_not_used(tmp_path, cache):
    """Copied to the name of the right one."""
    first_path = write_labels(tmp_path / "a" / "0.tar", [0, 1])
    second_path = write_labels(tmp_path / "b" / "0.tar", [1, 0])
    shards.index([first_path], CLASSES)
    (first_file,) = (cache / "shards").iterdir()
    shards.index([second_path], CLASSES)
    (second_file,) = {*(cache / "shards").iterdir()} - {first_file}
    second_file.write_bytes(first_file.read_bytes())
    assert labels_by_name(second_path) == [1, 0]


# Labels


def refused(path, message):
    with pytest.raises(CarftError, match=message) as caught:
        shards.index([path] if isinstance(path, os.PathLike) else path, CLASSES)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 900


@pytest.mark.parametrize(
    ("label", "expected"), [("1", 1), ("dog", 1), (" 2\n", 2), ("0", 0), ("002", 2)]
)
def test_labels_are_read_from_text(label, expected, tmp_path):
    assert labels_by_name(write_labels(tmp_path / "0.tar", [label])) == [expected]


@pytest.mark.parametrize(
    "label", ["1.9", "True", "٢", "²", "1e0", "-1", "3", "+1", "1_0", "", "0x1", "nan", "9" * 9]
)
def test_text_that_is_no_label_is_refused(label, tmp_path):
    refused(write_labels(tmp_path / "0.tar", [label]), "the sample 's0' has the label ")


@pytest.mark.parametrize(("text", "expected"), [('{"cls": 1}', 1), ('{"label": "owl"}', 2)])
def test_labels_are_read_from_json(text, expected, tmp_path):
    parts = [member("a.jpg", b"x"), member("a.json", text.encode())]
    assert labels_by_name(write_members(tmp_path / "0.tar", parts)) == [expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"cls": 1.9}', "has the label 1.9"),
        ('{"cls": 1.0}', "has the label 1.0"),
        ('{"cls": true}', "has the label True"),
        ('{"cls": Infinity}', "has the label inf"),
        ('{"cls": 1e999}', "has the label inf"),
        ('{"cls": NaN}', "has the label nan"),
        ('{"cls": "١"}', "has the label "),
        ('{"cls": [1]}', "has the label .1."),
        ('{"cls": {"a": 1}}', "has the label "),
        ('{"cls": -1}', "has the label -1"),
        (f'{{"cls": {"1" * 4000}}}', "has the label 111"),
        (f'{{"cls": {"1" * 5000}}}', "not a shard of pictures"),
        ('{"cls": 1, "cls": 2}', "the key 'cls' appears twice"),
        ('["cls"]', "holds no object"),
        ('"cls"', "holds no object"),
        ("7", "holds no object"),
        ("[" * 100_000, "nested more than"),
    ],
)
def test_json_that_is_no_label_is_refused(text, message, tmp_path):
    parts = [member("a.jpg", b"x"), member("a.json", text.encode())]
    refused(write_members(tmp_path / "0.tar", parts), message)


def test_a_repeated_sample_is_refused(tmp_path):
    separate_shards = [
        *(member("a.jpg", b"x"), member("a.cls", b"0")),
        *(member("b.jpg", b"x"), member("b.cls", b"0")),
        *(member("a.jpg", b"x"), member("a.cls", b"1")),
    ]
    refused(
        write_members(tmp_path / "apart.tar", separate_shards),
        "the sample 'a' appears twice, in .*apart.tar with the label 0 and in .* the label 1",
    )

    neighbours = [member("a.jpg", b"x"), member("a.cls", b"0"), member("a.cls", b"1")]
    refused(write_members(tmp_path / "beside.tar", neighbours), "a.cls: duplicate file name")

    copies = [write_labels(tmp_path / name, [0, 1]) for name in ("0.tar", "1.tar")]
    refused(copies, "'s0' appears twice, in .*0.tar with the label 0 and in .*1.tar with the label")

    # The same name in two folders of an archive, or a name that goes on, is another sample.
    parts = [
        *(member("x/a.jpg", b"x"), member("x/a.cls", b"0")),
        *(member("y/a.jpg", b"x"), member("y/a.cls", b"1")),
        *(member("a1.jpg", b"x"), member("a1.cls", b"2")),
    ]
    assert labels_by_name(write_members(tmp_path / "folders.tar", parts)) == [0, 1, 2]


# Archives


def link_to_itself(path):
    link = {"type": tarfile.SYMTYPE, "linkname": "a.cls"}
    write_members(path, [member("a.jpg", b"x"), member("a.cls", **link)])


def links_to_each_other(path):
    parts = [member("a.jpg", b"x")]
    for name, second_link in (("a.cls", "b.cls"), ("b.cls", "a.cls")):
        parts.append(member(name, type=tarfile.LNKTYPE, linkname=second_link))
    write_members(path, parts)


def many_headers(path):
    block = tarfile.TarInfo("././@LongLink")
    block.type = tarfile.GNUTYPE_LONGNAME
    block.size = 2
    path.write_bytes((block.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")) * 3000)


def many_pax_headers(path):
    block = tarfile.TarInfo("pax")
    block.type = tarfile.XHDTYPE
    block.size = 12
    path.write_bytes(
        (block.tobuf(tarfile.USTAR_FORMAT) + b"12 path=abc\n".ljust(512, b"\0")) * 3000
    )


def long_pax_header(path):
    block = tarfile.TarInfo("pax")
    block.type = tarfile.XHDTYPE
    block.size = 6 << 30
    with path.open("wb") as file:
        file.write(block.tobuf(tarfile.GNU_FORMAT))
        file.truncate(7 << 30)  # takes no place on the disk


def huge_sparse_file(path):
    size = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "a.jpg"}
    size |= {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**86)}
    parts = [member("a.jpg", b"x", pax_headers=size), member("a.cls", b"0")]
    write_members(path, parts, format=tarfile.PAX_FORMAT)


def huge_old_sparse_file(path):
    info = tarfile.TarInfo("a.jpg")
    info.type = tarfile.GNUTYPE_SPARSE
    info.size = 1
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398] = tarfile.itn(2**86, 12, tarfile.GNU_FORMAT)
    block[398:410] = tarfile.itn(2**86, 12, tarfile.GNU_FORMAT)
    block[483:495] = tarfile.itn(2**86, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + b"x".ljust(512, b"\0") + bytes(1024))


def longer_than_its_file(path):
    write_labels(path, [0])
    content = path.read_bytes()
    path.write_bytes(content[:700])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (link_to_itself, "the sample 'a' has no label"),
        (links_to_each_other, "the sample 'a' has no label"),
        (many_headers, "hundreds of headers for one file"),
        (many_pax_headers, "hundreds of headers for one file"),
        (long_pax_header, "a header of 6,442,450,944 bytes, expected at most 1,048,576"),
        (huge_sparse_file, "is a sparse file|no file has"),
        (huge_old_sparse_file, "is a sparse file|no file has"),
        (longer_than_its_file, "'s0.jpg' is cut off"),
    ],
)
def test_an_archive_that_is_no_shard_is_refused_in_one_line(write, message, tmp_path):
    write(tmp_path / "0.tar")
    refused(tmp_path / "0.tar", f"0.tar is not a shard of pictures with labels: .*{message}")
