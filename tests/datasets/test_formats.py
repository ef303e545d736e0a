"""Compressed logs give the rows of plain ones; archives and other formats are refused by name, whatever theirs is."""

import bz2
import gzip
import io
import itertools
import lzma
import sqlite3
import tarfile
import zipfile
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.reading import plan_chunks, read_chunk, read_log
from mlet_tf.errors import InputError

PAIRS = ClickLogSchema.from_dict(
    {"name": "pairs", "label": "y", "categoricals": ["c"], "separator": ",", "header": True}
)
HEADER = b"y,c\n"
LINES = [b"%d,value-%d\n" % (i % 2, i * 7919 % 1009) for i in range(3000)]
LOG = HEADER + b"".join(LINES)
TABLE = pa.table({"y": [0, 1], "c": ["a", "b"]})


def _arrow(codec):
    def compress(data):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


CODECS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zst": _arrow("zstd"),
    "lz4": _arrow("lz4"),
}
MEMBERS = sorted(CODECS.keys() - {"lzma"})
SETTINGS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def rows(path, block_bytes=1 << 20):
    """The good rows of a file and how many bad ones there are."""
    good, bad = [], 0
    for chunk in plan_chunks([str(path)], PAIRS):
        for block in read_chunk(chunk, PAIRS, block_bytes=block_bytes):
            good += [(row["y"], row["c"]) for row in block.table.to_pylist()]
            bad += len(block.rejects)
    return good, bad


EXPECTED = [(i % 2, b"value-%d" % (i * 7919 % 1009)) for i in range(3000)]


@pytest.mark.parametrize("codec", CODECS)
def test_compressed_text_is_told_by_its_bytes_and_not_by_its_name(tmp_path, codec):
    path = tmp_path / "log.csv"
    path.write_bytes(CODECS[codec](LOG))
    assert rows(path) == (EXPECTED, 0)
    named_as_another = tmp_path / "log.csv.gz"
    named_as_another.write_bytes(CODECS[codec](LOG))
    assert rows(named_as_another, block_bytes=1000) == (EXPECTED, 0)
    assert len(plan_chunks([str(path)], PAIRS, chunk_bytes=100)) == 1


@SETTINGS
@given(
    codec=st.sampled_from(MEMBERS),
    cuts=st.lists(st.integers(0, len(LOG)), max_size=4).map(sorted),
    block_bytes=st.integers(200, 50_000),
)
def test_several_members_are_read_as_one(tmp_path, codec, cuts, block_bytes):
    """As `cat a.gz b.gz`, bgzip, pbzip2 and pzstd write them; a member may be empty or end inside a line."""
    edges = [0, *cuts, len(LOG)]
    path = tmp_path / f"log.{codec}"
    path.write_bytes(b"".join(CODECS[codec](LOG[a:b]) for a, b in itertools.pairwise(edges)))
    assert rows(path, block_bytes) == (EXPECTED, 0)


@SETTINGS
@given(codec=st.sampled_from(MEMBERS), cut=st.floats(0, 1, exclude_max=True), twice=st.booleans())
def test_a_file_cut_anywhere_is_damaged(tmp_path, codec, cut, twice):
    whole = CODECS[codec](LOG)
    path = tmp_path / f"log.{codec}"
    path.write_bytes((CODECS[codec](HEADER) if twice else b"") + whole[: 1 + int(cut * (len(whole) - 1))])
    with pytest.raises(
        InputError, match=r"is a damaged \w+ file: reading failed after \d+ uncompressed bytes"
    ):
        rows(path)


@pytest.mark.parametrize("codec", MEMBERS)
def test_what_follows_the_last_member_is_not_passed_over(tmp_path, codec):
    path = tmp_path / "log.csv"
    for rest in (b"garbage", LOG, CODECS[codec](LOG)[1:]):
        path.write_bytes(CODECS[codec](LOG) + rest)
        with pytest.raises(InputError, match="is a damaged"):
            rows(path)


@pytest.mark.parametrize("codec", ["gz", "xz"])
def test_zeros_after_the_last_member_are_padding(tmp_path, codec):
    path = tmp_path / "log.csv"
    path.write_bytes(CODECS[codec](LOG) + bytes(512))
    assert rows(path) == (EXPECTED, 0)


def test_a_frame_that_zstd_skips_comes_first(tmp_path):
    """As pzstd writes."""
    path = tmp_path / "log.csv"
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\x00\x00\x00size" + CODECS["zst"](LOG))
    assert rows(path) == (EXPECTED, 0)


def test_a_window_of_zstd_that_is_not_read_is_no_damage(tmp_path):
    """As `zstd --long=31` writes; the frame says that it needs 2 GiB."""
    path = tmp_path / "log.csv"
    path.write_bytes(b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00")
    with pytest.raises(InputError, match=r"log\.csv needs a window that is not read \(zstd --long\)"):
        rows(path)


def _tar(form=tarfile.PAX_FORMAT):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        info = tarfile.TarInfo("day_0.csv")
        info.size = len(LOG)
        archive.addfile(info, io.BytesIO(LOG))
    return file.getvalue()


def _old_tar():
    """Without the word `ustar`, as before 1988."""
    block = bytearray(_tar(tarfile.USTAR_FORMAT))
    block[257:512] = bytes(255)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


def _zip(name="day_0.csv"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, LOG)
    return file.getvalue()


def _arrow_file(write):
    sink = pa.BufferOutputStream()
    write(TABLE, sink)
    return sink.getvalue().to_pybytes()


def _sqlite():
    database = sqlite3.connect(":memory:")
    database.execute("create table log (y, c)")
    return database.serialize()


REFUSED = {
    "tar": (_tar, "a tar archive: unpack it first"),
    "old tar": (_old_tar, "a tar archive: unpack it first"),
    "tar.gz": (lambda: gzip.compress(_tar()), "a gzip file, and what is inside of it is a tar archive"),
    "tar.zst": (lambda: CODECS["zst"](_tar()), "a zstd file, and what is inside of it is a tar archive"),
    "gz.gz": (
        lambda: gzip.compress(gzip.compress(LOG)),
        "a gzip file, and what is inside of it is a gzip file: unpack it once",
    ),
    "parquet.gz": (
        lambda: gzip.compress(_arrow_file(pq.write_table)),
        "a gzip file, and what is inside of it is a Parquet file",
    ),
    "utf16.gz": (
        lambda: gzip.compress(LOG.decode().encode("utf-16")),
        "a gzip file, and what is inside of it is UTF-16 text",
    ),
    "zip": (_zip, "a zip archive: unpack it first"),
    "xlsx": (lambda: _zip("[Content_Types].xml"), r"an Excel workbook \(.xlsx\): export it as CSV"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(50), "a 7z archive"),
    "rar": (lambda: b"Rar!\x1a\x07\x01\x00" + bytes(50), "a RAR archive"),
    "lzo": (lambda: b"\x89LZO\x00\r\n\x1a\n" + bytes(50), "compressed with lzop"),
    "snappy": (lambda: b"\xff\x06\x00\x00sNaPpY" + bytes(50), "compressed with snappy"),
    "Z": (lambda: b"\x1f\x9d\x90" + bytes(50), r"compressed with compress \(.Z\)"),
    "deflate": (lambda: zlib.compress(LOG), "compressed with zlib"),
    "orc": (lambda: _arrow_file(pa.orc.write_table), "an ORC file: export it"),
    "avro": (lambda: b"Obj\x01\x04\x14avro.codec\x08null\x16avro.schema" + bytes(20), "an Avro file"),
    "sequence": (lambda: b"SEQ\x06\x19org.apache.hadoop.io.Text" + bytes(50), "a Hadoop SequenceFile"),
    "feather": (lambda: _arrow_file(pa.feather.write_feather), "an Arrow"),
    "sqlite": (_sqlite, "a SQLite database"),
    "utf16": (
        lambda: LOG.decode().encode("utf-16"),
        "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`",
    ),
    "utf16be": (lambda: b"\xfe\xff" + LOG.decode().encode("utf-16-be"), "UTF-16 text"),
    "utf16 unmarked": (lambda: LOG.decode().encode("utf-16-le"), "UTF-16LE text"),
    "utf32": (lambda: LOG.decode().encode("utf-32"), "UTF-32 text"),
    "random": (lambda: np.random.default_rng(0).bytes(5000), "binary data of an unknown format"),
    "page": (lambda: b"<!DOCTYPE html>\n<html><title>403</title></html>\n", "HTML or XML"),
    "json": (lambda: b'{"y": 1, "c": "a"}\n' * 20, "JSON: export it"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        "a pointer of Git LFS, not the file",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_format_that_is_not_read_is_named_in_one_line(tmp_path, name):
    make, words = REFUSED[name]
    path = tmp_path / "log.csv"
    path.write_bytes(make())
    with pytest.raises(InputError, match=rf"^{path} is ({words})") as error:
        list(read_log(str(path), PAIRS))
    assert str(error.value).isprintable()


def test_a_header_in_latin_1_is_named(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes("y,caf\xe9\n1,x\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"log\.csv is not UTF-8 text, it may be Latin-1"):
        list(read_log(str(path), PAIRS))


def test_bad_bytes_further_down_do_not_hide_what_is_wrong(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"y,d\n" + b"1,caf\xe9\n1,\0\n" + b"".join(LINES[:20]))
    with pytest.raises(InputError, match=r"log\.csv has no column 'c'"):
        list(read_log(str(path), PAIRS))


def test_what_a_header_holds_does_not_reach_the_terminal(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"y,d\x1b[2J" + b"e" * 200 + b"\n1,x\n")
    with pytest.raises(InputError, match="has no column 'c'") as error:
        list(read_log(str(path), PAIRS))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "begin", [b"PAR1", b"ORC", b"FEA1", b"BZh9", b"%PDF-", b"Obj", b"PK", b"SEQ", b"x\x01"]
)
def test_text_may_begin_as_other_formats_do(tmp_path, begin):
    schema = ClickLogSchema(**{**vars(PAIRS), "columns": ("c", "y"), "header": False})
    path = tmp_path / "log.csv"
    path.write_bytes(begin + b"a,1\n")
    assert [table["c"].to_pylist() for table in read_log(str(path), schema)] == [[begin + b"a"]]


def test_bad_lines_at_the_start_are_rejected_as_lines(tmp_path):
    """Bytes that are no text do not make a log a file of another format."""
    path = tmp_path / "log.csv"
    path.write_bytes(HEADER + b"1,\0\0\0\n" + b"1,\xff\xfe\n" + b"".join(LINES))
    assert rows(path) == (EXPECTED, 2)
