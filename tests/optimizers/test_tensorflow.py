"""Row updates on TensorFlow."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlet_tf.optimizers

if keras.backend.backend() != "tensorflow":
    pytest.skip("row updates need TensorFlow", allow_module_level=True)

import tensorflow as tf

RULES = ["SparseSGD", "SparseAdagrad", "RowWiseAdagrad", "LazyAdam"]


def make(rule, **kwargs):
    return getattr(mlet_tf.optimizers, rule)(0.1, **kwargs)


def slices(ids, values, rows):
    return tf.IndexedSlices(tf.constant(values), tf.constant(ids), tf.constant([rows, values.shape[1]]))


def summed(ids, values, rows):
    dense = np.zeros((rows, values.shape[1]), "float32")
    np.add.at(dense, ids, values)
    return dense


@settings(max_examples=15)
@given(
    rows=st.integers(1, 12),
    width=st.integers(1, 5),
    seed=st.integers(0, 2**31),
    count=st.integers(1, 30),
    options=st.sampled_from([{}, {"weight_decay": 0.1}, {"l2": 0.01}, {"weight_decay": 0.1, "l2": 0.01}]),
    compiled=st.booleans(),
)
@pytest.mark.parametrize("rule", RULES)
def test_touched_rows_follow_the_definition_and_the_others_stay(
    rule, rows, width, seed, count, options, compiled, reference
):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(rows, width)).astype("float32")
    variable = keras.Variable(weights, name="table")
    expected = reference(rule, weights, decay=options.get("weight_decay", 0), l2=options.get("l2", 0))
    optimizer = make(rule, **options)
    optimizer.build([variable])
    seen = np.zeros(rows, bool)
    # Compiling takes seconds: only on some examples, and with XLA only in the test below.
    step = tf.function(lambda g: optimizer.apply([g], [variable])) if compiled else optimizer.apply
    for _ in range(2):
        ids = rng.integers(0, rows, count)
        values = rng.normal(size=(count, width)).astype("float32")
        gradient = slices(ids, values, rows)
        step(gradient if compiled else [gradient])
        touched = np.isin(np.arange(rows), ids)
        expected.update(summed(ids, values, rows), touched)
        seen |= touched
    np.testing.assert_array_equal(variable.numpy()[~seen], weights[~seen])
    optimizer.finalize_variable_values([variable])
    np.testing.assert_allclose(variable.numpy(), expected.w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "l2": 0.01}])
def test_xla_gives_the_same_rows(rule, options):
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(9, 4)).astype("float32")
    gradient = slices(rng.integers(0, 9, 20), rng.normal(size=(20, 4)).astype("float32"), 9)
    results = []
    for jit_compile in (False, True):
        variable = keras.Variable(weights, name="table")
        optimizer = make(rule, **options)
        optimizer.build([variable])
        step = tf.function(lambda g: optimizer.apply([g]), jit_compile=jit_compile)  # noqa: B023
        step(gradient)
        step(gradient)
        results.append(variable.numpy())
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_the_graph_never_reads_a_table_whole(rule):
    variable = keras.Variable(np.ones((9, 4), "float32"), name="table")
    optimizer = make(rule, weight_decay=0.1, l2=0.1, global_clipnorm=1.0)
    optimizer.build([variable])
    gradient = slices([1, 1, 2], np.ones((3, 4), "float32"), 9)
    graph = tf.function(lambda g: optimizer.apply([g], [variable])).get_concrete_function(gradient).graph
    reads = [op.outputs[0].shape for op in graph.get_operations() if op.type == "ReadVariableOp"]
    assert all(shape.rank == 0 for shape in reads), reads


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_sums_repeated_rows_first(rule, clip, reference):
    rng = np.random.default_rng(4)
    ids, values = rng.integers(0, 6, 15), rng.normal(size=(15, 3)).astype("float32")
    kernel_gradient = rng.normal(size=(2, 2)).astype("float32")
    total = summed(ids, values, 6)
    norms = [np.linalg.norm(total), np.linalg.norm(kernel_gradient)]
    factor = {"clipnorm": 0.5 / norms[0], "global_clipnorm": 0.5 / np.linalg.norm(norms)}.get(clip)
    clipped = np.clip(total, -0.5, 0.5) if factor is None else total * factor
    table = keras.Variable(np.ones((6, 3), "float32"), name="table")
    kernel = keras.Variable(np.ones((2, 2), "float32"), name="kernel")
    make(rule, **{clip: 0.5}).apply([slices(ids, values, 6), tf.constant(kernel_gradient)], [table, kernel])
    expected = reference(rule, np.ones((6, 3), "float32"))
    expected.update(clipped)
    np.testing.assert_allclose(table.numpy(), expected.w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("uses", [1, 2])
def test_a_promise_of_unique_rows_holds_for_one_use_only(uses, reference):
    """A layer that is called twice gets the slices of both calls, in which rows repeat."""
    table = keras.Variable(np.ones((5, 2), "float32"), name="table")
    table.mlet_unique_slices = True
    optimizer = make("SparseAdagrad")
    optimizer.build([table])

    @tf.function
    def step(rows):
        with tf.GradientTape() as tape:
            loss = sum(tf.reduce_sum(tf.gather(table.value, rows)) for _ in range(uses))
        optimizer.apply([tape.gradient(loss, table.value)], [table])

    step(tf.constant([0, 3]))
    expected = reference("SparseAdagrad", np.ones((5, 2)))
    expected.update(uses * np.isin(np.arange(5), [0, 3])[:, None] * np.ones((5, 2)))
    np.testing.assert_allclose(table.numpy(), expected.w, rtol=1e-5)


@pytest.mark.parametrize("scaled", ["factor", "wrapper"])
def test_loss_scaling_cancels(rule, scaled):
    def run(scale):
        table, kernel, idle = (
            keras.Variable(np.ones((5, 2), "float32"), name=n) for n in ("table", "kernel", "idle")
        )
        optimizer = make(rule, loss_scale_factor=8.0 if scale and scaled == "factor" else None)
        if scale and scaled == "wrapper":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
        optimizer.build([table, kernel, idle])
        factor = 8.0 if scale else 1.0
        values = factor * np.array([[1, 2], [3, 4], [5, 6]], "float32")
        dense = factor * np.arange(10, dtype="float32").reshape(5, 2)

        @tf.function
        def step():
            gradients = [slices([0, 2, 0], values, 5), tf.constant(dense), None]
            optimizer.apply_gradients(zip(gradients, [table, kernel, idle], strict=True))

        step()
        assert (idle.numpy() == 1).all()
        return np.stack([table.numpy(), kernel.numpy()])

    np.testing.assert_allclose(run(True), run(False), rtol=1e-6)


def _table_steps(rule, gradients, **options):
    """Trains a table on some gradients; returns it after each step and once Keras has finished."""
    table = keras.Variable(np.ones((6, 2), "float32"), name="table")
    optimizer = make(rule, **options)
    optimizer.build([table])
    step = tf.function(lambda g: optimizer.apply([g], [table]))
    after = []
    for gradient in gradients:
        step(gradient)
        after.append(table.numpy())
    optimizer.finalize_variable_values([table])
    return [*after, table.numpy()]


def _some_slices(count):
    rng = np.random.default_rng(7)
    return [slices(rng.integers(0, 5, 4), rng.normal(size=(4, 2)).astype("float32"), 6) for _ in range(count)]


def test_average_of_the_weights_follows_the_definition(rule):
    gradients = _some_slices(3)
    *steps, _ = _table_steps(rule, gradients)
    average = steps[0]
    for weights in steps[1:]:
        average = 0.75 * average + 0.25 * weights
    averaged = _table_steps(rule, gradients, use_ema=True, ema_momentum=0.75)[-1]
    np.testing.assert_allclose(averaged, average, rtol=1e-5)
    assert np.abs(averaged - steps[-1]).max() > 1e-3


def test_accumulated_gradients_make_one_step_of_their_mean(rule):
    gradients = _some_slices(4)
    accumulated = _table_steps(rule, gradients, gradient_accumulation_steps=2)
    dense = [tf.convert_to_tensor(g) for g in gradients]
    expected = _table_steps(rule, [(dense[0] + dense[1]) / 2, (dense[2] + dense[3]) / 2])
    np.testing.assert_array_equal(accumulated[0], np.ones((6, 2)))
    np.testing.assert_allclose(accumulated[1], expected[0], rtol=1e-5)
    np.testing.assert_allclose(accumulated[3], expected[1], rtol=1e-5)


def test_steps_per_execution_and_schedules_change_nothing(rule):
    rng = np.random.default_rng(5)
    ids, labels = rng.integers(0, 30, (64, 2)), rng.integers(0, 2, (64, 1)).astype("float32")

    def train(steps):
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
        inputs = keras.Input((2,), dtype="int32")
        embedded = keras.layers.Embedding(30, 4, embeddings_initializer="ones")(inputs)
        outputs = keras.layers.Dense(1, "sigmoid", kernel_initializer="ones")(
            keras.layers.Flatten()(embedded)
        )
        model = keras.Model(inputs, outputs)
        optimizer = getattr(mlet_tf.optimizers, rule)(schedule)
        model.compile(optimizer, "binary_crossentropy", jit_compile=False, steps_per_execution=steps)
        model.fit(ids, labels, batch_size=8, shuffle=False, verbose=0)
        return model.get_weights()

    for a, b in zip(train(1), train(4), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_two_replicas_train_like_one_device(tmp_path):
    script = textwrap.dedent(
        """
        import sys
        import keras, numpy as np, tensorflow as tf
        import mlet_tf.optimizers as o

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        rng = np.random.default_rng(0)
        ids, labels = rng.integers(0, 12, (64, 2)), rng.integers(0, 2, (64, 1)).astype("float32")

        class PromisedEmbedding(keras.layers.Embedding):
            def call(self, inputs):
                unique, where = tf.unique(tf.reshape(inputs, [-1]))
                self._embeddings.mlet_unique_slices = True
                rows = tf.gather(self._embeddings.value, unique)
                return tf.reshape(tf.gather(rows, where), [-1, 2, 4])

        def train(strategy, optimizer):
            with strategy.scope():
                inputs = keras.Input((2,), dtype="int32")
                x = PromisedEmbedding(12, 4, embeddings_initializer="ones")(inputs)
                y = keras.layers.Dense(1, "sigmoid", kernel_initializer="ones")(keras.layers.Flatten()(x))
                model = keras.Model(inputs, y)
                model.compile(optimizer(), "binary_crossentropy", jit_compile=False)
            data = tf.data.Dataset.from_tensor_slices((ids, labels)).batch(16)
            model.fit(data, epochs=2, verbose=0)
            return model.get_weights()

        makers = [
            lambda: o.SparseSGD(0.1, weight_decay=0.1), lambda: o.SparseAdagrad(0.1), lambda: o.LazyAdam(0.01),
            lambda: o.split_optimizer(tables=o.RowWiseAdagrad(0.1, l2=0.01), dense=o.SparseAdagrad(0.1)),
        ]
        # One for all: with a fourth instance in a process TensorFlow mixes up the keys of its collectives.
        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        for make in makers:
            one = train(tf.distribute.get_strategy(), make)
            two = train(mirrored, make)
            for a, b in zip(one, two):
                np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
        print("equal")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")


def test_checkpoint_holds_the_state_of_every_part(tmp_path):
    o = mlet_tf.optimizers
    variables = [keras.Variable(np.ones((3, 2), "float32"), name=name) for name in ("table", "kernel")]

    def optimizer():
        made = o.split_optimizer(tables=o.RowWiseAdagrad(0.1), dense=o.SparseAdagrad(0.1))
        made.build(variables)
        return made

    trained, fresh = optimizer(), optimizer()
    trained.apply([tf.fill((3, 2), 2.0), tf.fill((3, 2), 3.0)], variables)
    path = tf.train.Checkpoint(optimizer=trained).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(optimizer=fresh).read(path).assert_consumed()
    for a, b in zip(trained.variables, fresh.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
