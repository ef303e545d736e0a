"""What a training and its served model take: memory, bytes moved, time and cost, by arithmetic alone.

`make_plan` turns sizes into a list of `Line`s, each with its formula. Nothing here imports TensorFlow.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

FLOAT = 4  # Bytes of a float32 and of an int32.
EVALUATION_BATCH = 4096

# State per weight of a table of width w, in floats a weight.
_STATE = {
    "sgd": lambda width: 0.0,
    "adagrad": lambda width: 1.0,
    "row_wise_adagrad": lambda width: 1.0 / width,
    "lazy_adam": lambda width: 2.0,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is trained.

    Attributes:
        vocabulary: Table rows V of each categorical feature.
        rows: Rows of the training split.
        num_dense: D, width of the dense features.
        output_dim: d.
        hidden_dim: k, None for direct tables.
        direct_threshold: Features with at most this many rows are direct; None means k.
        bottom_units: Widths of the bottom MLP before its last layer.
        top_units: Widths of the top MLP before the logit.
        batch_size: Rows a step over all workers.
        epochs: Passes over the training split.
        optimizer: Of the tables.
        shuffle_rows: Size of the shuffle buffer.
    """

    vocabulary: tuple[int, ...]
    rows: int
    num_dense: int
    output_dim: int
    hidden_dim: int | None
    direct_threshold: int | None = None
    bottom_units: tuple[int, ...] = (512, 256)
    top_units: tuple[int, ...] = (512, 256)
    batch_size: int = 512
    epochs: int = 1
    optimizer: str = "adagrad"
    shuffle_rows: int = 65536


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a worker achieves, and what it costs.

    Attributes:
        gflops: Floating point operations per second, in 1e9, of matrix products.
        memory_gbs: Bytes per second, in 1e9, of random reads and writes of rows.
        network_gbs: Bytes per second, in 1e9, between workers.
        memory_gib: Memory of a worker for training.
        ingest_rows: Rows per second of one Beam worker, from raw log to examples.
        price: Cost of a worker per hour.
        zipf: Exponent of the distribution of ids.
    """

    gflops: float = 500.0
    memory_gbs: float = 20.0
    network_gbs: float = 2.5
    memory_gib: float = 64.0
    ingest_rows: float = 20_000.0
    price: float = 1.0
    zipf: float = 1.1


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a plan.

    Attributes:
        part: What it belongs to.
        name: What is counted.
        value: The amount.
        unit: Its unit.
        formula: How it is computed.
    """

    part: str
    name: str
    value: float
    unit: Literal["bytes", "FLOP", "count", "seconds", "hours", "cost"]
    formula: str


# Measured, see benchmarks/planning.py: a process that has trained tables of nothing, without the buffers counted below.
BASE_BYTES = 690 << 20
# Rows in a shuffle buffer are tensors of their own.
_SHUFFLED_ROW_OVERHEAD = 200


def training_memory(sizes: Sizes, workers: int = 1, zipf: float = 1.1) -> list[Line]:
    """Memory of one worker; tables are divided over the workers, everything else is in each.

    Args:
        sizes: What is trained.
        workers: How many processes hold the tables.
        zipf: Exponent of the distribution of ids.
    """
    k, d = sizes.hidden_dim, sizes.output_dim
    wide, narrow = factorised_rows(sizes), direct_rows(sizes)
    features = len(sizes.vocabulary)
    state = _STATE[sizes.optimizer]
    tables = wide * (k or 0) + narrow * d
    state_floats = (wide * k * state(k) if k else 0) + narrow * d * state(d)
    projections = factorised_features(sizes) * (k or 0) * d
    dense = dense_parameters(sizes)
    touched = touched_rows(sizes, zipf)
    row = (k or d) + 2 * d
    batch = max(math.ceil(sizes.batch_size / workers), EVALUATION_BATCH)
    widths = activation_widths(sizes)
    record = FLOAT * (1 + sizes.num_dense + features)
    part = "training memory, a worker"
    over = f" / {workers} workers" if workers > 1 else ""
    return [
        Line(part, "tables", FLOAT * tables / workers, "bytes", f"4 (k * rows_k + d * rows_d){over}"),
        Line(
            part,
            "their optimizer state",
            FLOAT * state_floats / workers,
            "bytes",
            f"{_state_text(sizes)}{over}",
        ),
        Line(
            part,
            "projections and MLPs",
            4 * FLOAT * (projections + dense),
            "bytes",
            "4 (k d F_k + P) * 4: weights, state, gradients, copy",
        ),
        Line(
            part,
            "touched rows",
            3 * FLOAT * touched * row,
            "bytes",
            "4 U (k + 2 d) * 3: rows, gradients, scratch",
        ),
        Line(
            part,
            "activations",
            2 * FLOAT * batch * widths,
            "bytes",
            "4 max(B / N, 4096) (widths of all layers) * 2: values, gradients",
        ),
        *(
            [
                Line(
                    part,
                    "exchange of embeddings",
                    4 * FLOAT * sizes.batch_size * features * d,
                    "bytes",
                    "4 B F d * 4: own share, others', sent, received",
                )
            ]
            if workers > 1
            else []
        ),
        Line(
            part,
            "shuffle buffer",
            sizes.shuffle_rows * (record + _SHUFFLED_ROW_OVERHEAD),
            "bytes",
            "rows (4 (1 + D + F) + 200)",
        ),
        Line(part, "TensorFlow", BASE_BYTES, "bytes", "measured"),
    ]


def served_memory(sizes: Sizes) -> list[Line]:
    """The collapsed model: float32 tables of width d, the MLPs."""
    rows = sum(sizes.vocabulary)
    part = "served model"
    return [
        Line(part, "collapsed tables", FLOAT * rows * sizes.output_dim, "bytes", "4 d V"),
        Line(part, "MLPs", FLOAT * dense_parameters(sizes), "bytes", "4 P"),
    ]


def step_costs(sizes: Sizes, workers: int = 1, zipf: float = 1.1) -> list[Line]:
    """What one step moves and computes: network traffic per worker, everything else of all workers together."""
    k, d = sizes.hidden_dim, sizes.output_dim
    touched, batch = touched_rows(sizes, zipf), sizes.batch_size
    features = len(sizes.vocabulary)
    state = _STATE[sizes.optimizer](k or d)
    dense = dense_parameters(sizes)
    n = features + 1
    part = "a step"
    flop = batch * (6 * dense + 6 * n * n * d) + touched * 6 * (k or 0) * d
    lines = [
        Line(
            part,
            "touched rows U",
            touched,
            "count",
            "sum over features and ids i < V of 1 - (1 - p_i)^B, p_i ~ i^-zipf",
        ),
        Line(
            part,
            "bytes in tables and state",
            touched * FLOAT * (k or d) * (3 + 2 * state),
            "bytes",
            "4 U k (2 reads + 1 write + 2 state)",
        ),
        Line(
            part,
            "bytes of embeddings",
            4 * FLOAT * batch * features * d,
            "bytes",
            "4 B F d * 4: spread, summed back",
        ),
        Line(part, "floating point operations", flop, "FLOP", "B (6 P + 6 (F+1)^2 d) + 6 U k d"),
    ]
    if workers > 1:
        share = batch / workers
        embeddings = 2 * (workers - 1) * share * features * d * FLOAT
        ids = (workers - 1) * share * features * FLOAT
        projections = factorised_features(sizes) * (k or 0) * d
        gradients = 2 * (workers - 1) / workers * (dense + projections) * FLOAT
        lines.append(
            Line(
                part,
                "bytes that reach a worker",
                ids + embeddings + gradients,
                "bytes",
                "(N-1) (B/N) F (4 + 8 d) + 8 (N-1)/N (P + k d F_k)",
            )
        )
    return lines


def workers_needed(sizes: Sizes, machine: Machine) -> int:
    """Smallest number of workers whose memory holds a training.

    Raises:
        ValueError: What every worker holds does not fit by itself.
    """
    once = training_memory(sizes, zipf=machine.zipf)
    divided = sum(line.value for line in once[:2])
    everywhere = sum(line.value for line in once[2:])
    room = machine.memory_gib * 2**30 - everywhere
    if room <= 0:
        raise ValueError(
            f"{everywhere / 2**30:.1f} GiB are needed in every worker, which has {machine.memory_gib:g}"
        )
    return max(1, math.ceil(divided / room))


def make_plan(
    sizes: Sizes, machine: Machine, workers: int | None = None, beam_workers: int = 1
) -> list[Line]:
    """The whole plan.

    Args:
        sizes: What is trained.
        machine: What each worker can do.
        workers: Workers of the training; None takes the fewest that hold it.
        beam_workers: Workers that read the log.
    """
    needed = workers_needed(sizes, machine)
    workers = needed if workers is None else workers
    memory = training_memory(sizes, workers, machine.zipf)
    step = step_costs(sizes, workers, machine.zipf)
    served = served_memory(sizes)
    moved = step[1].value + step[2].value
    network = step[4].value if workers > 1 else 0.0
    seconds = {
        "arithmetic": step[3].value / (machine.gflops * 1e9 * workers),
        "memory": moved / (machine.memory_gbs * 1e9 * workers),
        "network": network / (machine.network_gbs * 1e9),
    }
    steps = sizes.rows // sizes.batch_size * sizes.epochs
    hours = steps * sum(seconds.values()) / 3600
    beam_hours = sizes.rows / (machine.ingest_rows * beam_workers) / 3600
    record = FLOAT * (1 + sizes.num_dense + len(sizes.vocabulary))
    return [
        Line("sizes", "rows of all tables V", sum(sizes.vocabulary), "count", "given"),
        Line("sizes", "of them factorised rows_k", factorised_rows(sizes), "count", "V_f > threshold"),
        Line(
            "sizes",
            "weights of the MLPs P",
            dense_parameters(sizes),
            "count",
            "sum of m n + n over the layers",
        ),
        Line("sizes", "training rows", sizes.rows, "count", "given"),
        *_with_sum(memory),
        Line(
            "workers",
            "needed by memory",
            needed,
            "count",
            "(tables + state) / (memory - the rest), rounded up",
        ),
        Line("workers", "planned N", workers, "count", "needed, or --workers"),
        *_with_sum(served),
        *step,
        *(Line("time", f"a step: {name}", value, "seconds", _RATES[name]) for name, value in seconds.items()),
        Line("time", "steps", steps, "count", "rows / B * epochs"),
        Line("time", "training", hours, "hours", "steps * (sum of the three)"),
        Line("time", "reading the log", beam_hours, "hours", f"rows / (rate * {beam_workers} Beam workers)"),
        Line(
            "disk", "packed rows", sizes.rows * record, "bytes", "rows 4 (1 + D + F), on each training worker"
        ),
        Line("cost", "training", hours * workers * machine.price, "cost", "hours N price"),
        Line(
            "cost",
            "reading the log",
            beam_hours * beam_workers * machine.price,
            "cost",
            "hours * Beam workers * price",
        ),
    ]


_RATES = {
    "arithmetic": "FLOP / (gflops N)",
    "memory": "bytes in tables, state and embeddings / (memory_gbs N)",
    "network": "bytes that reach a worker / network_gbs",
}


def _with_sum(lines: Sequence[Line]) -> list[Line]:
    total = sum(line.value for line in lines)
    return [*lines, Line(lines[0].part, "sum", total, "bytes", "of the above")]


def _state_text(sizes: Sizes) -> str:
    return {
        "sgd": "none",
        "adagrad": "as the tables",
        "row_wise_adagrad": "4 (rows_k + rows_d)",
        "lazy_adam": "2 * tables",
    }[sizes.optimizer]


def factorised_rows(sizes: Sizes) -> int:
    """Rows of factorised tables."""
    return sum(rows for rows in sizes.vocabulary if _factorised(sizes, rows))


def direct_rows(sizes: Sizes) -> int:
    """Rows of direct tables."""
    return sum(sizes.vocabulary) - factorised_rows(sizes)


def factorised_features(sizes: Sizes) -> int:
    """Number of factorised features."""
    return sum(_factorised(sizes, rows) for rows in sizes.vocabulary)


def _factorised(sizes: Sizes, rows: int) -> bool:
    if sizes.hidden_dim is None:
        return False
    return rows > (sizes.hidden_dim if sizes.direct_threshold is None else sizes.direct_threshold)


def dense_parameters(sizes: Sizes) -> int:
    """Weights and biases of the MLPs."""
    return sum(m * n + n for m, n in _layers(sizes))


def activation_widths(sizes: Sizes) -> int:
    """Floats a row that the layers give, embeddings and their products included."""
    features = len(sizes.vocabulary)
    return sum(n for _, n in _layers(sizes)) + features * sizes.output_dim * 2 + (features + 1) ** 2


def _layers(sizes: Sizes) -> list[tuple[int, int]]:
    d, n = sizes.output_dim, len(sizes.vocabulary) + 1
    bottom = [sizes.num_dense, *sizes.bottom_units, d]
    top = [d + n * (n - 1) // 2, *sizes.top_units, 1]
    return [pair for units in (bottom, top) for pair in itertools.pairwise(units)]


def touched_rows(sizes: Sizes, zipf: float = 1.1) -> float:
    """Expected number of distinct ids in a batch, over all features."""
    counts: Mapping[int, float] = {
        rows: _distinct(rows, sizes.batch_size, zipf) for rows in set(sizes.vocabulary)
    }
    return sum(counts[rows] for rows in sizes.vocabulary)


def _distinct(rows: int, batch: int, zipf: float) -> float:
    """Expected distinct ids of one feature: ids grow geometrically, those of a step are taken as alike."""
    edges = [1]
    while edges[-1] <= rows:
        edges.append(max(edges[-1] + 1, math.floor(edges[-1] * 1.02)))
    edges[-1] = rows + 1
    groups = list(itertools.pairwise(edges))
    weights = [((low + high - 1) / 2) ** -zipf for low, high in groups]
    total = sum(w * (high - low) for w, (low, high) in zip(weights, groups, strict=True))
    return sum(
        (high - low) * -math.expm1(batch * math.log1p(-min(w / total, 1 - 1e-12)))
        for w, (low, high) in zip(weights, groups, strict=True)
    )
