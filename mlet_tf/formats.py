"""Recognising the format of a file by its first bytes, never by its name."""

from __future__ import annotations

import re
import tarfile

# Number of first bytes that are looked at.
HEAD_BYTES = 4096

_CODECS = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x5d\x00\x00", "xz"),  # The older .lzma.
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)", re.DOTALL)
_ZSTD_SKIPPED = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18", re.DOTALL)  # Files of pzstd begin with this.

_UNPACK, _EXPORT = "unpack it first", "export it as CSV, TSV or Parquet"
_COMPRESS = "unpack it, or compress it with gzip, bzip2, xz, zstd or lz4"
_REFUSED = (
    (b"PARE", "an encrypted Parquet file: decrypt it first"),
    (b"PK\x05\x06", f"an empty zip archive: {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive: {_UNPACK}"),
    (b"Rar!\x1a\x07", f"a RAR archive: {_UNPACK}"),
    (b"\x89LZO\x00\r\n\x1a\n", f"compressed with lzop: {_COMPRESS}"),
    (b"\xff\x06\x00\x00sNaPpY", f"compressed with snappy: {_COMPRESS}"),
    (b"\x02\x21\x4c\x18", f"compressed with the old form of lz4: {_COMPRESS}"),
    (b"\x1f\x9d", f"compressed with compress (.Z): {_COMPRESS}"),
    (b"Obj\x01", f"an Avro file: {_EXPORT}"),
    (b"SEQ\x06", f"a Hadoop SequenceFile: {_EXPORT}"),
    (b"RCF\x01", f"a Hadoop RCFile: {_EXPORT}"),
    (b"SQLite format 3\x00", f"a SQLite database: {_EXPORT}"),
    (b"ARROW1\x00\x00", f"an Arrow (Feather) file: {_EXPORT}"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file: {_EXPORT}"),
    (b"\x93NUMPY", f"a NumPy array: {_EXPORT}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", f"an old Excel workbook (.xls): {_EXPORT}"),
)
# A text could begin like this: only if the rest is not text.
_REFUSED_UNLESS_TEXT = (
    (b"ORC", f"an ORC file: {_EXPORT}"),
    (b"FEA1", f"a Feather file: {_EXPORT}"),
    (b"%PDF-", "a PDF document"),
    (b"\x78\x01", f"compressed with zlib (deflate): {_COMPRESS}"),
    (b"\x78\x9c", f"compressed with zlib (deflate): {_COMPRESS}"),
    (b"\x78\xda", f"compressed with zlib (deflate): {_COMPRESS}"),
)
_SUSPECTED = (
    (
        re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE),
        "HTML or XML, such as the page of a failed download",
    ),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS, not the file: run `git lfs pull`"),
    (re.compile(rb"\s*[\[{]\s*[\"{]"), f"JSON: {_EXPORT}"),
)
_ODD_BYTES = re.compile(rb"[\x00\x04-\x08\x0b\x0c\x0e-\x1f\x7f]")


def codec_of(head: bytes) -> str | None:
    """The compression of a file: `"gzip"`, `"bz2"`, `"xz"`, `"zstd"`, `"lz4"`, or None.

    Args:
        head: Its first bytes, as many as `HEAD_BYTES` or all.
    """
    if _BZIP2.match(head):
        return "bz2"
    if _ZSTD_SKIPPED.match(head):
        return "zstd"
    return next((codec for magic, codec in _CODECS if head.startswith(magic)), None)


def is_parquet(head: bytes) -> bool:
    """Whether a file is Parquet, and no text that begins like it; see `codec_of`."""
    return head.startswith(b"PAR1") and not is_text(head)


def refused_format(head: bytes) -> str | None:
    """A format that is recognised and not supported, with what to do about it; None otherwise.

    Args:
        head: The first bytes of the file, as many as `HEAD_BYTES` or all.

    Returns:
        Words that follow "the file is", such as "a zip archive: unpack it first".
    """
    if head.startswith(b"PK\x03\x04"):
        workbook = b"[Content_Types].xml" in head or b"xl/" in head
        return f"an Excel workbook (.xlsx): {_EXPORT}" if workbook else f"a zip archive: {_UNPACK}"
    for magic, found in _REFUSED:
        if head.startswith(magic):
            return found
    if _is_tar(head):
        return f"a tar archive: {_UNPACK}"
    encoding = _marked_encoding(head)
    if encoding:
        return _convert(encoding)
    if not is_text(head):
        return next((found for magic, found in _REFUSED_UNLESS_TEXT if head.startswith(magic)), None)
    return None


def suspected_format(head: bytes) -> str | None:
    """What a file seems to be if it is not a table in UTF-8 text; None if it may be one.

    A log may have bad lines of any kind, so this only explains an error and is no reason for one.

    Args:
        head: The first bytes of the file.

    Returns:
        Words that follow "the file is".
    """
    encoding = _unmarked_encoding(head)
    if encoding:
        return _convert(encoding)
    if is_text(head):
        return next((found for pattern, found in _SUSPECTED if pattern.match(head)), None)
    if len(_ODD_BYTES.findall(head)) > len(head) / 50:
        return f"binary data of an unknown format (it begins with the bytes {head[:8].hex(' ')})"
    if is_text(head[: head.find(b"\n") + 1]):
        return None
    return "not UTF-8 text, it may be Latin-1 or Windows-1252: convert it with `iconv -f LATIN1 -t UTF-8`"


def is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 text without a NUL; the last character may be cut."""
    if b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def _marked_encoding(head: bytes) -> str | None:
    """The encoding named by a byte order mark."""
    if head.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "UTF-32"
    # A row of damaged text may begin with the same bytes; in UTF-16 each separator has a NUL.
    return "UTF-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in head else None


def _unmarked_encoding(head: bytes) -> str | None:
    """UTF-16 without a mark: every other byte of most text is NUL."""
    pairs = len(head) // 2
    even, odd = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if odd > 0.4 * pairs and even < 0.05 * pairs:
        return "UTF-16LE"
    return "UTF-16BE" if even > 0.4 * pairs and odd < 0.05 * pairs else None


def _convert(encoding: str) -> str:
    return f"{encoding} text: convert it with `iconv -f {encoding} -t UTF-8`"


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
