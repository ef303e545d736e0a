"""The driver: lists the input files and computes their fingerprint for TFX's cache."""

import hashlib
from collections.abc import Iterable

from mlet_tf.components.click_log_example_gen.config import input_files
from tfx.components.example_gen import driver, input_processor
from tfx.proto import example_gen_pb2, range_config_pb2

from mlet_tf.storage import file_stamp


class Driver(driver.FileBasedDriver):
    """TFX's driver with a stricter fingerprint: names, sizes, and times to the nanosecond."""

    def get_input_processor(
        self,
        splits: Iterable[example_gen_pb2.Input.Split],
        range_config: range_config_pb2.RangeConfig | None = None,
        input_base_uri: str | None = None,
    ) -> input_processor.InputProcessor:
        """Returns the processor below."""
        return _InputProcessor(input_base_uri, splits, range_config)


class _InputProcessor(input_processor.FileBasedInputProcessor):
    def get_input_fingerprint(self, span: int, version: int | None) -> str:
        """Hashes name, size and modification time of each file of each split.

        Raises:
            InputError: There are no files.
        """
        digest, files, size = hashlib.sha256(), 0, 0
        for split in self._splits:
            pattern = self.get_pattern_for_span_version(split.pattern, span, version)
            for path in input_files(self._input_base_uri, pattern):
                length, changed = file_stamp(path)
                digest.update(f"{split.name},{path},{length},{changed}\n".encode())
                files, size = files + 1, size + length
        return f"files:{files},bytes:{size},sha256:{digest.hexdigest()}"
