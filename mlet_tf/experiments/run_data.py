"""A finished pipeline run, opened to look at its model on its own evaluation rows."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.experiments.data import Rows
from mlet_tf.metrics import auc
from mlet_tf.models import DLRM
from mlet_tf.run_file import read_run_file


@dataclasses.dataclass(frozen=True)
class Run:
    """What truncation needs of a run.

    Attributes:
        model: The trained model, collapsed.
        nested: Whether leading columns were trained to serve alone.
        schema: Schema of the log.
        transform: The transform graph.
        rows: The evaluation rows.
        counts: How often each id of each feature occurs in `train`.
    """

    model: DLRM
    nested: bool
    schema: ClickLogSchema
    transform: Any
    rows: Rows
    counts: list[np.ndarray]

    def score(self) -> tuple[float, float]:
        """AUC of the model on even and on odd evaluation rows."""
        from mlet_tf.experiments.trial import predict

        label, ctr = np.asarray(self.rows.label), predict(self.model, self.rows)
        return auc(label[::2], ctr[::2]), auc(label[1::2], ctr[1::2])


@contextlib.contextmanager
def load_run(folder: Path, note: Callable[[str], None]) -> Iterator[Run]:
    """Opens a run; its preprocessed rows are kept in a temporary folder meanwhile.

    Raises:
        InputError: If there is no complete run in the folder.
    """
    artifacts = read_run_file(folder)["artifacts"]
    import tensorflow_transform as tft

    from mlet_tf.collapse import collapse_model
    from mlet_tf.components.common import TransformGraph, join, load_keras_model
    from mlet_tf.config import load_config
    from mlet_tf.experiments.nested import NestedEmbeddings, embedding_collection
    from mlet_tf.features.packing import pack_examples

    schema = load_config(folder / "config.yaml").schema
    transform = TransformGraph(tft.TFTransformOutput(artifacts["transform_graph"]))
    trained = load_keras_model(artifacts["uncollapsed_model"])
    nested = any(isinstance(layer, NestedEmbeddings) for layer in trained._flatten_layers())
    model = collapse_model(trained)
    sizes = [feature.input_dim for feature in embedding_collection(model).features]
    with tempfile.TemporaryDirectory() as temporary:
        packed = {}
        for split in ("train", "eval"):
            note(f"preprocessing {split}")
            patterns = [join(artifacts["examples"], f"Split-{split}", "*")]
            packed[split] = _arrays(pack_examples(patterns, schema, transform, Path(temporary) / split))
        ids = packed["train"].sparse_features
        counts = [np.bincount(ids[:, i], minlength=size) for i, size in enumerate(sizes)]
        yield Run(model, nested, schema, transform, packed["eval"], counts)


def _arrays(packed: Any) -> Rows:
    """Columns of a packed file, mapped into memory."""
    width = 1 + packed.dense + packed.sparse
    words = np.memmap(packed.path, np.int32, "r", shape=(packed.rows, width))
    floats = words[:, : 1 + packed.dense].view(np.float32)
    return Rows(floats[:, 1:], words[:, 1 + packed.dense :], floats[:, 0])
