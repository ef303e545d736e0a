"""A finished pipeline run, opened to score its model on its evaluation rows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mlet_tf.collapse import collapse_model
from mlet_tf.config import load_config
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.embeddings.nested import NestedEmbeddings
from mlet_tf.experiments.tables import embedding_collection
from mlet_tf.export import load_keras_model
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.features.packing import pack_examples
from mlet_tf.features.transform_graph import TransformGraph
from mlet_tf.metrics import auc
from mlet_tf.models import DLRM
from mlet_tf.run_file import read_run_file
from mlet_tf.storage import join
from mlet_tf.training.evaluation import Predictor


@dataclasses.dataclass(frozen=True)
class Run:
    """What truncation needs of a run.

    Attributes:
        model: The trained model, collapsed.
        nested: Whether leading columns were trained to be usable alone.
        schema: Schema of the log.
        transform: The transform graph.
        rows: The evaluation rows.
        counts: How often each id of each feature occurs in `train`.
    """

    model: DLRM
    nested: bool
    schema: ClickLogSchema
    transform: TransformGraph
    rows: PackedRows
    counts: tuple[np.ndarray, ...]

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.model)

    def score(self) -> tuple[float, float]:
        """AUC of the model on even and on odd evaluation rows."""
        label, ctr = self.rows.label, self._predictor(self.rows)
        return auc(label[::2], ctr[::2]), auc(label[1::2], ctr[1::2])


@contextlib.contextmanager
def load_run(folder: Path, note: Callable[[str], None]) -> Iterator[Run]:
    """Opens a run; its preprocessed rows are in a temporary folder until the context ends.

    Args:
        folder: Output folder of the run.
        note: Called with a line about each step.

    Raises:
        InputError: If there is no complete run in the folder.
    """
    artifacts = read_run_file(folder)["artifacts"]
    schema = load_config(folder / "config.yaml").schema
    transform = TransformGraph(artifacts["transform_graph"])
    trained = load_keras_model(artifacts["uncollapsed_model"])
    nested = any(isinstance(layer, NestedEmbeddings) for layer in trained._flatten_layers())
    model = collapse_model(trained)
    sizes = tuple(feature.input_dim for feature in embedding_collection(model).features)
    with tempfile.TemporaryDirectory() as temporary:
        packed = {}
        for split in ("train", "eval"):
            note(f"preprocessing {split}")
            patterns = [join(artifacts["examples"], f"Split-{split}", "*")]
            packed[split] = pack_examples(patterns, schema, transform, Path(temporary) / split)
        yield Run(model, nested, schema, transform, packed["eval"], packed["train"].id_counts(sizes))
