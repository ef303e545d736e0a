"""A Parquet file from outside is data: reading it runs nothing that is inside of it."""

import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.synthetic import write_log

_READ = """
import sys
from mlet_tf.datasets import CRITEO
from mlet_tf.datasets.reading import read_log
for table in read_log(sys.argv[1], CRITEO):
    print(len(table))
"""


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_parquet_file_is_not_run(tmp_path):
    """CVE-2023-47248: an extension type that is a pickle, which pyarrow below 14.0.1 loads."""
    log, mark = tmp_path / "log.parquet", tmp_path / "code-was-run"
    write_log(log, CRITEO, 50, seed=0)
    table = pq.read_table(log)
    payload = pickle.dumps(_Payload(mark))
    name, extension = b"ARROW:extension:name", b"ARROW:extension:metadata"
    field = table.schema.field("C1").with_metadata({name: b"arrow.py_extension_type", extension: payload})
    schema = table.schema.set(table.schema.get_field_index("C1"), field)
    pq.write_table(pa.Table.from_arrays(table.columns, schema=schema), log)
    read = subprocess.run(
        [sys.executable, "-c", _READ, str(log)], capture_output=True, text=True, check=False
    )
    assert not mark.exists()
    assert "InputError" in read.stderr and "log.parquet has a column of a pickled Python type" in read.stderr
