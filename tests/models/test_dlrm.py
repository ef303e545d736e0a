import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("tensorflow-recommenders runs on TensorFlow", allow_module_level=True)

import tensorflow as tf
import tensorflow_recommenders as tfrs

from mlet_tf.collapse import collapse_model
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding
from mlet_tf.models import DLRM, build_dlrm
from mlet_tf.optimizers import LazyAdam, RowWiseAdagrad, SparseAdagrad, SparseSGD, split_optimizer

ROWS = [300, 12, 50, 3]
FEATURES = [EmbeddingFeature(f"c{i}", rows) for i, rows in enumerate(ROWS)]


def small_dlrm(**kwargs):
    keras.utils.set_random_seed(0)
    arguments = {"num_dense": 3, "output_dim": 4, "hidden_dim": 8, "bottom_units": (8,), "top_units": (8,)}
    return build_dlrm(features=FEATURES, **{**arguments, **kwargs})


@pytest.fixture(scope="module")
def log():
    """Inputs and labels which depend on both kinds of features."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(1024, 3)).astype("float32")
    ids = rng.integers(0, ROWS, (1024, 4))
    score = rng.normal(size=300)[ids[:, 0]] + rng.normal(size=12)[ids[:, 1]] + dense[:, 0]
    return {"dense_features": dense, "sparse_features": ids}, (score > 0).astype("float32")


def first(inputs, rows):
    return {name: value[:rows] for name, value in inputs.items()}


def weights(model):
    return [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]


@pytest.mark.parametrize(
    ("model_options", "compile_options", "optimizer"),
    [
        ({}, {}, lambda: keras.optimizers.Adam(0.02)),
        ({"hidden_dim": None}, {}, lambda: SparseAdagrad(0.2)),
        ({"dtype": "mixed_bfloat16"}, {"steps_per_execution": 4}, lambda: SparseAdagrad(0.2)),
        ({"dtype": "mixed_float16"}, {}, lambda: SparseAdagrad(0.2)),
        ({"hidden_dim": (8, 6)}, {"run_eagerly": True}, lambda: keras.optimizers.Adagrad(0.2)),
        (
            {"jit_compile_dense": True},
            {},
            lambda: split_optimizer(tables=RowWiseAdagrad(0.3), projections=SparseAdagrad(0.1), dense="adam"),
        ),
    ],
)
def test_trains(log, model_options, compile_options, optimizer):
    model = small_dlrm(**model_options)
    before = weights(model)
    model.compile(optimizer(), **compile_options)
    history = model.fit(*log, batch_size=128, epochs=4, verbose=0).history
    for old, variable in zip(before, model.trainable_variables, strict=True):
        assert np.abs(keras.ops.convert_to_numpy(variable) - old).max() > 0, variable.path
    assert history["loss"][-1] < 0.95 * history["loss"][0]
    metrics = model.evaluate(*log, batch_size=128, verbose=0, return_dict=True)
    assert metrics["auc"] > 0.7
    assert metrics["loss"] == pytest.approx(metrics["logloss"], rel=1e-3)


@pytest.mark.parametrize(
    ("model_options", "compile_options"),
    [({"jit_compile_dense": True}, {}), ({}, {"steps_per_execution": 4}), ({"deduplicate": False}, {})],
)
def test_ways_to_run_do_not_change_the_result(log, model_options, compile_options):
    def trained(options, **kwargs):
        model = small_dlrm(**options)
        model.compile(SparseAdagrad(0.1), **kwargs)
        model.fit(*log, batch_size=256, shuffle=False, verbose=0)
        return weights(model)

    for one, other in zip(trained({}), trained(model_options, **compile_options), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("dot_skip", [False, True])
def test_outputs_are_those_of_the_formula(log, dot_skip):
    model = small_dlrm(dot_skip=dot_skip)
    inputs = first(log[0], 20)
    bottom_1, bottom_2 = (layer.get_weights() for layer in model._bottom_stack.layers)
    top = model._top_stack.get_weights()
    skip = top.pop(0) if dot_skip else np.zeros((10, 1))
    x = np.maximum(inputs["dense_features"] @ bottom_1[0] + bottom_1[1], 0)
    x = np.maximum(x @ bottom_2[0] + bottom_2[1], 0)
    collection = model._embedding_layer
    vectors = [
        collection.effective_table(f.name)[inputs["sparse_features"][:, i]] for i, f in enumerate(FEATURES)
    ]
    vectors.append(x)
    pairs = [(vectors[i] * vectors[j]).sum(1) for i in range(5) for j in range(i)]
    hidden = np.maximum(np.concatenate([x, np.stack(pairs, 1)], 1) @ top[0] + top[1], 0)
    expected = 1 / (1 + np.exp(-(hidden @ top[2] + top[3] + np.stack(pairs, 1) @ skip)[:, 0]))
    np.testing.assert_allclose(model(inputs), expected, atol=1e-6)
    for rows in (0, 1):
        np.testing.assert_allclose(model(first(inputs, rows)), expected[:rows], atol=1e-6)
        assert model(first(inputs, rows)).shape == (rows,)


def test_logit_starts_with_the_mean_of_the_dot_products():
    np.testing.assert_allclose(small_dlrm()._top_stack.get_weights()[0], np.full((10, 1), 0.1), rtol=1e-6)


@pytest.mark.parametrize("hidden_dim", [None, 64])
def test_ids_alone_are_learned(hidden_dim):
    """Rows as small as those of large tables: without the linear path this model stays a constant."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 400, 40_000), rng.integers(0, 400, 40_000)
    tastes, kinds = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    label = ((tastes[users] * kinds[items]).sum(1) > 0).astype("float32")
    inputs = {
        "dense_features": np.zeros((40_000, 0), "float32"),
        "sparse_features": np.stack([users, items], 1),
    }
    rule = {"initial_accumulator_value": 0.25 / 256**2}

    def auc(dot_skip):
        keras.utils.set_random_seed(0)
        features = [EmbeddingFeature(name, 400) for name in "ab"]
        options = {"initialization": "orthogonal", "initial_scale": 0.1, "dot_skip": dot_skip}
        model = build_dlrm(0, features, 8, hidden_dim, (64,), (64, 32), **options)
        tables, projections = SparseAdagrad(0.1, **rule), SparseAdagrad(0.04, **rule)
        model.compile(split_optimizer(tables=tables, projections=projections, dense=LazyAdam(0.002)))
        model.fit(inputs, label, batch_size=256, epochs=2, verbose=0)
        return model.evaluate(inputs, label, batch_size=4096, verbose=0, return_dict=True)["auc"]

    assert auc(dot_skip=True) > 0.9
    assert auc(dot_skip=False) < 0.6


def test_file_restores_model_and_optimizer(log, tmp_path):
    task = tfrs.tasks.Ranking(
        loss=keras.losses.BinaryFocalCrossentropy(gamma=1.5), metrics=[keras.metrics.AUC(50, name="coarse")]
    )
    model = small_dlrm(task=task)
    model.compile(
        split_optimizer(tables=RowWiseAdagrad(0.1), dense=keras.optimizers.Adam(0.01)), steps_per_execution=2
    )
    model.fit(*log, batch_size=128, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    one, other = loaded.get_config(), model.get_config()
    assert one["task"] == other["task"]
    assert one["embedding_layer"]["config"] == other["embedding_layer"]["config"]
    assert loaded.steps_per_execution == 2
    for each in (model, loaded):
        each.fit(*log, batch_size=128, shuffle=False, verbose=0)
    for one, other in zip(weights(model), weights(loaded), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    expected = model.evaluate(*log, verbose=0, return_dict=True)
    received = loaded.evaluate(*log, verbose=0, return_dict=True)
    assert set(received) == {"loss", "coarse"}
    assert received == pytest.approx(expected, abs=1e-5)


def test_checkpoint_restores_every_variable(log, tmp_path):
    def compiled():
        model = small_dlrm(hidden_dim=(8, 6))
        model.compile(SparseAdagrad(0.1))
        model.optimizer.build(model.trainable_variables)
        return model, tf.train.Checkpoint(model=model, optimizer=model.optimizer)

    model, checkpoint = compiled()
    model.fit(*log, verbose=0)
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    other, restored = compiled()
    restored.restore(path).assert_existing_objects_matched()
    values = [(v.path, v.numpy()) for v in model.trainable_variables + model.optimizer.variables]
    new = [v.numpy() for v in other.trainable_variables + other.optimizer.variables]
    for (name, value), received in zip(values, new, strict=True):
        np.testing.assert_array_equal(value, received, err_msg=name)


def test_saved_model_inside_a_module(log, tmp_path):
    """TensorFlow traces a model that a module holds with float inputs, so ids arrive as floats there."""

    class Server(tf.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        @tf.function(input_signature=[tf.TensorSpec((None, 3)), tf.TensorSpec((None, 4), tf.int64)])
        def predict(self, dense, ids):
            return self.model({"dense_features": dense, "sparse_features": ids})

    model = small_dlrm()
    tf.saved_model.save(Server(model), str(tmp_path / "module"))
    loaded = tf.saved_model.load(str(tmp_path / "module"))
    inputs = first(log[0], 9)
    received = loaded.predict(inputs["dense_features"], inputs["sparse_features"])
    np.testing.assert_allclose(received, model(inputs), atol=1e-6)


def test_collapsed_model_predicts_the_same_and_trains_on(log):
    model = small_dlrm()
    model.compile(SparseAdagrad(0.1))
    model.fit(*log, batch_size=128, verbose=0)
    before = weights(model)
    collapsed = collapse_model(model)
    assert isinstance(collapsed, DLRM)
    inputs = log[0]
    np.testing.assert_allclose(collapsed(inputs), model(inputs), atol=1e-6)
    assert [v.shape[-1] for v in collapsed.embedding_trainable_variables] == [4]
    collapsed.compile(SparseSGD(0.1))
    collapsed.fit(*log, verbose=0)
    for old, new in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(old, new)


def test_sample_weights_select_rows(log):
    inputs, labels = log
    model = small_dlrm()
    model.compile(SparseSGD(0.1))
    selected = np.arange(1024) % 3 == 0
    all_rows = model.compute_loss((inputs, labels, selected.astype("float32")))
    kept = {name: value[selected] for name, value in inputs.items()}
    some_rows = model.compute_loss((kept, labels[selected]))
    assert float(all_rows) * 1024 == pytest.approx(float(some_rows) * selected.sum(), rel=1e-4)


def test_parts_of_tensorflow_recommenders_fit(log):
    class Separate(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.embeddings = [keras.layers.Embedding(rows, 4) for rows in ROWS]

        def call(self, ids):
            return {f"c{i}": layer(ids[:, i : i + 1]) for i, layer in enumerate(self.embeddings)}

    model = DLRM(
        embedding_layer=Separate(),
        bottom_stack=tfrs.layers.blocks.MLP([8, 4], final_activation="relu"),
        feature_interaction=tfrs.layers.feature_interaction.DotInteraction(),
        top_stack=tfrs.layers.blocks.MLP([8, 1], final_activation="sigmoid"),
    )
    model.compile(keras.optimizers.Adagrad(0.1))
    history = model.fit(*log, batch_size=128, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert model(first(log[0], 1)).shape == (1,)


def test_single_embeddings_are_collapsed(log):
    class Separate(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.parts = [MLETEmbedding(rows, 4, 6) for rows in ROWS]

        def call(self, ids):
            return [layer(ids[:, i]) for i, layer in enumerate(self.parts)]

    for embeddings in (Separate(), MLETEmbedding(300, 4, 8)):
        model = DLRM(embeddings, bottom_stack=keras.Sequential([keras.layers.Dense(4, "relu")]))
        expected = model(log[0])
        assert model.random_inputs(3) is None
        for inputs in (None, first(log[0], 9)):
            collapsed = collapse_model(model, inputs)
            np.testing.assert_allclose(collapsed(log[0]), expected, atol=1e-6)
            assert not any(isinstance(layer, MLETEmbedding) for layer in collapsed._flatten_layers())


def test_no_dense_features(log):
    model = small_dlrm(num_dense=0)
    inputs = {**log[0], "dense_features": np.zeros((1024, 0), "float32")}
    model.compile(SparseAdagrad(0.2))
    history = model.fit(inputs, log[1], batch_size=128, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert collapse_model(model)(first(inputs, 1)).shape == (1,)


def test_multi_valued_features_as_a_dict():
    features = [EmbeddingFeature("site", 30), EmbeddingFeature("tags", 20, combiner="mean")]
    model = DLRM(
        EmbeddingCollection(features, 4, 6),
        bottom_stack=keras.Sequential([keras.layers.Dense(4, "relu")]),
    )
    ids = {"site": tf.constant([3, 4]), "tags": tf.ragged.constant([[1, 2], []], dtype=tf.int64)}
    assert model({"dense_features": np.ones((2, 3), "float32"), "sparse_features": ids}).shape == (2,)


def test_no_two_weights_start_equal():
    """With one width everywhere, all matrices have the same shape."""
    model = small_dlrm(num_dense=4, bottom_units=(4, 4), hidden_dim=(4, 4), top_units=(14, 14))
    values = [w for w in map(np.asarray, model.get_weights()) if w.ndim > 1]
    matrices = [m for v in values for m in (v if v.ndim == 3 else [v])]
    shapes = {m.shape for m in matrices}
    assert len(shapes) < len(matrices)
    for shape in shapes:
        alike = {m.tobytes() for m in matrices if m.shape == shape}
        assert len(alike) == len({id(m) for m in matrices if m.shape == shape})


def test_misuse_is_named(log):
    model = small_dlrm()
    with pytest.raises(ValueError, match="`task`"):
        model.compile("adam", loss="binary_crossentropy")
    with pytest.raises(ValueError, match="should have dense_features and sparse_features"):
        model({"dense": log[0]["dense_features"]})


def test_two_replicas_train_as_one_device(tmp_path):
    """In a process of its own, because logical devices are fixed when TensorFlow starts."""
    script = textwrap.dedent("""
        import sys
        import keras, numpy as np, tensorflow as tf
        from mlet_tf.layers import EmbeddingFeature
        from mlet_tf.models import build_dlrm
        from mlet_tf.optimizers import SparseAdagrad

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        rng = np.random.default_rng(0)
        inputs = {
            "dense_features": rng.normal(size=(512, 3)).astype("float32"),
            "sparse_features": rng.integers(0, [50, 9], (512, 2)),
        }
        labels = (rng.random(512) < 0.5).astype("float32")
        results = []
        for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])):
            keras.utils.set_random_seed(0)
            with strategy.scope():
                features = [EmbeddingFeature("a", 50), EmbeddingFeature("b", 9)]
                model = build_dlrm(3, features, 4, 6, (8,), (8,), deduplicate=True)
                model.compile(SparseAdagrad(0.1))
            data = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(64, drop_remainder=True)
            history = model.fit(data, epochs=2, verbose=0).history
            results.append((history["loss"], [np.array(v) for v in model.trainable_variables]))
        (one_loss, one), (two_loss, two) = results
        assert strategy.num_replicas_in_sync == 2
        np.testing.assert_allclose(one_loss, two_loss, rtol=1e-4)
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        print("equal")
    """)
    path = tmp_path / "two_replicas.py"
    path.write_text(script)
    result = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.stdout.strip().endswith("equal"), result.stderr[-3000:]
