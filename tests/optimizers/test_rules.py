"""What holds on every Keras backend: the rules on dense gradients, configuration, arguments."""

import keras
import numpy as np
import pytest

import mlet_tf.optimizers
from mlet_tf.layers.roles import mark_tables
from mlet_tf.optimizers import LazyAdam, RowWiseAdagrad, SparseAdagrad, SparseSGD, split_optimizer

RNG = np.random.default_rng(0)


def make(rule, **kwargs):
    return getattr(mlet_tf.optimizers, rule)(0.1, **kwargs)


def table_gradient(rows=7, width=3):
    """A dense gradient of a table of which a batch touched some rows."""
    gradient = RNG.normal(size=(rows, width)).astype("float32")
    gradient[[1, 4]] = 0
    return gradient


@pytest.mark.parametrize("name", ["table", "kernel"])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "l2": 0.01}])
def test_dense_gradients_follow_the_definition(rule, options, name, reference):
    weights = RNG.normal(size=(7, 3)).astype("float32")
    variable = keras.Variable(weights, name=name)
    variable.mlet_lr_multiplier = 0.5
    optimizer = make(rule, **options)
    expected = reference(
        rule,
        weights,
        rate=0.05,
        decay=options.get("weight_decay", 0),
        l2=options.get("l2", 0),
        every_row=name == "kernel",
    )
    for _ in range(3):
        gradient = table_gradient()
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        expected.update(gradient)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected.w, rtol=2e-5, atol=2e-6)
    assert int(optimizer.iterations) == 3


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4)])
def test_variables_of_any_rank_move_against_the_gradient(rule, shape):
    variable = keras.Variable(np.ones(shape, "float32"), name="bias")
    make(rule).apply([keras.ops.ones(shape)], [variable])
    assert variable.shape == shape
    assert np.all(keras.ops.convert_to_numpy(variable) < 1)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_rate_of_a_table_grows_with_its_rows(rule, exponent, reference):
    """Tables of 1, 4 and 2 rows in one variable, the largest of 16 in another."""
    weights = RNG.normal(size=(7, 3)).astype("float32")
    stacked = keras.Variable(weights, name="table")
    mark_tables(stacked, [1, 4, 2])
    variables = {
        "stacked": stacked,
        "largest": keras.Variable(np.ones((16, 3), "float32"), name="direct_table"),
        "projection": keras.Variable(np.ones((40, 3), "float32"), name="projection"),
    }
    rates = {
        "stacked": 0.1 * (np.repeat([1, 4, 2], [1, 4, 2]) / 16) ** exponent,
        "largest": 0.1,
        "projection": 0.1,
    }
    expected = {
        name: reference(
            rule, keras.ops.convert_to_numpy(v), rates[name], decay=0.2, every_row=name == "projection"
        )
        for name, v in variables.items()
    }
    optimizer = make(rule, rows_exponent=exponent, weight_decay=0.2)
    for _ in range(3):
        gradients = [RNG.normal(size=v.shape).astype("float32") for v in variables.values()]
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients], list(variables.values()))
        for name, gradient in zip(variables, gradients, strict=True):
            expected[name].update(gradient)
    for name, variable in variables.items():
        received = keras.ops.convert_to_numpy(variable)
        np.testing.assert_allclose(received, expected[name].w, rtol=2e-5, atol=2e-6)


def test_plain_sgd_has_no_state():
    variables = [
        keras.Variable(np.ones((5, 2), "float32"), name=n) for n in ("table", "projection", "kernel")
    ]
    optimizer = split_optimizer(tables=SparseSGD(), projections=SparseSGD(), dense=SparseSGD())
    optimizer.build(variables)
    assert [v.shape for v in optimizer.variables] == [()] * len(optimizer.variables)


def test_row_wise_state_is_one_number_a_row():
    variable = keras.Variable(np.ones((50, 8), "float32"), name="table")
    optimizer = RowWiseAdagrad()
    optimizer.build([variable])
    assert sum(int(np.prod(v.shape)) for v in optimizer.variables) == 50 + 2


def test_config_round_trip(rule):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    options = {"l2": 0.01, "weight_decay": 0.1, "rows_exponent": 0.5, "global_clipnorm": 1.0}
    optimizer = getattr(mlet_tf.optimizers, rule)(schedule, **options)
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(clone) is type(optimizer)
    assert clone.get_config() == optimizer.get_config()


def test_split_gives_each_group_its_own_rate_and_shares_the_default():
    weights = {
        n: keras.Variable(np.ones((2, 2), "float32"), name=n) for n in ("table", "projection", "kernel")
    }
    optimizer = split_optimizer(tables=SparseSGD(0.5), dense=SparseSGD(0.25), projections=SparseSGD(0.125))
    optimizer.apply([keras.ops.ones((2, 2))] * 3, list(weights.values()))
    moved = {n: 1 - float(keras.ops.convert_to_numpy(v)[0, 0]) for n, v in weights.items()}
    assert moved == {"table": 0.5, "projection": 0.125, "kernel": 0.25}

    shared = split_optimizer(tables="sgd", dense=LazyAdam(0.3))
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(shared))
    tables, dense = clone.optimizers
    assert isinstance(tables, keras.optimizers.SGD) and isinstance(dense, LazyAdam)


def small_model(optimizer):
    ids = keras.Input((2,), dtype="int32")
    table = keras.layers.Embedding(20, 4, embeddings_initializer=keras.initializers.RandomUniform(seed=1))
    hidden = keras.layers.Flatten()(table(ids))
    kernel = keras.initializers.GlorotUniform(seed=2)
    model = keras.Model(ids, keras.layers.Dense(1, "sigmoid", kernel_initializer=kernel)(hidden))
    model.compile(optimizer, loss="binary_crossentropy", jit_compile=False)
    return model


def batches(seed, rows=64):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 20, (rows, 2)), rng.integers(0, 2, (rows, 1)).astype("float32")


@pytest.mark.parametrize("split", [False, True])
def test_training_resumes_identically_from_a_file(rule, split, tmp_path):
    optimizer = make(rule)
    model = small_model(split_optimizer(tables=optimizer, dense=SparseAdagrad(0.1)) if split else optimizer)
    model.fit(*batches(0), batch_size=16, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    for one in (model, restored):
        one.fit(*batches(1), batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert int(restored.optimizer.iterations) == 8
    fresh = small_model(make(rule))
    fresh.set_weights(keras.saving.load_model(tmp_path / "model.keras").get_weights())
    fresh.fit(*batches(1), batch_size=16, shuffle=False, verbose=0)
    if rule != "SparseSGD":  # The state matters: without it training goes elsewhere.
        assert np.abs(fresh.get_weights()[0] - model.get_weights()[0]).max() > 1e-4


def test_split_stores_its_state_once(tmp_path):
    def size(optimizer):
        ids = keras.Input((1,), dtype="int32")
        model = keras.Model(ids, keras.layers.Embedding(20_000, 8)(ids))
        model.compile(optimizer, loss="mse")
        model.optimizer.build(model.trainable_variables)
        model.save(tmp_path / "m.keras")
        return (tmp_path / "m.keras").stat().st_size

    assert size(split_optimizer(tables=SparseAdagrad(), dense="sgd")) < 1.1 * size(SparseAdagrad())


@pytest.mark.parametrize(
    ("make_wrong", "name"),
    [
        (lambda: SparseSGD(0.1, l2=-1), "l2"),
        (lambda: SparseSGD(0.1, rows_exponent=-1), "rows_exponent"),
        (lambda: SparseAdagrad(0.1, epsilon=0), "epsilon"),
        (lambda: RowWiseAdagrad(0.1, initial_accumulator_value=-1), "initial_accumulator_value"),
        (lambda: LazyAdam(0.1, beta_1=1), "beta_1"),
    ],
)
def test_wrong_arguments_are_named(make_wrong, name):
    with pytest.raises(ValueError, match=f"`{name}` should be .* Received"):
        make_wrong()
