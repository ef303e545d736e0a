"""From the artifacts of a run to its compressed model."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence

from mlet_tf.compression import Compression
from mlet_tf.compression.packed import compress_packed
from mlet_tf.config import CompressConfig, TrainConfig
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.export import load_keras_model
from mlet_tf.features.halves import choosing_step
from mlet_tf.features.packing import local_folder, pack_examples, packed_folder, rows_written
from mlet_tf.features.transform_graph import TransformGraph, vocabulary_bytes
from mlet_tf.storage import is_remote, join


@dataclasses.dataclass(frozen=True)
class CompressionTask:
    """What the compressed model of a run depends on.

    Attributes:
        model: Folder of the collapsed model.
        transform_graph: Folder of the transform graph.
        train_files: Patterns of the `train` shards.
        eval_files: Patterns of the `eval` shards; the rows at even positions of each choose the plan.
        schema: Schema of the log.
        compress: Budget and methods.
        train: Settings of the fine-tuning.
        num_oov_buckets: OOV buckets of each feature.
        code_version: Changes with the code.
    """

    model: str
    transform_graph: str
    train_files: Sequence[str]
    eval_files: Sequence[str]
    schema: ClickLogSchema
    compress: CompressConfig
    train: TrainConfig
    num_oov_buckets: int
    code_version: str

    def digest(self) -> str:
        """A short text that is another one for another task."""
        plain = {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "schema": self.schema.to_dict(),
            "compress": self.compress.to_plain(),
            "train": self.train.to_plain(),
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def compress_artifacts(
    task: CompressionTask, transform: TransformGraph, work: str, note: Callable[[str], None]
) -> Compression:
    """Compresses the collapsed model of a run; a call that was interrupted goes on where it stopped.

    Args:
        task: What to compress, and how.
        transform: The transform graph, loaded.
        work: Folder for packed rows and finished steps, which the same task finds again. Of a remote one there is a
            folder on a local disk, which is removed at the end.
        note: Called with a line about each step.

    Returns:
        The compressed model, not saved yet, and its report.

    Raises:
        InputError: The budget cannot be met, or the examples cannot be read.
    """
    rows = packed_folder(work, task.transform_graph)
    steps = local_folder(join(work, f"compression-{task.digest()}"))
    every = choosing_step(rows_written(task.eval_files))
    compression = compress_packed(
        load_keras_model(task.model),
        pack_examples(task.train_files, task.schema, transform, rows / "train"),
        pack_examples(task.eval_files, task.schema, transform, rows / "choosing", every),
        task.compress,
        task.num_oov_buckets + 1,
        vocabulary_bytes=vocabulary_bytes(task.transform_graph, task.schema),
        train_config=task.train,
        work=steps,
        note=note,
    )
    if is_remote(work):  # Otherwise they are removed with the work folder.
        for folder in (rows, steps):
            shutil.rmtree(folder, ignore_errors=True)
    return compression
