"""Kinds of embeddings: what is trained, and what it becomes when it is served."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlet_tf.embeddings.plan import Band, Budget, FeaturePlan, Plan, RowStatistics, make_salts
from mlet_tf.errors import InputError

if TYPE_CHECKING:
    import keras

    from mlet_tf.layers import EmbeddingFeature

NESTED_SIZES = (2, 4, 8, 16, 32)
_VALUE_BYTES = 4


class EmbeddingKind:
    """A way to embed: direct tables. Other kinds are subclasses.

    Attributes:
        factorised: Whether its tables are trained as products: it has a hidden dim and an initialization.
        trains_projections: Whether the second factors of the products are trained.
        collapses: Whether the direct model that it collapses to can be trained on in its place.
        keeps_width: Whether it gives the rest of the model `output_dim` columns however few bytes it has.
        without_hidden_dim: The kind that it is where the hidden dim is null, if there is one.
        leading_columns: Whether the first columns of its tables can serve alone.
    """

    factorised = False
    trains_projections = False
    collapses = False
    keeps_width = False
    without_hidden_dim: str | None = None
    leading_columns = False

    def plan(
        self,
        rows: Mapping[str, int],
        output_dim: int,
        budget: Budget,
        statistics: RowStatistics | None = None,
    ) -> Plan:
        """Returns what is served: as many columns as the budget has bytes for.

        Args:
            rows: V by feature.
            output_dim: Width `d` that the rest of the model gets, at most.
            budget: Of bytes, or a ratio to tables of width `d`.
            statistics: How often rows occur, for kinds whose plans depend on it.

        Raises:
            InputError: The budget is below the smallest plan.
        """
        return Plan.direct(rows, _columns(rows, output_dim, budget))

    def layer(
        self, plan: Plan, features: Sequence[EmbeddingFeature], hidden_dim: int | None = None, **options: Any
    ) -> keras.layers.Layer:
        """Returns the layer that is trained.

        Args:
            plan: Of this kind.
            features: The features; those of factorised kinds may have hidden dims of their own.
            hidden_dim: `k` of a factorised kind.
            **options: Further arguments of `EmbeddingCollection`.
        """
        from mlet_tf.layers import EmbeddingCollection

        return EmbeddingCollection(features, plan.output_dim, hidden_dim, **options)

    def served(
        self, layer: keras.layers.Layer, plan: Plan, statistics: RowStatistics | None = None
    ) -> keras.layers.Layer:
        """Returns a trained layer in the form that is served: the same embeddings but for float rounding.

        Args:
            layer: What `layer` returned, trained.
            plan: Of the layer.
            statistics: How often rows occur.
        """
        from mlet_tf.embeddings.served import served_embedding

        return served_embedding(layer, plan, statistics)


class Mlet(EmbeddingKind):
    """Tables trained as `W1 @ W2` and served as the product."""

    factorised = trains_projections = collapses = True
    without_hidden_dim = "direct"


class FrozenMlet(EmbeddingKind):
    """The same with a projection that stays as it was drawn."""

    factorised = collapses = True

    def layer(
        self, plan: Plan, features: Sequence[EmbeddingFeature], hidden_dim: int | None = None, **options: Any
    ) -> keras.layers.Layer:
        """Returns the layer that is trained."""
        return super().layer(plan, features, hidden_dim, projection_trainable=False, **options)


class Nested(EmbeddingKind):
    """MLET tables whose leading columns are trained to serve alone, see `NestedEmbeddings`."""

    factorised = trains_projections = leading_columns = True

    def layer(
        self, plan: Plan, features: Sequence[EmbeddingFeature], hidden_dim: int | None = None, **options: Any
    ) -> keras.layers.Layer:
        """Returns the layer that is trained."""
        from mlet_tf.embeddings.nested import NestedEmbeddings

        tables = super().layer(plan, features, hidden_dim, **options)
        return NestedEmbeddings(tables, NESTED_SIZES, dtype=options.get("dtype"))

    def served(
        self, layer: keras.layers.Layer, plan: Plan, statistics: RowStatistics | None = None
    ) -> keras.layers.Layer:
        """Returns the tables with all columns."""
        return super().served(layer.embeddings, plan, statistics)


class Projected(EmbeddingKind):
    """Narrow tables behind a projection that is served too; tables that it would not make smaller stay whole."""

    trains_projections = keeps_width = True

    def plan(
        self,
        rows: Mapping[str, int],
        output_dim: int,
        budget: Budget,
        statistics: RowStatistics | None = None,
    ) -> Plan:
        """Returns tables of as many columns as the budget has bytes for; projections come on top."""
        columns = _columns(rows, output_dim, budget)
        whole = Plan.direct(rows, output_dim).features
        narrow = (FeaturePlan(name, size, (Band(size, columns),)) for name, size in rows.items())
        smaller = [
            min(pair, key=lambda x: x.bytes(output_dim).rows) for pair in zip(whole, narrow, strict=True)
        ]
        return Plan(output_dim, tuple(smaller))

    def layer(
        self, plan: Plan, features: Sequence[EmbeddingFeature], hidden_dim: int | None = None, **options: Any
    ) -> keras.layers.Layer:
        """Returns the layer that is trained: products whose hidden dim is the plan's width."""
        narrow = [
            dataclasses.replace(feature, hidden_dim=planned.width if planned.width < plan.output_dim else 0)
            for feature, planned in zip(features, plan.features, strict=True)
        ]
        return super().layer(plan, narrow, **{**options, "direct_threshold": 0})


class Hashed(EmbeddingKind):
    """Direct tables whose rows several ids share, see `HashedEmbeddings`."""

    keeps_width = True

    def plan(
        self,
        rows: Mapping[str, int],
        output_dim: int,
        budget: Budget,
        statistics: RowStatistics | None = None,
    ) -> Plan:
        """Returns tables that each keep the same share of their rows."""
        share = _share(rows, output_dim, budget)
        features = []
        for number, (name, size) in enumerate(rows.items()):
            kept = max(1, round(size * share))
            band = Band(size, output_dim, address="hash", rows=kept, salts=make_salts(0, number, 1))
            features.append(FeaturePlan(name, size, (band if kept < size else Band(size, output_dim),)))
        return Plan(output_dim, tuple(features))

    def layer(
        self, plan: Plan, features: Sequence[EmbeddingFeature], hidden_dim: int | None = None, **options: Any
    ) -> keras.layers.Layer:
        """Returns the layer that is trained."""
        from mlet_tf.embeddings.shared_rows import HashedEmbeddings

        return HashedEmbeddings(plan, **_shared_options(options))

    def served(
        self, layer: keras.layers.Layer, plan: Plan, statistics: RowStatistics | None = None
    ) -> keras.layers.Layer:
        """Returns the same rows behind the same hashes."""
        return layer.served()


class QuotientRemainder(EmbeddingKind):
    """Two small tables a feature that are multiplied, see `QuotientRemainderEmbeddings`."""

    keeps_width = True

    def plan(
        self,
        rows: Mapping[str, int],
        output_dim: int,
        budget: Budget,
        statistics: RowStatistics | None = None,
    ) -> Plan:
        """Returns both tables of each feature, the remainders first."""
        share = _share(rows, output_dim, budget)
        moduli = {name: _modulus(size, share) for name, size in rows.items()}
        remainders = {f"{name} remainder": modulus for name, modulus in moduli.items()}
        quotients = {f"{name} quotient": math.ceil(size / moduli[name]) for name, size in rows.items()}
        return Plan.direct(remainders | quotients, output_dim)

    def layer(
        self, plan: Plan, features: Sequence[EmbeddingFeature], hidden_dim: int | None = None, **options: Any
    ) -> keras.layers.Layer:
        """Returns the layer that is trained."""
        from mlet_tf.embeddings.shared_rows import QuotientRemainderEmbeddings
        from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature

        both = [EmbeddingFeature(feature.name, feature.rows) for feature in plan.features]
        tables = EmbeddingCollection(both, plan.output_dim, **_shared_options(options))
        return QuotientRemainderEmbeddings(tables, dtype=options.get("dtype"))

    def served(
        self, layer: keras.layers.Layer, plan: Plan, statistics: RowStatistics | None = None
    ) -> keras.layers.Layer:
        """Returns the product of served tables."""
        return type(layer)(super().served(layer.tables, plan), name=layer.name, dtype=layer.dtype_policy)


KINDS: dict[str, EmbeddingKind] = {
    "direct": EmbeddingKind(),
    "mlet": Mlet(),
    "mlet_frozen": FrozenMlet(),
    "nested": Nested(),
    "projected": Projected(),
    "hash": Hashed(),
    "qr": QuotientRemainder(),
}


def budget_of_columns(rows: Mapping[str, int], columns: int) -> Budget:
    """The bytes of float32 tables of so many columns."""
    return Budget(bytes=_VALUE_BYTES * sum(rows.values()) * columns)


def _columns(rows: Mapping[str, int], output_dim: int, budget: Budget) -> int:
    """Columns of all tables within a budget, at most `output_dim`."""
    column = _VALUE_BYTES * sum(rows.values())
    columns = min(budget.limit(column * output_dim) // column, output_dim)
    if columns < 1:
        raise InputError(
            f"Budget: expected at least {column} bytes, one column. Received: {budget.to_json()}"
        )
    return columns


def _share(rows: Mapping[str, int], output_dim: int, budget: Budget) -> float:
    """Share of the rows of width `output_dim` within a budget."""
    whole = _VALUE_BYTES * sum(rows.values()) * output_dim
    return min(1.0, budget.limit(whole) / whole)


def _shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a collection that tables without factors have."""
    return {name: options[name] for name in ("initial_scale", "dtype") if name in options}


def _modulus(size: int, share: float) -> int:
    """Rows of a remainder table, so that with the quotients there are as many as the share allows."""
    budget = round(size * share)
    smallest = math.isqrt(size - 1) + 1 if size > 1 else 1
    if share >= 1 or smallest + math.ceil(size / smallest) >= size:
        return size
    # From the root of V on, each further remainder saves one quotient at most: the sum never falls.
    fitting = bisect.bisect_right(range(smallest, size), budget, key=lambda m: m + -(-size // m))
    return smallest + max(fitting - 1, 0)
