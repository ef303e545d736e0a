"""Predictions of several models on the same rows, kept in files, and their metrics by slice."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from mlet_tf.errors import InputError
from mlet_tf.gate import Metrics, Slice
from mlet_tf.metrics import auc_difference, ctr_metrics
from mlet_tf.storage import join, names, open_binary, written_aside

PREDICTIONS = "predictions"  # Folder below an evaluation.

# Names of arrays: the label, then one of each model and one of each slice column.
LABEL, CTR, SLICE = "label", "ctr.", "slice."


def save_predictions(evaluation: str, number: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the predictions of one shard of rows.

    Args:
        evaluation: Folder of the evaluation, with a folder `PREDICTIONS` in it.
        number: Number of the shard.
        arrays: `label`, `ctr.<model>` and `slice.<column>`, each `[N]`.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with written_aside(join(evaluation, PREDICTIONS, f"part-{number:05d}.npz")) as file:
        file.write(buffer.getvalue())


def load_predictions(evaluation: str) -> dict[str, np.ndarray]:
    """All arrays below an evaluation's folder, in the order of the shards; see `save_predictions`.

    Raises:
        InputError: There are none.
    """
    parts = []
    folder = join(evaluation, PREDICTIONS)
    for name in names(folder):
        if not name.endswith(".npz"):  # What a worker that was lost has left unfinished.
            continue
        with open_binary(join(folder, name)) as file, np.load(io.BytesIO(file.read())) as arrays:
            parts.append({key: arrays[key] for key in arrays.files})
    if not parts:
        raise InputError(f"{folder}: expected predictions of evaluation rows. Received: none")
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def slice_metrics(
    arrays: Mapping[str, np.ndarray],
    models: Sequence[str],
    min_rows: int,
    compared: tuple[str, str] | None = None,
) -> dict[str, Metrics]:
    """Metrics by model and slice.

    Args:
        arrays: See `save_predictions`.
        models: Names of the models.
        min_rows: Slices with fewer rows are left out.
        compared: Two of the models, to measure by how much the first one's AUC may differ from the second one's by
            chance.

    Returns:
        The metrics of `ctr_metrics`, `rows` and `clicks`; of the first of `compared` also `auc_drop_error`, see
        `mlet_tf.metrics.auc_difference`.
    """
    slices: dict[Slice, np.ndarray] = {(): np.ones(len(arrays[LABEL]), bool)}
    for name in arrays:
        if name.startswith(SLICE):
            values, counts = np.unique(arrays[name], return_counts=True)
            for value in values[counts >= min_rows]:
                slices[(name.removeprefix(SLICE), str(value))] = arrays[name] == value

    def metrics(model: str, rows: np.ndarray) -> dict[str, float]:
        label, ctr = arrays[LABEL][rows], arrays[f"{CTR}{model}"][rows]
        values = {"rows": len(label), "clicks": int(label.sum()), **ctr_metrics(label, ctr)}
        if compared is not None and model == compared[0]:
            values["auc_drop_error"] = auc_difference(label, ctr, arrays[f"{CTR}{compared[1]}"][rows])[1]
        return values

    return {model: {key: metrics(model, rows) for key, rows in slices.items()} for model in models}
