"""Collapse: from a model trained with factorised tables to the model that is served."""

import warnings
from collections.abc import Iterator
from typing import TypedDict

import keras
import numpy as np
from keras import ops

from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection, MLETEmbedding
from mlet_tf.layers.factorization import BLOCK_ROWS, Factorization, entropy_rank
from mlet_tf.replace import call_model, layers_of, replace_layers
from mlet_tf.types import Inputs, Tensor

_PROBE_ROWS = 64


class TableReport(TypedDict):
    """What the collapse of a table saves and costs.

    Attributes:
        name: Name of the table.
        rows: `V`.
        hidden_dim: `k`, None for direct tables.
        output_dim: `d`.
        bytes_before: Bytes of the factors; a table in several reports counts in the first.
        bytes_after: Bytes of the collapsed table.
        max_abs_difference: Between the collapsed rows and a float64 product, over all rows.
        effective_rank: Of the collapsed table.
        singular_values: Of the collapsed table, largest first.
        optimizer_bytes: The optimizer's state for the rows of the table, which the collapse drops; 0 if the model is
            not compiled.
    """

    name: str
    rows: int
    hidden_dim: int | None
    output_dim: int
    bytes_before: int
    bytes_after: int
    max_abs_difference: float
    effective_rank: float
    singular_values: list[float]
    optimizer_bytes: int


def collapse_model(
    model: keras.Model,
    inputs: Inputs | None = None,
    *,
    block_rows: int = BLOCK_ROWS,
    tolerance: float | None = None,
) -> keras.Model:
    """Returns an equivalent model without factors.

    Each `MLETEmbedding` becomes a `keras.layers.Embedding` and each `EmbeddingCollection` one of direct tables,
    wherever they are in the model (see `replace_layers`). The trained model is not changed. The result is not
    compiled.

    Effective tables are computed and written in blocks of rows. Afterwards every embedding is compared on random ids,
    and the two models on `inputs` or, without any, on made-up inputs if there are some that give numbers.

    Args:
        model: The trained model. Subclassed models and layers need a `get_config()` from which they can be rebuilt,
            as for saving.
        inputs: Inputs to compare the two models on, as for `model(inputs)`; a tuple or dict of arguments if the
            model's `call` needs several. A subclassed model that cannot be built from shapes is built on them.
        block_rows: Rows of `E` that are computed at once.
        tolerance: Largest difference allowed, relative to the largest output; None means 1e-5, or 0.05 if a layer
            computes in half precision.

    Returns:
        The collapsed model.

    Raises:
        InputError: A table has weights that are not finite (the message names it), or the model gives NaN for
            `inputs`.
        ValueError: The model cannot be rebuilt from its configuration, or its outputs differ.

    Example:
        >>> served = collapse_model(model)
        >>> served.save("served.keras")
    """
    pairs = []

    def collapsed_layer(layer: keras.layers.Layer) -> keras.layers.Layer | None:
        if not isinstance(layer, MLETEmbedding | EmbeddingCollection):
            return None
        pairs.append((layer, layer.collapse(block_rows)))
        return pairs[-1][1]

    collapsed = replace_layers(model, collapsed_layer, inputs)
    for trained, plain in pairs:
        _warn_if_larger(trained)
        _check_equal(trained, plain, _random_ids(trained), tolerance)
    inputs = _made_up_inputs(model) if inputs is None else inputs
    if inputs is not None:
        _check_equal(model, collapsed, inputs, tolerance)
    return collapsed


def collapse_report(model: keras.Model, *, block_rows: int = BLOCK_ROWS) -> list[TableReport]:
    """Reports what the collapse of each table saves and costs.

    Args:
        model: The trained model, not collapsed.
        block_rows: Rows that are read at once.

    Returns:
        A report for each table.

    Raises:
        InputError: A table has weights that are not finite.
    """
    records, seen = [], set()
    for factorization in _factorizations(model):
        key = (id(factorization.table), factorization.offset)
        optimizer_bytes = 0 if key in seen else _optimizer_bytes(model, factorization)
        records.append(_record(factorization, key not in seen, optimizer_bytes, block_rows))
        seen.add(key)
    return records


def _optimizer_bytes(model: keras.Model, factorization: Factorization) -> int:
    """Bytes of the optimizer's state for the rows of one table; several tables may share a variable."""
    if not model.compiled:
        return 0
    table = factorization.table
    prefix = f"{table.path.replace('/', '_')}_"  # Keras names an optimizer's variables after the model's.
    slots = [slot for slot in model.optimizer.variables if slot.name.startswith(prefix)]
    size = sum(int(np.prod(slot.shape)) * np.dtype(slot.dtype).itemsize for slot in slots)
    return size * factorization.rows // table.shape[0]


def _record(
    factorization: Factorization, counts_table: bool, optimizer_bytes: int, block_rows: int
) -> TableReport:
    size = np.dtype(factorization.table.dtype).itemsize if factorization.table.dtype != "bfloat16" else 2
    before = sum(projection.size for projection in factorization.projections)
    if counts_table:
        before += factorization.rows * factorization.table.shape[1]
    values = factorization.singular_values()
    return {
        "name": factorization.name,
        "rows": factorization.rows,
        "hidden_dim": factorization.hidden_dim,
        "output_dim": factorization.output_dim,
        "bytes_before": before * size,
        "bytes_after": factorization.rows * factorization.output_dim * size,
        "max_abs_difference": _max_abs_difference(factorization, block_rows),
        "effective_rank": entropy_rank(values),
        "singular_values": values.tolist(),
        "optimizer_bytes": optimizer_bytes,
    }


def _max_abs_difference(factorization: Factorization, block_rows: int) -> float:
    """Compares with a product in float64, multiplied in the other order."""
    largest = 0.0
    blocks = factorization.iter_effective_table(block_rows)
    for effective, rows in zip(blocks, factorization.iter_table(block_rows), strict=True):
        exact = rows.astype("float64")
        for projection in factorization.projections:
            exact = exact @ projection.astype("float64")
        largest = max(largest, float(np.abs(effective - exact).max()))
    return largest


def _factorizations(model: keras.Model) -> Iterator[Factorization]:
    for layer in layers_of(model):
        if isinstance(layer, MLETEmbedding):
            yield layer.factorization()
        elif isinstance(layer, EmbeddingCollection):
            yield from layer.factorizations()


def _warn_if_larger(layer: MLETEmbedding | EmbeddingCollection) -> None:
    factorizations = [layer.factorization()] if isinstance(layer, MLETEmbedding) else layer.factorizations()
    for factorization in factorizations:
        if factorization.hidden_dim is not None and factorization.hidden_dim < factorization.output_dim:
            warnings.warn(
                f"Table {factorization.name} grows when it is collapsed: its hidden dimension is "
                f"{factorization.hidden_dim}, its embedding dimension {factorization.output_dim}",
                stacklevel=3,
            )


def _random_ids(layer: MLETEmbedding | EmbeddingCollection) -> np.ndarray:
    generator = np.random.default_rng(0)
    if isinstance(layer, MLETEmbedding):
        return generator.integers(0, layer.input_dim, _PROBE_ROWS)
    return generator.integers(0, [f.input_dim for f in layer.features], (_PROBE_ROWS, len(layer.features)))


def _made_up_inputs(model: keras.Model) -> Inputs | None:
    """Makes up inputs for which the model gives numbers; None if that fails."""
    make_up = getattr(model, "random_inputs", lambda rows: _random_inputs(model))
    try:
        inputs = make_up(_PROBE_ROWS)
        outputs = [] if inputs is None else keras.tree.flatten(model(inputs))
        numbers = not any(np.isnan(_as_float32(output)).any() for output in outputs)
    except Exception:  # A model may refuse made-up inputs in any way.
        return None
    return inputs if numbers else None


def _random_inputs(model: keras.Model) -> Inputs | None:
    """Makes up inputs from their shapes; None if their dtypes or the range of ids cannot be known."""
    try:
        specs = model.input
    except (AttributeError, ValueError):  # Neither functional nor a built Sequential model.
        return None
    layers = layers_of(model)
    limits = [x.input_dim for x in layers if isinstance(x, MLETEmbedding | keras.layers.Embedding)]
    limits += [f.input_dim for x in layers if isinstance(x, EmbeddingCollection) for f in x.features]
    if any(spec.dtype == "string" or None in spec.shape[1:] for spec in keras.tree.flatten(specs)):
        return None
    generator = np.random.default_rng(0)

    def make_up(spec: keras.KerasTensor) -> Tensor:
        shape = (_PROBE_ROWS, *spec.shape[1:])
        # Ids that every table has also work if a model takes them as floats.
        ids = generator.integers(0, min(limits, default=2), shape)
        return ops.convert_to_tensor(ids, spec.dtype)

    return keras.tree.map_structure(make_up, specs)


def _check_equal(
    trained: keras.layers.Layer, plain: keras.layers.Layer, inputs: Inputs, tolerance: float | None
) -> None:
    expected = keras.tree.flatten(call_model(trained, inputs))
    received = keras.tree.flatten(call_model(plain, inputs))
    half = any(layer.compute_dtype in ("float16", "bfloat16") for layer in layers_of(trained))
    allowed = tolerance if tolerance is not None else 0.05 if half else 1e-5
    for one, other in zip(expected, received, strict=True):
        before, after = _as_float32(one), _as_float32(other)
        if np.isnan(before).any():
            raise InputError(f"Outputs of '{trained.name}': expected numbers. Received: NaN")
        with np.errstate(invalid="ignore"):  # Infinity minus infinity, as in masked outputs.
            difference = np.where(before == after, 0, np.abs(before - after)).max(initial=0.0)
        scale = np.abs(before[np.isfinite(before)]).max(initial=0.0)
        if not difference <= allowed * scale:
            raise ValueError(
                f"`collapse_model` should change the outputs of '{trained.name}' by at most {allowed:g} of "
                f"their largest value {scale:g}. Received: a difference of {difference:g}"
            )


def _as_float32(tensor: Tensor) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))
