"""From tf.Example shards to packed rows.

Training reads each row many times but preprocesses it once: `pack_examples` runs the transform graph over several
shards at a time and writes rows of fixed length, which tf.data then reads, shuffles and skips in C++.
"""

import collections
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from mlet_tf import strict_json
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.features.examples import Transform, example_files, raw_feature_spec
from mlet_tf.features.ingestion import read_ingest_report
from mlet_tf.features.packed_rows import PackedRows, pack_words
from mlet_tf.features.records import at_positions, example_batches
from mlet_tf.progress import ProgressLine
from mlet_tf.storage import is_remote, join, writing

# From a shard to its packed rows, int32 `[B, 1 + D + F]` each, and the number of rows that it holds.
_Packer = Callable[[str], tuple[list[np.ndarray], int]]

# Each thread holds a batch and a packed shard, some 100 MB.
_MAX_THREADS = 16
_PACK_BATCH = 16_384
_ROWS, _PACKED, _LOCK = "rows.bin", "packed.json", "lock"


def pack_examples(
    patterns: Sequence[str],
    schema: ClickLogSchema,
    transform: Transform,
    folder: str | Path,
    every: int = 1,
) -> PackedRows:
    """Preprocesses the rows of tf.Example shards into one packed file, in the order of the sorted shards.

    Resumes after the last packed shard if interrupted. A folder that is complete is used again, unless the examples
    have changed. Of several processes that pack into one folder all but the first wait and use what it has packed.

    Args:
        patterns: `<uri>/Split-<split>/*` of artifacts of ClickLogExampleGen.
        schema: Schema of the log.
        transform: The transform graph, see `mlet_tf.features.transform_graph.TransformGraph`.
        folder: Where to write, on a local disk; a folder for each transform graph.
        every: The rows at positions 0, `every`, `2 every`, ... of each shard are packed; 1 packs all.

    Returns:
        The packed rows.

    Raises:
        InputError: If no file matches, the files hold no row, or not as many as ClickLogExampleGen wrote, a file is
            damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    files = example_files(patterns)
    reports = [_split_report(pattern) for pattern in patterns]
    written = sum(rows for rows, _ in reports)
    examples = hashlib.sha256(json.dumps([files, reports, every], sort_keys=True).encode()).hexdigest()
    with writing(folder, OSError), _alone(folder):
        packed = _Packed.read(folder, examples)
        if packed.files < len(files):
            _pack_rest(files, written, _packer(schema, transform, every), folder, packed)
    if not packed.rows or packed.seen != written:
        shutil.rmtree(folder)
        raise InputError(f"{', '.join(patterns)}: {written} rows were written, {packed.seen} can be read")
    sparse = len(schema.sparse_features)
    return PackedRows(str(folder / _ROWS), packed.rows, packed.words - 1 - sparse, sparse)


def packed_folder(work: str, transform_graph: str) -> Path:
    """The folder, on a local disk, of the rows that all of a run pack with the same transform graph.

    Args:
        work: Work folder of the run.
        transform_graph: Folder of the graph.
    """
    return local_folder(join(work, f"packed-{hashlib.sha256(transform_graph.encode()).hexdigest()[:16]}"))


def local_folder(folder: str) -> Path:
    """The folder itself, or one on a local disk if it is remote: rows are read from a local disk."""
    if not is_remote(folder):
        return Path(folder)
    return Path(tempfile.gettempdir()) / f"mlet-tf-{hashlib.sha256(folder.encode()).hexdigest()[:16]}"


def rows_written(patterns: Sequence[str]) -> int:
    """Rows that ClickLogExampleGen wrote into the shards; see `pack_examples`."""
    return sum(_split_report(pattern)[0] for pattern in patterns)


@dataclasses.dataclass
class _Packed:
    """How far packing has come.

    Attributes:
        examples: Digest of what is packed.
        files: Shards that are packed.
        seen: Rows in them.
        rows: Rows of them that are packed.
        words: Words of 4 bytes in a row.
    """

    examples: str
    files: int = 0
    seen: int = 0
    rows: int = 0
    words: int = 0

    @classmethod
    def read(cls, folder: Path, examples: str) -> "_Packed":
        """Reads the progress in a folder; none if it is of other examples."""
        if not (folder / _PACKED).exists():
            return cls(examples)
        packed = cls(**json.loads((folder / _PACKED).read_text()))
        if packed.examples == examples:
            return packed
        (folder / _PACKED).unlink()  # It becomes false when the first rows are written.
        return cls(examples)

    def write(self, folder: Path) -> None:
        """Writes the progress into the folder."""
        strict_json.write(folder / _PACKED, dataclasses.asdict(self))


def _pack_rest(files: list[str], total: int, pack: _Packer, folder: Path, packed: _Packed) -> None:
    """Packs the remaining files, and updates `packed` and the folder after each."""
    line, started, before = ProgressLine(), time.monotonic(), packed.seen

    def text() -> str:
        rate = (packed.seen - before) / (time.monotonic() - started)
        return f"packing {folder.name}: {packed.seen:,} of {total:,} rows, {rate:,.0f} rows/s"

    with (folder / _ROWS).open("r+b" if packed.files else "wb") as file:
        # Rows that a killed call wrote after this are overwritten.
        file.seek(4 * packed.words * packed.rows)
        for batches, seen in _in_order(pack, files[packed.files :]):
            for words in batches:
                file.write(words)  # `tofile` does not report if the last few bytes do not fit on the disk.
                packed.rows, packed.words = packed.rows + len(words), words.shape[1]
            file.flush()
            os.fsync(file.fileno())
            packed.files, packed.seen = packed.files + 1, packed.seen + seen
            packed.write(folder)
            line.show(packed.seen, total, text)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes a folder, and waits until no other process packs into it, if its file system has locks."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _packer(schema: ClickLogSchema, transform: Transform, every: int) -> _Packer:
    """Packs the rows of a shard at positions 0, `every`, ...; gives them in batches, and how many it has."""
    preprocess = _preprocessor(schema, transform)

    def pack(path: str) -> tuple[list[np.ndarray], int]:
        words, seen = [], 0
        for batch in example_batches([path], _PACK_BATCH):
            if chosen := at_positions(batch, seen, 0, every):
                words.append(preprocess(tf.constant(chosen)).numpy())
            seen += len(batch)
        return words, seen

    return pack


def _preprocessor(schema: ClickLogSchema, transform: Transform) -> Callable[[tf.Tensor], tf.Tensor]:
    """Serialised tf.Examples `[B]` to packed rows int32 `[B, 1 + D + F]`."""
    spec = raw_feature_spec(schema, with_label=True)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def preprocess(serialized: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU"):  # A GPU gains nothing from looking up texts and a few floats.
            return pack_words(transform(tf.io.parse_example(serialized, spec)))

    return preprocess.get_concrete_function()


def _in_order(function: Callable[[str], Any], items: Sequence[str]) -> Iterator[Any]:
    """Results of a function for each item, in order; threads work on the next few items meanwhile."""
    threads = min(len(os.sched_getaffinity(0)), _MAX_THREADS)
    waiting: collections.deque[futures.Future] = collections.deque()
    with futures.ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _split_report(pattern: str) -> tuple[int, dict[str, Any]]:
    """Rows of a split according to the report of ClickLogExampleGen, and the report."""
    uri, split, _ = pattern.rsplit("/", 2)
    report = read_ingest_report(uri)
    return report["rows"][split.removeprefix("Split-")], report
