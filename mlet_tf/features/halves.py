"""Evaluation rows in two halves: those that choose how a model is compressed, and those that judge the result.

A plan that was chosen on some rows looks better on them than it is. So rows at even positions of their shard choose,
and those at odd positions judge.
"""

import math

# The first position in a shard, and the distance from one to the next.
ALL_ROWS, JUDGING_ROWS = (0, 1), (1, 2)

# More rows would hardly measure an AUC better: its standard error is below 0.001 with 100,000 clicks.
MAX_CHOOSING_ROWS = 1_000_000


def choosing_step(rows: int) -> int:
    """The distance between the rows that choose, see `every` of `pack_examples`: even, so that none of them judges.

    Args:
        rows: Evaluation rows in all.
    """
    return 2 * max(1, math.ceil(rows / 2 / MAX_CHOOSING_ROWS))
