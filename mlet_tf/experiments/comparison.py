"""MLET against direct tables: which direct size is as good, on which ids it differs, which of a family is best.

Of the cells of one kind and size the one with the highest mean AUC on validation rows is taken; test rows compare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

from mlet_tf.experiments.statistics import Difference, Group, Split, difference

K = TypeVar("K", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Match:
    """A size of MLET, and what direct tables need to be as good.

    Attributes:
        mlet: The best MLET cell of this `d`.
        direct: The best direct cell of the smallest `d` that is as good: whose mean test AUC is not below MLET's by
            more than the half width of the 95 % interval of their paired difference, so that the interval of
            `direct - mlet` reaches zero. None if no direct size is. Where seeds differ much, intervals are wide and a
            small `d` is as good as anything: read it beside `no_lower`.
        gap: The paired difference `direct - mlet`; None without `direct`.
        no_lower: The best direct cell of the smallest `d` whose mean test AUC is not below MLET's, or None.
        largest: The best direct cell of the largest `d`.
        rare: The paired difference, MLET minus direct of the same `d`, on rows with a rare id; None where there is no
            such cell, or no such rows.
    """

    mlet: Group
    direct: Group | None
    gap: Difference | None
    no_lower: Group | None
    largest: Group
    rare: Difference | None


@dataclasses.dataclass(frozen=True)
class BandDifference:
    """MLET against direct tables of the same `d` on the test rows whose id of a feature was seen so often in training.

    Attributes:
        output_dim: `d`.
        feature: The feature.
        band: The frequencies.
        rows: Test rows.
        direct: Mean AUC of the direct cell.
        gap: The paired difference, MLET minus direct.
    """

    output_dim: int
    feature: str
    band: str
    rows: int
    direct: float
    gap: Difference


def best_on_validation(found: Iterable[Group], key: Callable[[Group], K]) -> dict[K, Group]:
    """Of the groups of each key the one with the highest mean AUC on validation rows."""
    best: dict[K, Group] = {}
    for group in found:
        if group.by_seed(split="validation"):
            known = best.setdefault(key(group), group)
            if group.mean(split="validation") > known.mean(split="validation"):
                best[key(group)] = group
    return best


def paired(a: Group | None, b: Group | None, split: Split = "test") -> Difference | None:
    """The difference of the AUC, `a - b`; None without two seeds in common."""
    if a is None or b is None or len(a.by_seed(split=split).keys() & b.by_seed(split=split).keys()) < 2:
        return None
    return difference(a, b, split=split)


def matches(found: Sequence[Group]) -> list[Match]:
    """A match for each `d` of `mlet`, growing, over the results of one study."""
    direct, mlet = _sizes(found, "direct"), _sizes(found, "mlet")
    by_bytes = sorted(direct.values(), key=lambda group: group.record["bytes"])
    return [_match(group, by_bytes, direct.get(d)) for d, group in sorted(mlet.items()) if by_bytes]


def band_differences(found: Sequence[Group]) -> Iterator[BandDifference]:
    """The differences by feature and frequency, for each `d` that both kinds have."""
    direct, mlet = _sizes(found, "direct"), _sizes(found, "mlet")
    for d in sorted(direct.keys() & mlet.keys()):
        for split in direct[d].bands():
            gap = paired(mlet[d], direct[d], split)
            if gap is not None:
                rows = int(direct[d].mean("rows", split))
                yield BandDifference(d, *split, rows, direct[d].mean(split=split), gap)


def families(found: Sequence[Group]) -> dict[str, list[Group]]:
    """The best cell of each kind and size, by growing bytes.

    Truncations of a kind are a family of their own, and so are its compressions; of several methods the best for each
    size counts, where validation rows scored it.
    """
    finals = [group for group in found if group.record["stage"] == "final"]
    best = best_on_validation(finals, lambda group: (_family(group), _columns(group)))
    lines: dict[str, list[Group]] = {}
    for (family, _), group in best.items():
        lines.setdefault(family, []).append(group)
    return {
        family: sorted(members, key=lambda group: group.record["bytes"]) for family, members in lines.items()
    }


def _sizes(found: Sequence[Group], kind: str) -> dict[int, Group]:
    cells = (group for group in found if group.matches(kind=kind, stage="final", method=None))
    return best_on_validation(cells, lambda group: group.record["output_dim"])


def _match(mlet: Group, direct: Sequence[Group], same_size: Group | None) -> Match:
    good: tuple[Group, Difference] | None = None
    for group in direct:
        gap = paired(group, mlet)
        if gap is not None and gap.high >= 0:
            good = group, gap
            break
    no_lower = next((group for group in direct if group.mean() >= mlet.mean()), None)
    chosen, gap = good or (None, None)
    return Match(mlet, chosen, gap, no_lower, direct[-1], paired(mlet, same_size, "test_rare"))


def _family(group: Group) -> str:
    method = group.record["method"]
    name = method if method == "compressed" else "truncated"
    return f"{group.record['kind']}, {name}" if method else group.record["kind"]


def _columns(group: Group) -> float:
    return group.record["truncated_to"] if group.record["method"] else group.record["output_dim"]
