"""Speed and memory of training: ours against direct embeddings, PyTorch, Keras and TFRS.

`python -m benchmarks.training [--quick] [--json FILE] [--only PART ...] [--torch-python PYTHON]`

DLRM 512-256-d / 512-256-1 on 13 numbers and 26 categorical features of Criteo's vocabulary sizes, Zipf 1.1 ids,
Adagrad, one thread, k=64, d=16, a million rows unless said. Seconds are CPU seconds of the process per step.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks._harness import Result, Worker, main, quartiles, ratio, take_turns

_BATCHES = (128, 2048, 8192)
_MILLION = 1_000_000
_TURNS = 11
_SMALL_BATCH = 256


def measure(arguments: argparse.Namespace) -> list[Result]:
    """Runs the chosen parts."""
    parts = {
        "ratios": measure_ratios,
        "bfloat16": measure_bfloat16,
        "keras": measure_keras,
        "rows": measure_rows,
        "ablation": measure_ablation,
        "floor": measure_floor,
        "memory": measure_memory,
        "collapse": measure_collapse,
    }
    return [r for name, part in parts.items() if name in (arguments.only or parts) for r in part(arguments)]


def measure_ratios(arguments: argparse.Namespace) -> list[Result]:
    """MLET against direct, PyTorch and stock TFRS at three batch sizes."""
    goals = {
        # batch: direct, torch direct, torch MLET, TFRS
        128: (1.20, 2.0, 2.7, 1.5),
        2048: (1.10, 1.2, 1.5, 1.3),
        8192: (1.08, 1.2, 1.35, None),
    }
    batches = (128,) if arguments.quick else _BATCHES
    return [r for batch in batches for r in _compare_peers(arguments, batch, goals[batch])]


def measure_bfloat16(arguments: argparse.Namespace) -> list[Result]:
    """The same with bfloat16 products and float32 tables on all sides, PyTorch by its autocast."""
    batches = (128,) if arguments.quick else _BATCHES[:2]
    return [r for batch in batches for r in _compare_peers(arguments, batch, (None,) * 4, bfloat16=True)]


def _compare_peers(
    arguments: argparse.Namespace, batch: int, goals: Sequence[float | None], bfloat16: bool = False
) -> list[Result]:
    model = {"dtype": "mixed_bfloat16"} if bfloat16 else {}
    policy = {"policy": "mixed_bfloat16"} if bfloat16 else {}
    workers = {
        "mlet": _ours(batch=batch, model=model),
        "direct": _ours(batch=batch, model=model, k=None),
        "tfrs": _worker("tfrs", batch=batch, env={"TF_USE_LEGACY_KERAS": "1"}, **policy),
    }
    if bfloat16:
        workers["float32"] = _ours(batch=batch)
    torch_missing = _missing_torch(arguments.torch_python)
    if not torch_missing:
        workers["torch direct"] = _torch(arguments, batch=batch, k=None, autocast=bfloat16)
        workers["torch MLET"] = _torch(arguments, batch=batch, autocast=bfloat16)
    times = _time(workers, batch, arguments.quick)
    end = f", bfloat16, batch {batch}" if bfloat16 else f", batch {batch}"
    direct, torch_direct, torch_mlet, tfrs = goals
    results = [_compare(f"MLET / direct{end}", times, "mlet", "direct", direct, "lower")]
    if bfloat16:
        results.append(
            _compare(f"MLET bfloat16 / float32, batch {batch}", times, "mlet", "float32", None, "lower")
        )
    for label, key, goal in (
        ("PyTorch direct / MLET", "torch direct", torch_direct),
        ("PyTorch MLET / MLET", "torch MLET", torch_mlet),
        ("TFRS with projections / MLET", "tfrs", tfrs),
    ):
        if key in times:
            results.append(_compare(label + end, times, key, "mlet", goal, "higher"))
        else:
            results.append(Result(label + end, None, None, None, goal, "higher", torch_missing))
    return results


def measure_keras(arguments: argparse.Namespace) -> list[Result]:
    """Keras 3's Embedding, Dense and Adagrad at 5M rows, and stock TFRS on Keras 3, whose Adagrad this is."""
    rows = _MILLION if arguments.quick else 5 * _MILLION
    alone = {"mlet": _ours(rows=rows), "keras": _worker("keras", rows=rows)}
    # A step of Keras takes seconds.
    few = {"turns": 1 if arguments.quick else 5, "steps": 2, "warm_up": 2}
    name = f"Keras Embedding + Dense + Adagrad / MLET, {rows // _MILLION}M rows, batch 2048"
    results = [_compare(name, take_turns(alone, **few), "keras", "mlet", 20, "higher")]
    for batch in (2048,) if arguments.quick else (128, 2048):
        env = {"TF_USE_LEGACY_KERAS": "0"}
        workers = {"mlet": _ours(batch=batch), "tfrs": _worker("tfrs", batch=batch, env=env)}
        steps = 32 if batch <= _SMALL_BATCH else 4  # What one call of a small-batch variant runs.
        times = take_turns(workers, **{**few, "steps": steps, "warm_up": steps})
        name = f"TFRS on Keras 3 with projections / MLET, batch {batch}"
        results.append(_compare(name, times, "tfrs", "mlet", None, "higher"))
    return results


def measure_rows(arguments: argparse.Namespace) -> list[Result]:
    """Step time at 30M rows against 1M, k=16."""
    rows = 3 * _MILLION if arguments.quick else 30 * _MILLION
    workers = {"large": _ours(rows=rows, k=16), "small": _ours(k=16)}
    times = _time(workers, 2048, arguments.quick)
    name = f"MLET at {rows // _MILLION}M rows / at 1M rows, k=16, batch 2048"
    return [_compare(name, times, "large", "small", 1.10, "lower")]


def measure_ablation(arguments: argparse.Namespace) -> list[Result]:
    """What a step costs without one of the tricks, batch 2048."""
    tuned_malloc = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**36)}
    variants: dict[str, dict[str, Any]] = {
        "ids not made distinct": {"model": {"deduplicate": False}},
        "dense part compiled by XLA": {"model": {"jit_compile_dense": True}},
        "row-wise Adagrad": {"optimizer": "RowWiseAdagrad"},
        "SGD (no optimizer state)": {"optimizer": "SparseSGD"},
        "malloc keeps freed memory": {"env": tuned_malloc},
        "no streaming AUC and logloss": {"metrics": False},
    }
    workers = {"all": _ours(), **{name: _ours(**options) for name, options in variants.items()}}
    times = _time(workers, 2048, arguments.quick)
    return [_compare(f"ablation: {name} / MLET", times, name, "all", None, "lower") for name in variants]


def measure_floor(arguments: argparse.Namespace) -> list[Result]:
    """Step time against what the matrix products and row updates take by themselves on this machine."""
    results = []
    for batch in (2048,) if arguments.quick else (128, 2048):
        workers = {
            "mlet": _ours(batch=batch),
            "floor": _worker("floor", batch=batch),
            "products": _worker("floor", batch=batch, products_only=True),
        }
        times = _time(workers, batch, arguments.quick)
        note = "floor = same-sized products, reads and row updates alone, in TensorFlow"
        results += [
            _compare(f"MLET / floor, batch {batch}", times, "mlet", "floor", None, "lower", note),
            _compare(
                f"matrix products alone / MLET, batch {batch}", times, "products", "mlet", None, "lower"
            ),
        ]
    return results


def measure_memory(arguments: argparse.Namespace) -> list[Result]:
    """Peak memory of training with row-wise Adagrad, 30M rows, k=16, d=4."""
    rows = (3 if arguments.quick else 30) * _MILLION
    worker = _ours(rows=rows, k=16, d=4, optimizer="RowWiseAdagrad")
    try:
        worker.read()
        peak = worker.run(5)["peak_bytes"]
    finally:
        worker.close()
    idle = _worker("idle")
    try:
        base = idle.read()["peak_bytes"]
    finally:
        idle.close()
    held = rows * (16 + 1) * 4
    name, gib = f"{rows // _MILLION}M rows", 2**30
    note = f"{peak / gib:.2f} GiB; {base / gib:.2f} of it TensorFlow, {held / gib:.2f} tables and state"
    whole, ours = peak / held, (peak - base) / held
    return [
        Result(f"peak memory / (tables + state), {name}", whole, whole, whole, 1.25, "lower", note),
        Result(f"the same without TensorFlow's own, {name}", ours, ours, ours, None, "lower"),
    ]


def measure_collapse(arguments: argparse.Namespace) -> list[Result]:
    """Collapse of a [5M, 64] table to d=16: seconds and peak memory."""
    rows = (1 if arguments.quick else 5) * _MILLION
    worker = Worker("_tf_worker", {"kind": "collapse", "rows": rows, "k": 64, "d": 16})
    try:
        before = worker.read()["peak_bytes"]
        runs = [worker.run(1) for _ in range(1 if arguments.quick else 3)]
    finally:
        worker.close()
    seconds = quartiles([run["seconds"] for run in runs])
    extra = (runs[0]["peak_bytes"] - before) / (rows * 16 * 4)
    name = f"collapse of {rows // _MILLION}M x 64 to 16"
    return [
        Result(f"{name}: CPU seconds", *seconds, None, "lower"),
        Result(f"{name}: peak memory added / result", extra, extra, extra, None, "lower"),
    ]


def _worker(kind: str, env: dict[str, str] | None = None, **spec: Any) -> Worker:
    spec = {"kind": kind, "rows": _MILLION, "batch": 2048, "k": 64, "d": 16, "batches": 20, **spec}
    if spec["batch"] <= _SMALL_BATCH:
        spec["steps_per_execution"] = 32
    return Worker("_tf_worker", spec, env=env)


def _ours(**options: Any) -> Worker:
    return _worker("ours", **options)


def _torch(arguments: argparse.Namespace, **spec: Any) -> Worker:
    spec = {"rows": _MILLION, "batch": 2048, "k": 64, "d": 16, "batches": 20, **spec}
    return Worker("_torch_worker", spec, python=arguments.torch_python)


def _missing_torch(python: str) -> str:
    """Returns why PyTorch cannot be measured, or nothing."""
    found = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0
    return "" if found else "torch is not installed"


def _time(workers: dict[str, Worker], batch: int, quick: bool) -> dict[str, list[float]]:
    # About a second a turn, and a multiple of what one call of a small-batch variant runs.
    steps = 32 * max(1, 16_384 // batch // 32) if batch <= _SMALL_BATCH else max(2, 16_384 // batch)
    return take_turns(workers, turns=2 if quick else _TURNS, steps=steps, warm_up=steps)


def _compare(name: str, times: dict[str, Sequence[float]], above: str, below: str, *rest: Any) -> Result:
    result = ratio(name, times[above], times[below], *rest)
    a, b = (1e3 * quartiles(times[x])[0] for x in (above, below))
    result.note = f"{a:.1f} / {b:.1f} ms {result.note}".strip()
    return result


if __name__ == "__main__":
    main(
        __doc__.splitlines()[0],
        measure,
        only={
            "nargs": "+",
            "metavar": "PART",
            "help": "ratios bfloat16 keras rows ablation floor memory collapse",
        },
        torch_python={"default": sys.executable, "help": "interpreter that has torch"},
    )
