"""Bands, energies and the allocator, by what they predict and by what their plans cost."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.embeddings.allocator import Allocator, predict_loss
from mlet_tf.embeddings.bands import cut_bands
from mlet_tf.embeddings.column_codes import decoded, encoded, fit_scales
from mlet_tf.embeddings.energy import TableGradients, measure_table, with_held_out_gains
from mlet_tf.embeddings.fitting import TrainedTable
from mlet_tf.embeddings.plan import Band, FeaturePlan, Plan, make_salts
from mlet_tf.errors import InputError

WIDTH = 8


def trained(rows, counts, name="t"):
    return TrainedTable(name, len(rows), lambda low, high: rows[low:high], counts)


def zipf_counts(rows, total=100_000):
    shares = 1 / np.arange(1, rows + 1)
    return np.maximum(1, total * shares / shares.sum()).astype("int64")


def make_table(generator, rows=800, tail=2, scale=1.0, name="t", width=WIDTH):
    """A table with falling columns, frequent ids and rare ones, and its energy in some metric."""
    values = generator.normal(size=(rows, width)) * 0.6 ** np.arange(width) + generator.normal(size=width)
    values = (values @ np.linalg.qr(generator.normal(size=(width, width)))[0]).astype("float32")
    counts = zipf_counts(rows)
    factor = generator.normal(size=(width, width))
    metric = scale * factor @ factor.T
    table = trained(values, counts, name)
    return table, metric, measure_table(table, metric, cut_bands(counts, tail), tail)


def whole_bytes(tables):
    return sum(4 * WIDTH * table.rows for table in tables)


def loss_of(table, metric, restored):
    """Half the squared change of a row in the metric, on average over the log."""
    change = restored - table.read(0, table.rows)
    return (
        np.einsum("v,vi,ij,vj->", table.weights(0, table.rows), change, metric, change)
        / 2
        / table.counts.sum()
    )


def restored_rows(table, energy, change):
    """The table with other coefficients, band by band; `change(band, coefficients, ids, tail)` gives them."""
    rows = table.read(0, table.rows).astype("float64")
    low = 0
    for number, (band, stop) in enumerate(zip(energy.bands, energy.stops, strict=True)):
        tail = energy.tail if number == 0 else 0
        ids = np.concatenate([np.arange(low, stop), np.arange(table.rows - tail, table.rows)])
        coefficients = change(number, (rows[ids] - band.mean) @ energy.basis.encode, ids, tail)
        width = coefficients.shape[1]
        rows[ids], low = band.mean + coefficients @ energy.basis.decode[:width], stop
    return rows


@st.composite
def problems(draw):
    """Energies of some tables."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.sampled_from([5, 60, 300, 1500]), min_size=1, max_size=4))
    scales = [draw(st.sampled_from([0.0, 1e-6, 1.0])) for _ in sizes]
    return [
        make_table(generator, rows, tail=2, scale=scale, name=f"t{i}")[2]
        for i, (rows, scale) in enumerate(zip(sizes, scales, strict=True))
    ]


@settings(max_examples=25, deadline=None)
@given(problems(), st.lists(st.floats(0.02, 1.1), min_size=2, max_size=4))
def test_plans_keep_to_the_budget_and_larger_ones_never_predict_more_loss(tables, shares):
    losses = []
    for share in sorted(shares):
        budget = int(whole_bytes(tables) * share)
        try:
            allocation = Allocator(tables).allocate(budget)
        except InputError:
            assert not losses, "a smaller budget could be met"
            continue
        assert allocation.plan.bytes.embedding <= budget
        assert allocation == Allocator(tables).allocate(budget)
        assert predict_loss(tables, allocation.plan) == pytest.approx(allocation.loss, rel=1e-9, abs=1e-30)
        assert Plan.from_json(allocation.plan.to_json()) == allocation.plan
        losses.append(allocation.loss)
    for smaller, larger in itertools.pairwise(losses):
        assert larger <= smaller * (1 + 1e-9)


def test_a_budget_of_the_trained_tables_changes_nothing():
    table = make_table(np.random.default_rng(0))[2]
    allocation = Allocator([table]).allocate(whole_bytes([table]))
    assert allocation.loss == 0
    assert [band.store for band in allocation.plan.features[0].bands] == ["float32"]


def test_a_budget_that_nothing_meets_names_the_smallest_plan():
    table = make_table(np.random.default_rng(0))[2]
    with pytest.raises(InputError, match=r"expected at least \d+ bytes.*Received: 10$") as error:
        Allocator([table]).allocate(10)
    smallest = int(str(error.value).split("at least ")[1].split()[0])
    assert Allocator([table]).allocate(smallest).plan.bytes.embedding == smallest
    with pytest.raises(InputError):
        Allocator([table]).allocate(smallest - 1)


def test_a_table_without_energy_gets_the_least():
    tables = [make_table(np.random.default_rng(0), scale=scale)[2] for scale in (1.0, 0.0)]
    plan = Allocator(tables).allocate(whole_bytes(tables) // 6).plan
    assert [band.width for band in plan.features[1].bands] == [0] * len(tables[1].bands)
    assert all(band.width for band in plan.features[0].bands)


@pytest.mark.parametrize("ratio", [2, 4, 8, 16])
def test_no_special_case_predicts_less_loss_with_the_same_bytes(ratio):
    generator = np.random.default_rng(3)
    tables = [make_table(generator, rows, scale=s)[2] for rows, s in ((3000, 1.0), (900, 0.2), (40, 0.05))]

    def plan(*bands, single=False):
        """The same settings for all bands; `bands` make one from its end and its number of ids."""
        features = []
        for table in tables:
            stops = table.stops[-1:] if single else table.stops
            sizes = np.diff([0, *stops])
            made = [bands[min(i, len(bands) - 1)] for i in range(len(stops))]
            features.append(
                FeaturePlan(
                    table.name,
                    table.rows,
                    tuple(make(stop, int(n)) for make, stop, n in zip(made, stops, sizes, strict=True)),
                    table.tail,
                )
            )
        return Plan(WIDTH, tuple(features))

    salts = make_salts(0, 0, 1)
    special = {
        "uniform width": plan(lambda stop, ids: Band(stop, max(1, WIDTH // ratio))),
        "int8": plan(lambda stop, ids: Band(stop, WIDTH, "int8"), single=True),
        "int4 of half the columns": plan(lambda stop, ids: Band(stop, WIDTH // 2, "int4")),
        "hashed rare ids": plan(
            lambda stop, ids: Band(stop, WIDTH - 1),
            lambda stop, ids: Band(
                stop, WIDTH - 1, address="hash", rows=max(1, ids // (2 * ratio)), salts=salts
            ),
        ),
        "dropped rows": plan(
            lambda stop, ids: Band(stop, WIDTH - 1, address="bitmap", rows=max(1, ids // ratio))
        ),
        "dropped bands": plan(lambda stop, ids: Band(stop, WIDTH - 1), lambda stop, ids: Band(stop, 0)),
    }
    # Rounding to eight bits costs next to nothing, whatever the scales belong to.
    nothing = 1e-4 * sum(band.columns.sum() for table in tables for band in table.bands)
    for name, case in special.items():
        best = Allocator(tables).allocate(case.bytes.embedding)
        assert best.loss <= max(predict_loss(tables, case), nothing), name


def test_more_to_choose_from_predicts_less_loss():
    tables = [make_table(np.random.default_rng(5), rows)[2] for rows in (2000, 300)]
    budget = whole_bytes(tables) // 10
    plain = Allocator(tables, stores=("float32",), sharing=()).allocate(budget)
    shared = Allocator(tables, stores=("float32",)).allocate(budget)
    coded = Allocator(tables).allocate(budget)
    assert coded.loss < shared.loss <= plain.loss
    stores = {band.store for feature in plain.plan.features for band in feature.bands}
    assert stores == {"float32"}


def test_energy_of_dropped_columns_is_what_they_cost():
    table, metric, energy = make_table(np.random.default_rng(1))
    for width in (0, 3, 7):
        rows = restored_rows(table, energy, lambda n, a, ids, tail, width=width: a[:, :width])
        features = (
            FeaturePlan("t", table.rows, tuple(Band(stop, width) for stop in energy.stops), energy.tail),
        )
        predicted = predict_loss([energy], Plan(WIDTH, features))
        assert predicted == pytest.approx(loss_of(table, metric, rows), rel=1e-4)


@pytest.mark.parametrize("form", ["columns", "bitmap", "hash"])
def test_predicted_loss_of_rounding_and_sharing_is_near_what_they_cost(form):
    table, metric, energy = make_table(np.random.default_rng(1), rows=4000)
    weights = table.weights(0, table.rows)

    def change(number, coefficients, ids, tail):
        own = slice(0, len(ids) - tail)
        result = coefficients.copy()
        if form == "columns":
            scales, _ = fit_scales(coefficients, weights[ids], 4)
            return decoded(encoded(coefficients, scales, 4), scales, 4)
        if form == "bitmap":
            matter = weights[ids[own]] * np.square(coefficients[own]).sum(axis=1)
            result[np.argsort(-matter)[len(matter) // 2 :]] = 0
            return result
        ((a, b),) = make_salts(0, 0, 1)
        buckets = (a * (ids[own] + 1) + b) % (2**31 - 1) % (len(ids[own]) // 4)
        for column in result.T:
            sums = np.bincount(buckets, weights[ids[own]] * column[own])
            column[own] = (sums / np.maximum(np.bincount(buckets, weights[ids[own]]), 1e-9))[buckets]
        return result

    def band(stop, ids):
        if form == "columns":
            return Band(stop, WIDTH, "columns", wide=0)
        rows = ids - ids // 2 if form == "bitmap" else ids // 4
        salts = make_salts(0, 0, 1) if form == "hash" else ()
        # Of full width a hashed band would have embeddings as rows, not coefficients.
        return Band(stop, WIDTH, "columns", address=form, rows=rows, salts=salts, wide=WIDTH)

    sizes = np.diff([0, *energy.stops])
    bands = tuple(band(stop, int(n)) for stop, n in zip(energy.stops, sizes, strict=True))
    predicted = predict_loss([energy], Plan(WIDTH, (FeaturePlan("t", table.rows, bands, energy.tail),)))
    actual = loss_of(table, metric, restored_rows(table, energy, change))
    # Which ids meet is chance.
    assert predicted == pytest.approx(actual, rel=0.3 if form == "hash" else 0.15)


def test_a_sample_of_a_large_band_predicts_as_all_of_it(monkeypatch):
    table, metric, whole = make_table(np.random.default_rng(2), rows=6000)
    monkeypatch.setattr("mlet_tf.embeddings.energy.SAMPLE_ROWS", 600)
    monkeypatch.setattr("mlet_tf.embeddings.energy._HEAD_ROWS", 100)
    sampled = measure_table(table, metric, whole.stops, whole.tail, block_rows=500)
    for few, all_ in zip(sampled.bands, whole.bands, strict=True):
        assert len(few.sample) <= 602
        np.testing.assert_allclose(few.columns, all_.columns, rtol=1e-9)
        for bits in (4, 8):
            assert few.code_noise(bits).sum() == pytest.approx(all_.code_noise(bits).sum(), rel=0.25)
        for address in ("bitmap", "hash"):
            rows = all_.ids // 4
            assert few.lost_by_sharing(address, rows).sum() == pytest.approx(
                all_.lost_by_sharing(address, rows).sum(), rel=0.25
            )


def test_held_out_rows_tell_bands_that_were_learned_by_heart():
    """Of two tables with the same energy, one has learned what holds for new rows, the other noise."""
    generator = np.random.default_rng(7)
    count, ids = 200, generator.integers(0, 200, (20_000, 2))
    tables = [generator.normal(size=(count, 2)).astype("float32") for _ in range(2)]
    embeddings = np.stack([table[ids[:, i]] for i, table in enumerate(tables)], axis=1)
    jacobian = np.ones((20_000, 2, 2), "float32") / 2
    logit = (embeddings * jacobian).sum(axis=(1, 2))
    truth = (embeddings[:, 0] * jacobian[:, 0]).sum(axis=1)
    label = (generator.random(20_000) < 1 / (1 + np.exp(-truth))).astype("float32")
    ctr = 1 / (1 + np.exp(-logit))
    gradients = [
        TableGradients(ids[:, i], embeddings[:, i], jacobian[:, i], ctr, label, len(label))
        for i in range(len(tables))
    ]
    counts = np.full(count, 100)
    energies = [
        measure_table(trained(table, counts), gradient.metric(), (count,))
        for table, gradient in zip(tables, gradients, strict=True)
    ]
    learned, by_heart = (
        after.bands[0].columns.sum() / before.bands[0].columns.sum()
        for before, after in zip(energies, with_held_out_gains(energies, gradients), strict=True)
    )
    assert 0.5 < learned < 2
    assert by_heart < 0.1


def test_bands_are_cut_where_counts_fall_below_thresholds():
    counts = np.repeat([5000, 500, 50, 5, 1], 100)
    assert cut_bands(counts, most=5) == (100, 200, 300, 400, 500)
    assert len(cut_bands(counts)) == 3
    assert cut_bands(np.concatenate([counts, [9999, 0]]), tail=2, most=5)[-1] == 500
    assert cut_bands(counts[:120], min_rows=64) == (120,), "too few for two bands"
    assert cut_bands(counts[::-1]) == (500,), "ids that are not in falling order"
    assert cut_bands(np.zeros(3, int), tail=3) == (0,)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 50), st.floats(1e-6, 1e6))
def test_column_codes_are_near_and_more_bits_nearer(seed, count, scale):
    generator = np.random.default_rng(seed)
    rows, weights = generator.normal(size=(count, 3)) * scale, generator.integers(1, 9, count)
    errors = []
    for bits in (4, 8):
        scales, error = fit_scales(rows, weights, bits)
        values = decoded(encoded(rows, scales, bits), scales, bits)
        np.testing.assert_allclose(weights @ np.square(values - rows), error, rtol=1e-6)
        errors.append(error)
    assert np.all(errors[1] <= errors[0] * (1 + 1e-9))
    assert np.all(errors[0] <= 0.05 * (weights @ np.square(rows)))


def test_a_feature_without_ids_or_counts_is_planned():
    empty = trained(np.zeros((2, WIDTH), "float32"), np.zeros(2, "int64"))
    energy = measure_table(empty, np.eye(WIDTH), cut_bands(empty.counts, 2), 2)
    assert Allocator([energy]).allocate(10_000).loss == 0
    uncounted = dataclasses.replace(empty, counts=None)
    assert measure_table(uncounted, np.eye(WIDTH), (2,)).bands[0].ids == 2
