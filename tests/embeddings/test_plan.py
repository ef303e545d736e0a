"""Plans, budgets and statistics of rows: JSON, bytes, and mistakes in one line."""

import numpy as np
import pytest

from mlet_tf.embeddings import Band, Budget, FeaturePlan, Plan, RowStatistics
from mlet_tf.embeddings.plan import make_salts
from mlet_tf.errors import InputError

PLAN = Plan(
    8,
    (
        FeaturePlan(
            "site",
            1000,
            (
                Band(50, 8, "int8"),
                Band(300, 4, "int4"),
                Band(900, 4, "float8", "bitmap", 100),
                Band(994, 2, "pq", "hash", 10, make_salts(1, 0, 2), parts=2),
            ),
            tail=6,
        ),
        FeaturePlan("device", 9, (Band(9, 8),)),
        FeaturePlan("ad", 9, (Band(9, 0),)),
        FeaturePlan("app", 90, (Band(40, 5, "columns", wide=3), Band(90, 3, "columns", wide=0))),
    ),
)


def test_plans_budgets_and_statistics_come_back_from_json():
    assert Plan.from_json(PLAN.to_json()) == PLAN
    for budget in (Budget(bytes=10), Budget(ratio=4), Budget(max_auc_drop=0.0005)):
        assert Budget.from_json(budget.to_json()) == budget
    statistics = RowStatistics({"site": np.array([5, 3])}, {"site": 1}, 70)
    again = RowStatistics.from_json(statistics.to_json())
    assert again.counts["site"].tolist() == [5, 3]
    assert again.counts["site"].dtype == np.int64
    assert (again.tail, again.vocabulary_bytes) == ({"site": 1}, 70)


def test_bytes_by_hand():
    rows = (50 + 6) * 12 + 250 * 6 + 100 * 4 + 4 + 10 * 2 + 1024 * 2 + 4 * 8 * (8 + 4)
    device, ad = 9 * 8 * 4, 4 * 8
    app = 40 * 4 + 50 * 2 + 4 * (5 + 3) + 4 * 8 * (5 + 2)  # 3 bytes and 2 halves; 3 halves.
    assert PLAN.bytes.rows == rows + device + ad + app
    assert PLAN.bytes.addresses == 12 * 10  # 600 ids in words of 64.
    assert PLAN.bytes.embedding == PLAN.bytes.rows + PLAN.bytes.addresses
    assert Plan.direct({"a": 3, "b": 4}, 5, "int8").bytes.rows == 7 * 9


def test_limits_of_budgets():
    assert Budget(bytes=10).limit(4000) == 10
    assert Budget(ratio=16).limit(4000) == 250


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Budget, r"Budget: expected exactly one of bytes, ratio and max_auc_drop. Received: none"),
        (
            lambda: Budget(bytes=5, max_auc_drop=0.1),
            r"exactly one of .* Received: {'bytes': 5, 'max_auc_drop'",
        ),
        (lambda: Budget(bytes=0), r"Budget: bytes: expected above 0. Received: 0"),
        (lambda: Budget(ratio=0.5), r"Budget: ratio: expected a finite number of at least 1. Received: 0.5"),
        (lambda: Budget(max_auc_drop=-0.1), r"max_auc_drop: expected at least 0 and below 1. Received: -0.1"),
        (lambda: Band(4, 2, "int3"), r"store: expected one of float32, .*, pq. Received: int3"),
        (lambda: Band(4, 3, "pq", parts=2), r"parts: expected a divisor of width 3. Received: 2"),
        (lambda: Band(4, 3, "columns", wide=4), r"wide: expected 0 to 3. Received: 4"),
        (lambda: Band(4, 3, address="hash"), r"rows: expected given unless identity. Received: None"),
        (lambda: FeaturePlan("a", 9, (Band(8, 2),)), r"bands of feature a: .*the last at 9. Received: \[8\]"),
        (lambda: FeaturePlan("a", 9, (Band(5, 2), Band(4, 2)), 5), r"rising ends"),
        (
            lambda: FeaturePlan("a", 9, (Band(9, 2, address="bitmap", rows=10),)),
            r"rows of feature a: expected at most 9. Received: 10",
        ),
        (lambda: Plan(4, (FeaturePlan("a", 9, (Band(9, 5),)),)), r"width of feature a: expected at most 4"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(InputError, match=message):
        make()
