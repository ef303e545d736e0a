import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from mlet_tf import collapse_model, collapse_report, quantization_report, quantize_model
from mlet_tf.embeddings import ServedTable
from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding

DTYPES = ("float16", "bfloat16", "int8")
FEATURES = [EmbeddingFeature("site", 4000), EmbeddingFeature("device", 4), EmbeddingFeature("app", 300)]


def functional():
    """A shared and a masked embedding, one in a nested model, and a collection."""
    ids = keras.Input((3,), dtype="int32")
    more = keras.Input((2,), dtype="int64")
    shared = MLETEmbedding(50, 4, 8, name="shared")
    inner_inputs = keras.Input((2,), dtype="int64")
    inner = keras.Model(inner_inputs, MLETEmbedding(40, 2, 5, name="inner")(inner_inputs), name="nested")
    pairs = EmbeddingCollection([EmbeddingFeature("a", 40), EmbeddingFeature("b", 60)], 4, 8, name="pairs")
    flat = keras.layers.Flatten()
    parts = [
        flat(shared(ids)),
        flat(shared(more)),
        flat(inner(more)),
        flat(pairs(more)),
        keras.layers.GlobalAveragePooling1D()(MLETEmbedding(50, 4, 6, mask_zero=True, name="masked")(ids)),
    ]
    x = keras.layers.BatchNormalization()(keras.layers.Concatenate()(parts))
    return keras.Model([ids, more], keras.layers.Dense(1, "sigmoid")(x))


def functional_inputs(rows):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 50, (rows, 3)), rng.integers(0, 40, (rows, 2))]


def sequential():
    layers = [keras.Input((5,), dtype="int32"), MLETEmbedding(20, 4, (6, 5)), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(1)])


def dlrm():
    pytest.importorskip("tensorflow_recommenders")  # Not where the layers run without TensorFlow.
    from mlet_tf.models.dlrm import build_dlrm

    return build_dlrm(3, FEATURES, 8, 64, [8], [8])


MODELS = {
    "functional": (functional, functional_inputs),
    "sequential": (sequential, lambda rows: np.random.default_rng(0).integers(0, 20, (rows, 5))),
    "dlrm": (dlrm, lambda rows: dlrm().random_inputs(rows)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MODELS)
def test_models_of_all_kinds(kind, dtype, tmp_path):
    make, inputs_of = MODELS[kind]
    collapsed = collapse_model(make())
    before = [keras.ops.convert_to_numpy(v) for v in collapsed.weights]
    quantized = quantize_model(collapsed, dtype, block_rows=17)
    assert type(quantized) is type(collapsed) and quantized.name == collapsed.name
    for rows in (0, 1, 50):
        inputs = inputs_of(rows)
        expected, received = (keras.ops.convert_to_numpy(m(inputs)) for m in (collapsed, quantized))
        assert received.shape == expected.shape
        np.testing.assert_allclose(received, expected, atol=2e-3)
    assert np.abs(received - expected).max() > 0
    for variable, value in zip(collapsed.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
    quantized.save(tmp_path / "served.keras")
    loaded = keras.models.load_model(tmp_path / "served.keras")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(loaded(inputs)), received, atol=1e-6)


ROW_BYTES = {"float16": 16, "bfloat16": 16, "float8": 8, "int8": 12, "int4": 8}


@pytest.mark.parametrize("dtype", ROW_BYTES)
def test_report_tells_bytes_and_differences(dtype, tmp_path):
    model = dlrm()
    collapsed = collapse_model(model)
    quantized = quantize_model(collapsed, dtype)
    report = quantization_report(collapsed, quantized, block_rows=100)
    assert {(r["name"], r["rows"]) for r in report} == {
        (r["name"], r["rows"]) for r in collapse_report(model)
    }
    for record in report:
        assert (record["output_dim"], record["table_dtype"]) == (8, dtype)
        assert record["bytes_before"] == record["rows"] * 32
        unit = 4 if dtype == "float8" else 0
        assert record["bytes_after"] == record["rows"] * ROW_BYTES[dtype] + unit
        name = record["name"].split("/")[1]
        tables = [m._embedding_layer.effective_table(name).astype("float64") for m in (collapsed, quantized)]
        assert record["max_abs_difference"] == pytest.approx(np.abs(tables[0] - tables[1]).max(), abs=1e-9)
        assert 0 < record["max_abs_difference"] < 0.07 * np.abs(tables[0]).max()
    # What is told is what is in the file: the tables are most of it.
    quantized.save(tmp_path / "served.keras")
    with zipfile.ZipFile(tmp_path / "served.keras") as archive:
        size = archive.getinfo("model.weights.h5").file_size
    assert 0 < size - sum(r["bytes_after"] for r in report) < 60_000


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a SavedModel")
@pytest.mark.parametrize("dtype", DTYPES)
def test_saved_model_gathers_first_and_widens_then(dtype, tmp_path):
    """Stock operations only, and none that widens a whole table."""
    import tensorflow as tf

    quantized = quantize_model(collapse_model(dlrm()), dtype)
    inputs = quantized.random_inputs(40)
    module = tf.Module()
    module.kept = [variable.value for variable in quantized.variables]
    specs = {
        "dense_features": tf.TensorSpec([None, 3], tf.float32),
        "sparse_features": tf.TensorSpec([None, 3], tf.int64),
    }
    module.serve = tf.function(quantized, input_signature=[specs])
    tf.saved_model.save(module, str(tmp_path / "model"))
    served = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_allclose(served.serve(inputs), quantized(inputs), atol=1e-6)
    size = sum(path.stat().st_size for path in (tmp_path / "model" / "variables").iterdir())
    assert size < 4304 * (12 if dtype == "int8" else 16) + 40_000
    graph = served.serve.concrete_functions[0].graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    narrow = [n for n in nodes if n.op == "ResourceGather" and n.attr["dtype"].type == tf.as_dtype(dtype)]
    assert narrow
    assert not [n for n in nodes if n.op == "ReadVariableOp" and n.attr["dtype"].type == tf.as_dtype(dtype)]


def test_factors_and_quantised_tables_are_refused():
    model = dlrm()
    with pytest.raises(
        InputError, match=r"'embeddings': expected a collapsed model.*a table that is a product"
    ):
        quantize_model(model)
    with pytest.raises(InputError, match=r"expected a collapsed model"):
        quantize_model(sequential())
    quantized = quantize_model(collapse_model(model), "int8")
    with pytest.raises(InputError, match=r"expected trained tables. Received: int8 tables"):
        quantize_model(quantized)
    with pytest.raises(InputError, match=r"expected factorised tables. Received: int8 tables"):
        collapse_model(quantized)
    with pytest.raises(InputError, match=r"expected an embedding table. Received: none"):
        quantize_model(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    with pytest.raises(
        ValueError, match=r"should be one of float16, bfloat16, float8, int8, int4. Received: 'int2'"
    ):
        quantize_model(collapse_model(model), "int2")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(bad):
    collapsed = collapse_model(dlrm())
    table = collapsed._embedding_layer.tables[0]
    values = keras.ops.convert_to_numpy(table).copy()
    values[-1, 3] = bad  # The last row is the last feature's.
    table.assign(values)
    for dtype in DTYPES:
        with pytest.raises(InputError, match=r"embeddings/app.*NaN or infinity"):
            quantize_model(collapsed, dtype)


class MakesItsOwn(keras.Model):
    """Makes its table in its constructor, and reads the whole of it to score all items."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = keras.layers.Embedding(9, 4)

    def call(self, ids):
        return keras.ops.matmul(self.table(ids), keras.ops.transpose(self.table.embeddings))

    def get_config(self):
        return {"name": self.name}


def test_tables_of_constructors_and_tied_weights():
    model, ids = MakesItsOwn(), np.arange(8).reshape(4, 2)
    expected = keras.ops.convert_to_numpy(model(ids))
    quantized = quantize_model(model)
    assert type(quantized.table) is ServedTable
    np.testing.assert_allclose(keras.ops.convert_to_numpy(quantized(ids)), expected, atol=1e-3)
    assert quantization_report(model, quantized)[0]["max_abs_difference"] < 1e-3


def keras_model(change):
    """A table of Keras beside a factorised one and a dense layer, changed and called."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((3,), dtype="int32")
    plain = keras.layers.Embedding(20, 6, name="plain")
    x = keras.layers.Concatenate()([plain(ids), MLETEmbedding(20, 6, 8, name="product")(ids)])
    model = keras.Model(ids, keras.layers.Dense(2, name="top")(x))
    change(model)
    return model, np.arange(15).reshape(5, 3)


def with_lora(model, alpha=None):
    for name in ("plain", "top"):
        layer = model.get_layer(name)
        layer.enable_lora(2, lora_alpha=alpha)
        for variable in layer.variables:
            if "lora" in variable.name:
                values = np.random.default_rng(0).normal(size=variable.shape)
                variable.assign(values.astype("float32"))


def quantised_by_keras(mode):
    def change(model):
        for name in ("plain", "top"):
            model.get_layer(name).quantize(mode)

    return change


def lora_and(mode):
    def change(model):
        with_lora(model)
        quantised_by_keras(mode)(model)

    return change


VARIANTS = {
    "LoRA": with_lora,
    "LoRA, scaled": lambda model: with_lora(model, alpha=5),
    "int8": quantised_by_keras("int8"),
    "int4": quantised_by_keras("int4"),
    "LoRA, int8": lora_and("int8"),
    "LoRA, int4": lora_and("int4"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_keras_own_layers(variant):
    """Collapse keeps them as they are; quantisation multiplies LoRA in, and refuses what Keras has quantised."""
    model, ids = keras_model(VARIANTS[variant])
    expected = keras.ops.convert_to_numpy(model(ids))
    collapsed = collapse_model(model, ids)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(collapsed(ids)), expected, atol=1e-4)
    if "int" in variant:
        with pytest.raises(InputError, match=r"Layer 'plain': expected float tables. Received: int\d tables"):
            quantize_model(collapsed)
        return
    quantized = quantize_model(collapsed)
    largest = np.abs(expected).max()
    received = keras.ops.convert_to_numpy(quantized(ids))
    np.testing.assert_allclose(received, expected, atol=0.02 * largest)
    report = {r["name"]: r for r in quantization_report(collapsed, quantized)}
    assert 0 < report["plain"]["max_abs_difference"] < 0.02 * largest


def test_subclasses_and_tied_layers_of_keras():
    class Doubled(keras.layers.Embedding):
        def call(self, inputs):
            return 2 * super().call(inputs)

    ids = keras.Input((3,), dtype="int32")
    for own in (Doubled(20, 6, name="own"), keras.layers.ReversibleEmbedding(20, 6, name="own")):
        vectors = own(ids) + MLETEmbedding(20, 6, 8)(ids)
        outputs = own(vectors, reverse=True) if not isinstance(own, Doubled) else vectors
        model, values = keras.Model(ids, outputs), np.arange(15).reshape(5, 3)
        collapsed = collapse_model(model, values)
        expected, received = (keras.ops.convert_to_numpy(m(values)) for m in (model, collapsed))
        np.testing.assert_allclose(received, expected, atol=1e-5)
        with pytest.raises(InputError, match=rf"Layer 'own': .* Received: {type(own).__name__}"):
            quantize_model(collapsed)


def test_mixed_precision_policy_is_kept():
    inputs = keras.Input((2,), dtype="int32")
    embedding = keras.layers.Embedding(30, 4, dtype="mixed_bfloat16", name="items")
    quantized = quantize_model(keras.Model(inputs, embedding(inputs)), "int8")
    layer = quantized.get_layer("items")
    assert type(layer) is ServedTable and layer.compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(quantized(np.array([[1, 2]])).dtype) == "bfloat16"


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the command runs on TensorFlow")
def test_command_collapses_and_quantises_a_dlrm_in_a_process_of_its_own(tmp_path):
    model = dlrm()
    model.save(tmp_path / "trained.keras")
    command = [Path(sys.executable).with_name("mlet-tf"), "collapse", tmp_path / "trained.keras"]
    run = subprocess.run(
        [*command, tmp_path / "served.keras", "--table_dtype", "int8"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        "embeddings/site [4,000, 64 -> 8]: 1002.0 KiB -> 125.0 KiB -> 46.9 KiB, int8 rows off by at"
        in run.stdout
    )
    served, inputs = keras.models.load_model(tmp_path / "served.keras"), model.random_inputs(40)
    np.testing.assert_allclose(served(inputs), model(inputs), atol=2e-3)
