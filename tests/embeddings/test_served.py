"""What holds for every served form: bytes, saving and reloading, ids at the edges, batches, half precision."""

import keras
import numpy as np
import pytest

from mlet_tf.embeddings import Band, FeaturePlan, Plan, RowStatistics, ServedEmbedding, served_embedding
from mlet_tf.embeddings.plan import STORES, make_salts
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature

D = 8
SITES, TAIL = 500, 6
FEATURES = [
    EmbeddingFeature("site", SITES),
    EmbeddingFeature("device", 4),
    EmbeddingFeature("app", 90, combiner="mean", table="apps"),
    EmbeddingFeature("seen", 90, combiner="sum", table="apps"),
]
tensorflow_only = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="SavedModels")


def plan(*bands, others="float32"):
    """A plan with these bands of the largest feature."""
    whole = [FeaturePlan(name, rows, (Band(rows, D, others),)) for name, rows in (("device", 4), ("app", 90))]
    return Plan(D, (FeaturePlan("site", SITES, bands, TAIL), *whole))


END = SITES - TAIL
PLAIN = [store for store in STORES if store not in ("columns", "pq")]
FORMS = {store: plan(Band(END, D, store), others=store) for store in PLAIN}
FORMS |= {f"{store} narrow": plan(Band(END, 3, store)) for store in PLAIN}
FORMS |= {
    "codes": plan(Band(END, D, "pq", parts=4), others="int8"),
    "codes of narrow rows": plan(Band(END, 4, "pq", parts=2)),
    "hashed": plan(Band(END, D, address="hash", rows=40, salts=make_salts(0, 0, 1))),
    "hashed twice, int8": plan(Band(END, 5, "int8", address="hash", rows=41, salts=make_salts(0, 0, 2))),
    "hot and hashed": plan(Band(50, D), Band(END, D, address="hash", rows=60, salts=make_salts(0, 0, 1))),
    "bitmap": plan(Band(END, D, address="bitmap", rows=70)),
    "bitmap, int4": plan(Band(65, 6, "int8"), Band(END, 5, "int4", address="bitmap", rows=200)),
    "columns": plan(Band(END, D, "columns", wide=D)),
    "columns of all sizes": Plan(
        D,
        (
            FeaturePlan(
                "site",
                SITES,
                (
                    Band(40, 8, "columns", wide=5),
                    Band(130, 5, "columns", wide=3),
                    Band(200, 3, "columns", "hash", 20, make_salts(0, 0, 1), wide=1),
                    Band(400, 1, "columns", "bitmap", 70, wide=1),
                    Band(END, 2, "columns", wide=0),
                ),
                TAIL,
            ),
            FeaturePlan("device", 4, (Band(4, D),)),
            FeaturePlan("app", 90, (Band(90, 4, "columns", wide=4),)),
        ),
    ),
    "mean row": plan(Band(60, D), Band(END, 0)),
    "only mean rows": plan(Band(END, 0)),
    "only mean rows in all tables": Plan(  # The smallest plan there is.
        D,
        (
            FeaturePlan("site", SITES, (Band(END, 0),), TAIL),
            FeaturePlan("device", 4, (Band(4, 0),)),
            FeaturePlan("app", 90, (Band(90, 0),)),
        ),
    ),
    "all at once": Plan(
        D,
        (
            FeaturePlan(
                "site",
                SITES,
                (
                    Band(30, D, "float16"),
                    Band(100, 6, "int8"),
                    Band(300, 6, "pq", "bitmap", 90, parts=3),
                    Band(400, 3, "float8", "hash", 20, make_salts(0, 0, 2)),
                    Band(END, 0),
                ),
                TAIL,
            ),
            FeaturePlan("device", 4, (Band(4, D, "float16"),)),
            FeaturePlan("app", 90, (Band(40, 6, "int8"), Band(80, 3, "float8")), 10),
        ),
    ),
}


def trained():
    """A direct collection whose rows have columns of falling importance, and counts of its ids."""
    generator = np.random.default_rng(0)
    layer = EmbeddingCollection(FEATURES, D, name="embeddings")
    layer.build()
    spread = 2.0 ** -np.arange(D)
    for name, rows in (("site", SITES), ("device", 4), ("app", 90)):
        rotation = np.linalg.qr(generator.normal(size=(D, D)))[0]
        layer.assign_factors(
            name, ((generator.normal(size=(rows, D)) * spread + 0.3) @ rotation).astype("float32")
        )
    counts = {f.name: np.sort(generator.zipf(1.3, f.input_dim))[::-1].clip(max=10**6) for f in FEATURES}
    return layer, RowStatistics(counts, {"site": TAIL, "device": 0, "app": 0, "seen": 0})


TRAINED, STATISTICS = trained()
SERVED = {}


def served(form, **changes):
    """The collection in a form; made once where it is not changed."""
    if changes:
        source = EmbeddingCollection.from_config({**TRAINED.get_config(), **changes})
        source.build()
        source.tables[0].assign(TRAINED.tables[0])
        return served_embedding(source, FORMS[form], STATISTICS, block_rows=64)
    if form not in SERVED:
        SERVED[form] = served_embedding(TRAINED, FORMS[form], STATISTICS, block_rows=64)
    return SERVED[form]


def some_ids(batch, seed=0):
    sizes = [f.input_dim for f in FEATURES]
    ids = np.random.default_rng(seed).integers(0, sizes, (batch, len(sizes)))
    ids[:SITES, 0] = np.arange(SITES)[:batch]  # All of them where the batch is large.
    return ids


def numbers(tensor):
    return keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))


def nbytes(variables):
    return sum(int(np.prod(v.shape)) * keras.ops.convert_to_numpy(v).dtype.itemsize for v in variables)


@pytest.mark.parametrize("form", FORMS)
def test_variables_have_the_bytes_of_the_plan(form):
    layer = served(form)
    assert nbytes(layer.variables) == FORMS[form].bytes.embedding
    assert not layer.trainable_variables


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch", [0, 1, 4096])
def test_batches_read_the_rows_of_the_tables(form, batch):
    layer, ids = served(form), some_ids(batch)
    received = numbers(layer(ids))
    assert received.shape == (batch, 4, D)
    for column, feature in enumerate(FEATURES):
        table = layer.effective_table(feature.name)
        np.testing.assert_allclose(received[:, column], table[ids[:, column]], atol=1e-6)


def test_columns_are_off_by_half_a_step_at_most():
    """Of coefficients that no step cuts off, here those of eight bits."""
    layer, before = served_embedding(TRAINED, FORMS["columns"]), TRAINED.effective_table("site")
    after = layer.effective_table("site")
    projection = numbers(layer.tables[0].projections)
    steps = numbers(layer.tables[0].stores[0].scales)
    off = np.abs((after - before) @ projection.T)
    cut = np.abs((after - numbers(layer.tables[0].means)[0]) @ projection.T) > 127.4 * steps
    assert (off[~cut] <= np.broadcast_to(steps / 2 + 1e-6, off.shape)[~cut]).all()
    assert cut.mean() < 0.02
    # Four bits are sixteen times less.
    narrow = served_embedding(TRAINED, plan(Band(END, D, "columns", wide=0))).effective_table("site")
    assert np.square(after - before).sum() < np.square(narrow - before).sum() / 20


# Largest difference of a value, for rows of a size of about 1: half a step of the store, and the columns left out.
@pytest.mark.parametrize(
    ("form", "most"),
    [("float32", 0), ("float16", 1e-3), ("bfloat16", 1e-2), ("float8", 0.13), ("int8", 0.02), ("int4", 0.25)],
)
def test_rows_are_near_the_trained_ones(form, most):
    for feature in ("site", "device", "app"):
        before, after = TRAINED.effective_table(feature), served(form).effective_table(feature)
        assert np.abs(before - after).max() <= most


@pytest.mark.parametrize("form", FORMS)
def test_oov_and_missing_ids_keep_rows_of_their_own(form):
    plan_of_site = FORMS[form].features[0]
    received = served(form).effective_table("site")[-TAIL:]
    if plan_of_site.bands[0].width:
        assert len(np.unique(received.round(5), axis=0)) == TAIL
    if plan_of_site.bands[0].store == "float32" and plan_of_site.bands[0].width == D:
        np.testing.assert_allclose(received, TRAINED.effective_table("site")[-TAIL:], atol=1e-6)


def test_dropped_rows_are_the_mean_of_their_band():
    before, counts = TRAINED.effective_table("site"), np.maximum(STATISTICS.counts["site"], 1)
    after = served("mean row").effective_table("site")
    mean = np.average(before[60:END], axis=0, weights=counts[60:END])
    np.testing.assert_allclose(after[60:END], np.broadcast_to(mean, (END - 60, D)), atol=1e-6)
    np.testing.assert_allclose(after[:60], before[:60], atol=1e-6)
    both = [*range(END), *range(END, SITES)]  # The tail is of the first band.
    mean = np.average(before[both], axis=0, weights=counts[both])
    kept = served("bitmap").effective_table("site")[:END]
    own = np.abs(kept - before[:END]).max(1) < 1e-5
    assert own.sum() == 70
    np.testing.assert_allclose(kept[~own], np.broadcast_to(mean, (END - 70, D)), atol=1e-6)
    # Those matter most.
    loss = counts[:END] * np.square(before[:END] - mean).sum(1)
    assert loss[own].min() >= loss[~own].max()


def test_ids_that_share_a_row_have_their_weighted_mean():
    before, after = TRAINED.effective_table("site"), served("hot and hashed").effective_table("site")
    np.testing.assert_array_equal(after[:50], before[:50])
    ((a, b),) = make_salts(0, 0, 1)
    bucket = np.array([((a * (x + 1) + b) % (2**31 - 1)) % 60 for x in range(50, END)])
    for shared in np.unique(bucket):
        ids = 50 + np.flatnonzero(bucket == shared)
        weights = np.maximum(STATISTICS.counts["site"], 1)[ids]
        mean = np.average(before[ids], axis=0, weights=weights)
        np.testing.assert_allclose(after[ids], np.broadcast_to(mean, (len(ids), D)), atol=1e-5)


def test_narrow_rows_keep_what_weighs_most():
    """Of all projections onto three columns around the mean, the principal ones lose least."""
    before, after = TRAINED.effective_table("site"), served("float32 narrow").effective_table("site")
    weights = np.maximum(STATISTICS.counts["site"], 1).astype(float)
    centred = before - np.average(before, axis=0, weights=weights)
    moment = (centred.T * weights) @ centred
    lost = np.linalg.eigvalsh(moment)[: D - 3].sum()
    assert (weights * np.square(after - before).sum(1)).sum() == pytest.approx(lost, rel=1e-3)


def test_two_hashes_lose_less_than_one():
    """At the same number of rows, each id being told apart by its pair."""
    losses = []
    for probes in (1, 2):
        form = plan(Band(END, D, address="hash", rows=160, salts=make_salts(0, 0, probes)))
        after = served_embedding(TRAINED, form).effective_table("site")
        losses.append(np.square(after - TRAINED.effective_table("site"))[:END].sum())
    assert losses[1] < 1.1 * losses[0]


@pytest.mark.parametrize("form", FORMS)
def test_bags(form):
    layer, ids = served(form), some_ids(40)
    bags = {f.name: ids[:, [i] * 3] if f.combiner else ids[:, i] for i, f in enumerate(FEATURES)}
    bags["app"] = np.where(np.arange(40)[:, None] == 7, -1, bags["app"])  # An empty bag.
    received, rows = numbers(layer(bags)), numbers(layer(ids))
    np.testing.assert_allclose(received[:, 3], 3 * rows[:, 3], atol=1e-5)
    np.testing.assert_allclose(np.delete(received[:, :3], 7, 0), np.delete(rows[:, :3], 7, 0), atol=1e-5)
    assert (received[7, 2] == 0).all()


@pytest.mark.parametrize(
    ("form", "policy"),
    [
        ("float32", "mixed_bfloat16"),
        ("float32", "bfloat16"),
        ("all at once", "mixed_bfloat16"),
        ("all at once", "mixed_float16"),
    ],
)
def test_half_precision_policies(form, policy):
    layer, ids = served(form, dtype=policy), some_ids(600)
    outputs = layer(ids)
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype != "float32"
    np.testing.assert_allclose(numbers(outputs), numbers(served(form)(ids)), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("form", ["float32", "all at once"])
def test_out_of_range_ids_do_what_they_did(form):
    ids = some_ids(3)
    ids[1, 0] = SITES
    with pytest.raises(ValueError, match=r'feature "site".*0 <= id < 500.*Received: 500'):
        served(form)(ids)
    last = np.where(ids == SITES, SITES - 1, ids)
    layer = served(form, oov="last")
    np.testing.assert_array_equal(numbers(layer(ids)), numbers(layer(last)))


@tensorflow_only
@pytest.mark.parametrize("form", ["float8 narrow", "all at once", "bitmap"])
def test_compiled_code_gives_the_same(form):
    """XLA, where the ids of a lookup cannot be parted from the others: the way that other backends take, too."""
    import tensorflow as tf

    ids = some_ids(300)
    compiled = tf.function(served(form), jit_compile=True)
    np.testing.assert_allclose(numbers(compiled(tf.constant(ids))), numbers(served(form)(ids)), atol=1e-6)
    # Bags of as many rows as there are features: the matrix of ids of one feature is no matrix of all of them.
    few = ids[: len(FEATURES)]
    bags = {f.name: few[:, [i] * 3] if f.combiner else few[:, i] for i, f in enumerate(FEATURES)}
    received = numbers(compiled({name: tf.constant(x) for name, x in bags.items()}))
    np.testing.assert_allclose(received, numbers(served(form)(bags)), atol=1e-5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model with all forms, and the folder where it is saved both ways."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("saved")
    ids = keras.Input((len(FEATURES),), dtype="int64")
    for form in FORMS:
        served(form).name = form.replace(" ", "_").replace(",", "")
    model = keras.Model(ids, {form: served(form)(ids) for form in FORMS})
    model.save(folder / "model.keras")
    module = tf.Module()
    module.kept = [variable.value for variable in model.variables]

    @tf.function(autograph=False)
    def answer(ids):
        return {form.replace(" ", "_").replace(",", ""): out for form, out in model(ids).items()}

    signature = answer.get_concrete_function(ids=tf.TensorSpec([None, len(FEATURES)], tf.int64))
    tf.saved_model.save(module, str(folder / "served"), {"serving_default": signature})
    return model, folder


@tensorflow_only
def test_keras_files_give_equal_models(saved):
    model, folder = saved
    again, ids = keras.models.load_model(folder / "model.keras"), some_ids(4096)
    expected, received = model(ids), again(ids)
    for form in FORMS:
        np.testing.assert_allclose(numbers(received[form]), numbers(expected[form]), atol=1e-6, err_msg=form)
        layer = next(x for x in again.layers if x.name == served(form).name)
        assert type(layer) is ServedEmbedding and layer.plan == FORMS[form]


@tensorflow_only
def test_saved_models_answer_alike_and_have_the_bytes_of_the_plans(saved):
    import tensorflow as tf

    model, folder = saved
    signature = tf.saved_model.load(str(folder / "served")).signatures["serving_default"]
    for batch in (0, 1, 4096):
        ids = some_ids(batch)
        expected, received = model(ids), signature(ids=tf.constant(ids))
        for form in FORMS:
            name = form.replace(" ", "_").replace(",", "")
            np.testing.assert_allclose(
                numbers(received[name]), numbers(expected[form]), atol=1e-6, err_msg=form
            )
    reader = tf.train.load_checkpoint(str(folder / "served" / "variables" / "variables"))
    dtypes = reader.get_variable_to_dtype_map()
    stored = sum(
        int(np.prod(shape)) * dtypes[name].size
        for name, shape in reader.get_variable_to_shape_map().items()
        if name != "_CHECKPOINTABLE_OBJECT_GRAPH"
    )
    assert stored == sum(form.bytes.embedding for form in FORMS.values())
