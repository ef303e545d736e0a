"""The TFX component."""

from collections.abc import Mapping, Sequence

from mlet_tf.components.click_log_example_gen.config import to_proto
from mlet_tf.components.click_log_example_gen.driver import Driver
from mlet_tf.components.click_log_example_gen.executor import Executor
from tfx.components.example_gen import component
from tfx.dsl.components.base import executor_spec
from tfx.proto import example_gen_pb2

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.features.ingestion import EVAL, TRAIN, IngestConfig
from mlet_tf.storage import is_remote


class ClickLogExampleGen(component.FileBasedExampleGen):
    """Reads raw click logs into tf.Examples with splits `train` and `eval`.

    Plain text, compressed text and Parquet; rows in = rows out + rejected, checked. See the folder's README.

    Component `outputs` contains:
     - `examples`: Channel of `standard_artifacts.Examples`; the counts are among its custom properties.

    Example:
        ```python
        example_gen = ClickLogExampleGen(load_schema("criteo"), train="logs/day_*.gz", method="hash")
        ```
    """

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)
    DRIVER_CLASS = Driver

    def __init__(
        self,
        schema: ClickLogSchema,
        train: str,
        eval: str | None = None,
        *,
        method: str = "hash",
        eval_share: float = 0.2,
        cut: int | None = None,
        seed: int = 0,
        max_reject_share: float = 0.001,
        chunk_bytes: int = 16 << 20,
        column: str | None = None,
        parts: Mapping[str, Sequence[str]] | None = None,
        code_version: str = "",
    ) -> None:
        """Makes the component.

        Args:
            schema: Columns of the log.
            train: A file, a pattern or a folder; all rows, unless `method` is `"files"`.
            eval: The same for the rows of `eval`, if `method` is `"files"`.
            method: `"hash"`, `"time"`, `"files"` or `"column"`.
            eval_share: Share of rows for `eval`, for `hash` and for `time` without a `cut`.
            cut: For `time`: first value of the time column that belongs to `eval`.
            seed: Seed of the hash.
            max_reject_share: The run fails when a larger share of the rows is malformed.
            chunk_bytes: About how much of a file one worker reads at a time.
            column: For `column`: the column that names the part of a row; the schema may drop it.
            parts: For `column`: its values, all that it has, of `train` and of `eval`.
            code_version: Changes with the code, so that TFX's cache misses, as it does for another version of this
                library.

        Raises:
            InputError: A value does not fit.
        """
        lists = {split: list(values) for split, values in (parts or {}).items()}
        config = IngestConfig(
            schema, method, eval_share, cut, seed, max_reject_share, chunk_bytes, column, lists
        )
        if (method == "files") != (eval is not None):
            raise InputError(
                f"`eval` and method 'files' go together. Received: eval={eval!r}, method {method!r}"
            )
        base, patterns = _relative_to_common_folder([train] if eval is None else [train, eval])
        Split = example_gen_pb2.Input.Split
        if eval is None:
            inputs = example_gen_pb2.Input(splits=[Split(name="all", pattern=patterns[0])])
            outputs = _output_config(eval_share)
        else:
            names = (TRAIN, EVAL)
            inputs = example_gen_pb2.Input(
                splits=[Split(name=n, pattern=p) for n, p in zip(names, patterns, strict=True)]
            )
            outputs = example_gen_pb2.Output()
        super().__init__(
            input_base=base,
            input_config=inputs,
            output_config=outputs,
            custom_config=to_proto(config, code_version),
        )


def _output_config(eval_share: float) -> example_gen_pb2.Output:
    """Names the splits for TFX; the executor decides which row goes where."""
    buckets = max(1, min(9999, round(eval_share * 10_000)))
    OutputSplit = example_gen_pb2.SplitConfig.Split
    return example_gen_pb2.Output(
        split_config=example_gen_pb2.SplitConfig(
            splits=[
                OutputSplit(name=TRAIN, hash_buckets=10_000 - buckets),
                OutputSplit(name=EVAL, hash_buckets=buckets),
            ]
        )
    )


def _relative_to_common_folder(paths: list[str]) -> tuple[str, list[str]]:
    """Splits paths into a common folder, which TFX requires, and patterns below it."""
    if len({is_remote(path) for path in paths}) > 1:
        raise InputError(
            f"`train` and `eval` should be on one file system. Received: {paths[0]} and {paths[1]}"
        )
    parts = [path.split("/") for path in paths]
    common = 0
    while all(len(p) - 1 > common and p[common] == parts[0][common] for p in parts):
        common += 1
    base = "/".join(parts[0][:common])
    if paths[0].startswith("/") and base == "":
        base = "/"
    # TFX's own driver on Kubeflow fingerprints the files that a pattern matches, not folders.
    return base or ".", ["/".join(p[common:]) or "*" for p in parts]
