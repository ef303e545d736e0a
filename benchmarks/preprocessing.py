"""From raw logs to rows of ids: stock TFX, this pipeline, and Arrow (and polars) alone; then reading them.

CPU seconds of a process each, without its imports, on the same generated log of Criteo's columns (CSV with a
header, which is what the stock component reads). The log grows to show what depends on the number of rows.
"""

import argparse
import dataclasses
import importlib.util
import tempfile
from pathlib import Path

from benchmarks import _harness
from benchmarks._harness import Result, Worker, ratio, take_turns
from mlet_tf.datasets import CRITEO, write_log

SCHEMA = dataclasses.replace(CRITEO, separator=",", header=True)
STAGES = {"stock": 2, "ours": 3, "statistics": 2, "stock_statistics": 1, "arrow": 1, "polars": 1}


@dataclasses.dataclass
class Run:
    """CPU and wall seconds of the stages of a run, and the peak memory so far in bytes at the end of each."""

    rows: int
    seconds: list[float]
    wall: list[float]
    peaks: list[int]

    @property
    def total(self) -> float:
        """CPU seconds of all stages."""
        return sum(self.seconds)

    @property
    def peak_bytes(self) -> int:
        """Peak memory of the whole run."""
        return self.peaks[-1]

    def __str__(self) -> str:
        cpu, wall = (" + ".join(f"{s:.1f}" for s in seconds) for seconds in (self.seconds, self.wall))
        return (
            f"{self.rows / self.total:,.0f} rows/s ({cpu} s, wall {wall} s, {self.peak_bytes / 1e9:.2f} GB)"
        )


def measure(arguments: argparse.Namespace) -> list[Result]:
    """Runs what `--only` names, or everything."""
    parts = {"stock": _stock, "growth": _growth, "counting": _counting, "reading": _reading}
    chosen = parts.values() if arguments.only is None else [parts[arguments.only]]
    return [result for part in chosen for result in part(arguments)]


def _stock(arguments: argparse.Namespace) -> list[Result]:
    """Ours against stock TFX."""
    rows = _rows(arguments)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        log = _write(scratch, rows, arguments)
        ours, stock = (_run(variant, log, rows, scratch) for variant in ("ours", "stock"))
        summary, summary_stock = (
            _run(variant, log, rows, scratch) for variant in ("statistics", "stock_statistics")
        )
    examples = stock.seconds[0] / ours.seconds[0]
    everything = f"examples + vocabularies + transform, stock / ours, {rows:,} rows"
    return [
        _once(f"examples, stock / ours, {rows:,} rows", examples, 15, "higher"),
        _once(everything, stock.total / ours.total, 8, "higher", f"{stock} against {ours}"),
        _once(f"peak RSS, ours / stock, {rows:,} rows", ours.peak_bytes / stock.peak_bytes, None, "lower"),
        _once(
            f"statistics of all rows, stock / ours, {rows:,} rows",
            summary_stock.total / summary.seconds[0],
            None,
            "higher",
            f"{summary_stock} against {summary}",
        ),
        _once(
            f"peak RSS of them, ours / stock, {rows:,} rows",
            summary.peaks[0] / summary_stock.peak_bytes,
            None,
            "lower",
        ),
    ]


def _growth(arguments: argparse.Namespace) -> list[Result]:
    """Ours on a few and on many rows, and what Arrow or polars need for both."""
    rows = _rows(arguments)
    many = arguments.growth * rows
    frames = ["arrow", *(["polars"] if importlib.util.find_spec("polars") else [])]
    runs: dict[tuple[str, int], Run] = {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for count in (rows, many):
            log = _write(scratch, count, arguments)
            for variant in ("ours", "statistics", *frames):
                runs[variant, count] = _run(variant, log, count, scratch)
    few, larger = runs["ours", rows], runs["ours", many]
    growth = larger.total / arguments.growth / few.total
    name = f"time per row, ours, at {many:,} rows / at {rows:,}"
    results = [
        _once(name, growth, 1.2, "lower", f"{few}; {larger}"),
        _once(f"peak RSS, ours, {many:,} rows / 3 GB", larger.peak_bytes / 3e9, 1, "lower"),
    ]
    summary = runs["statistics", many]
    for what, seconds, peak in zip(("all rows", "2 % of them"), summary.seconds, summary.peaks, strict=True):
        name = f"statistics of {what} / the three stages, {many:,} rows"
        note = f"{seconds:.1f} s, {peak / 1e9:.2f} GB"
        results.append(_once(name, seconds / larger.total, None, "lower", note))
    for frame in frames:
        for count in (rows, many):
            ours, limit = runs["ours", count], runs[frame, count]
            name = f"ours / {frame}, {count:,} rows"
            results.append(_once(name, ours.total / limit.total, 3, "lower", str(limit)))
    return results


def _counting(arguments: argparse.Namespace) -> list[Result]:
    """Memory of adding up counts, a part of the values at a time against all at once."""
    runs = 4 if arguments.quick else 40
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:

        def run(max_values: int | None) -> tuple[dict[str, float], int]:
            worker = Worker("_counting_worker", {"folder": folder, "runs": runs, "max_values": max_values})
            try:
                before = worker.read()["peak_bytes"]
                answer = worker.run(1)
            finally:
                worker.close()
            return answer, answer["peak_bytes"] - before

        _, counting = run(None)
        whole, limit = run(1 << 62)
        results = []
        for max_values in (4_000_000, 500_000):
            part, peak = run(max_values)
            if part["loss"] != whole["loss"]:
                raise RuntimeError(f"{part['loss']:.0f} distinct values, expected {whole['loss']:.0f}")
            note = (
                f"{part['loss']:,.0f} distinct values; {peak / 1e6:.0f} MB and {part['seconds']:.1f} s against "
                f"{limit / 1e6:.0f} MB and {whole['seconds']:.1f} s; counting had {counting / 1e6:.0f} MB"
            )
            name = f"peak memory of adding up, {max_values:,} values at a time / all at once"
            results.append(_once(name, peak / limit, None, "lower", note))
    return results


def _rows(arguments: argparse.Namespace) -> int:
    return arguments.rows or (10_000 if arguments.quick else 200_000)


def _write(scratch: str, rows: int, arguments: argparse.Namespace) -> Path:
    path = Path(scratch) / f"rows_{rows}" / "log.csv"
    write_log(path, SCHEMA, rows, vocabulary=arguments.vocabulary)
    return path


def _reading(arguments: argparse.Namespace) -> list[Result]:
    """Reading packed rows against the training step, turn by turn."""
    turns, steps = (3, 5) if arguments.quick else (11, 40)
    results = []
    for batch in (512, 2048):
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
            spec = {"scratch": scratch, "batch": batch}
            workers = {
                variant: Worker("_reading_worker", {**spec, "variant": variant})
                for variant in ("step", "read")
            }
            times = take_turns(workers, turns, steps, warm_up=5)
        rates = {name: batch / _harness.quartiles(seconds)[0] for name, seconds in times.items()}
        note = f"{rates['read']:,.0f} against {rates['step']:,.0f} examples/s"
        results.append(
            ratio(
                f"examples/s read / trained on, batch {batch}",
                times["step"],
                times["read"],
                3,
                "higher",
                note,
            )
        )
    return results


def _run(variant: str, path: Path, rows: int, scratch: str) -> Run:
    folder = Path(scratch) / f"{variant}_{rows}"
    folder.mkdir()
    spec = {
        "variant": variant,
        "schema": SCHEMA.to_dict(),
        "path": str(path),
        "folder": str(folder),
        "examples": f"{scratch}/ours_{rows}/examples",
    }
    worker = Worker("_preprocessing_worker", spec)
    try:
        worker.read()
        answers = [worker.run(1) for _ in range(STAGES[variant])]
    finally:
        worker.close()
    return Run(rows, *([answer[key] for answer in answers] for key in ("seconds", "loss", "peak_bytes")))


def _once(name: str, value: float, goal: float | None, better: str, note: str = "") -> Result:
    return Result(name, value, value, value, goal, better, note)


if __name__ == "__main__":
    _harness.main(
        __doc__.splitlines()[0],
        measure,
        rows={"type": int, "help": "rows of the smaller log (200,000; with --quick 10,000)"},
        growth={"type": int, "default": 25, "help": "how many times larger the second log is (25)"},
        vocabulary={"type": int, "default": 20_000, "help": "categories of the largest column (20,000)"},
        only={"choices": ("stock", "growth", "counting", "reading"), "help": "one part"},
        scratch={"help": "folder for the generated logs and examples"},
    )
