"""Memory, bytes moved, time and cost of a training and its served model, by arithmetic alone.

`make_plan` turns sizes into a list of `Line`s, each with its formula. Nothing here imports TensorFlow.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from mlet_tf.sizes import (
    Sizes,
    activation_widths,
    dense_parameters,
    direct_rows,
    factorised_features,
    factorised_rows,
    touched_rows,
)

Unit = Literal["bytes", "FLOP", "count", "seconds", "hours", "cost"]

FLOAT = 4  # Bytes of a float32 and of an int32.
EVALUATION_BATCH = 4096

# Optimizer state per weight of a table of width w, in floats.
_STATE = {
    "sgd": lambda width: 0.0,
    "adagrad": lambda width: 1.0,
    "row_wise_adagrad": lambda width: 1.0 / width,
    "lazy_adam": lambda width: 2.0,
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Speed, memory and cost of a worker.

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
    unit: Unit
    formula: str


# Measured, see benchmarks/planning.py: a process that has trained empty tables, without the buffers counted below.
BASE_BYTES = 690 << 20
# Each row in a shuffle buffer is a tensor.
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
    over = f" / {workers} workers" if workers > 1 else ""
    lines: list[tuple[str, float, str]] = [
        ("tables", FLOAT * tables / workers, f"4 (k * rows_k + d * rows_d){over}"),
        ("their optimizer state", FLOAT * state_floats / workers, f"{_state_text(sizes)}{over}"),
        (
            "projections and MLPs",
            4 * FLOAT * (projections + dense),
            "4 (k d F_k + P) * 4: weights, state, gradients, copy",
        ),
        ("touched rows", 3 * FLOAT * touched * row, "4 U (k + 2 d) * 3: rows, gradients, scratch"),
        (
            "activations",
            2 * FLOAT * batch * widths,
            "4 max(B / N, 4096) (widths of all layers) * 2: values, gradients",
        ),
        (
            "shuffle buffer",
            sizes.shuffle_rows * (record + _SHUFFLED_ROW_OVERHEAD),
            "rows (4 (1 + D + F) + 200)",
        ),
        ("TensorFlow", BASE_BYTES, "measured"),
    ]
    if workers > 1:
        exchanged = 4 * FLOAT * sizes.batch_size * features * d
        lines.insert(
            5, ("exchange of embeddings", exchanged, "4 B F d * 4: own share, others', sent, received")
        )
    return [Line("training memory, a worker", name, value, "bytes", text) for name, value, text in lines]


def served_memory(sizes: Sizes) -> list[Line]:
    """The collapsed model: float32 tables of width d, the MLPs."""
    rows = sum(sizes.vocabulary)
    part = "served model"
    return [
        Line(part, "collapsed tables", FLOAT * rows * sizes.output_dim, "bytes", "4 d V"),
        Line(part, "MLPs", FLOAT * dense_parameters(sizes), "bytes", "4 P"),
    ]


def step_costs(sizes: Sizes, workers: int = 1, zipf: float = 1.1) -> list[Line]:
    """What one step moves and computes: network traffic per worker, all else summed over the workers."""
    k, d = sizes.hidden_dim, sizes.output_dim
    touched, batch = touched_rows(sizes, zipf), sizes.batch_size
    features = len(sizes.vocabulary)
    state = _STATE[sizes.optimizer](k or d)
    dense = dense_parameters(sizes)
    n = features + 1
    flop = batch * (6 * dense + 6 * n * n * d) + touched * 6 * (k or 0) * d
    lines: list[tuple[str, float, Unit, str]] = [
        (
            "touched rows U",
            touched,
            "count",
            "sum over features and ids i < V of 1 - (1 - p_i)^B, p_i ~ i^-zipf",
        ),
        (
            "bytes in tables and state",
            touched * FLOAT * (k or d) * (3 + 2 * state),
            "bytes",
            "4 U k (2 reads + 1 write + 2 state)",
        ),
        (
            "bytes of embeddings",
            4 * FLOAT * batch * features * d,
            "bytes",
            "4 B F d * 4: spread, summed back",
        ),
        ("floating point operations", flop, "FLOP", "B (6 P + 6 (F+1)^2 d) + 6 U k d"),
    ]
    if workers > 1:
        share = batch / workers
        embeddings = 2 * (workers - 1) * share * features * d * FLOAT
        ids = (workers - 1) * share * features * FLOAT
        projections = factorised_features(sizes) * (k or 0) * d
        gradients = 2 * (workers - 1) / workers * (dense + projections) * FLOAT
        lines.append(
            (
                "bytes that reach a worker",
                ids + embeddings + gradients,
                "bytes",
                "(N-1) (B/N) F (4 + 8 d) + 8 (N-1)/N (P + k d F_k)",
            )
        )
    return [Line("a step", *line) for line in lines]


def workers_needed(sizes: Sizes, machine: Machine) -> int:
    """Smallest number of workers whose memory holds a training.

    Raises:
        ValueError: What each worker holds besides tables does not fit.
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
