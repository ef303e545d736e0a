"""What the benchmarks share: the command line, ratios with quartiles, and workers that run in turn.

Each variant lives in a process of its own, so that no heap, thread pool or cache setting of one reaches
another. They run in turn for a few steps at a time, and a ratio is taken within each turn: what disturbs the
machine for longer than a turn disturbs both sides.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mlet_tf import strict_json
from mlet_tf.network import bypass_proxy_for_loopback


@dataclasses.dataclass
class Result:
    """One line of a benchmark: a value between its quartiles, or the reason why there is none."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    goal: float | None
    better: Literal["lower", "higher"]
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the goal is met; None without a goal or a value."""
        if self.value is None or self.goal is None:
            return None
        return self.value <= self.goal if self.better == "lower" else self.value >= self.goal


def main(
    description: str, measure: Callable[[argparse.Namespace], Sequence[Result]], **extra: Any
) -> Sequence[Result]:
    """Runs a benchmark as a command: `--quick` for a smoke run, `--json FILE` to keep the results.

    Args:
        description: First line of the help text.
        measure: Takes the parsed arguments, returns the results.
        **extra: Further options, each a dict of `add_argument` arguments.

    Returns:
        The results.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it runs, not how fast")
    parser.add_argument("--json", type=Path, help="write the results here")
    for name, options in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    arguments = parser.parse_args()
    bypass_proxy_for_loopback()
    results = measure(arguments)
    print_table(results)
    if arguments.json:
        arguments.json.write_text(strict_json.dumps([dataclasses.asdict(r) for r in results], indent=1))
    return results


def print_table(results: Sequence[Result]) -> None:
    """Prints results in columns."""
    print(f"\n{'':60} {'value':>9} {'low':>9} {'high':>9}   goal")
    for r in results:
        if r.value is None:
            print(f"{r.name:60} not measured: {r.note}")
            continue
        sign = "<=" if r.better == "lower" else ">="
        goal = "" if r.goal is None else f"{sign} {r.goal:g} {'met' if r.passed else 'NOT MET'}"
        print(f"{r.name:60} {r.value:9.3f} {r.low:9.3f} {r.high:9.3f}   {goal} {r.note}".rstrip())


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns median, lower and upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


def ratio(
    name: str,
    above: Sequence[float],
    below: Sequence[float],
    goal: float | None,
    better: Literal["lower", "higher"],
    note: str = "",
) -> Result:
    """Compares two variants turn by turn."""
    value, low, high = quartiles([a / b for a, b in zip(above, below, strict=True)])
    return Result(name, value, low, high, goal, better, note)


class Worker:
    """A variant in a process of its own, which runs `python -m benchmarks.MODULE SPEC`.

    It answers each line on its standard input, a number of steps, by a line of JSON.
    """

    def __init__(
        self,
        module: str,
        spec: Mapping[str, Any],
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Starts the process; it builds its model while others are started."""
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
            env={
                **os.environ,
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "PYTHONWARNINGS": "ignore::FutureWarning",  # About the end of life of Python 3.11, of each library.
                "CUDA_VISIBLE_DEVICES": "",
                **single,
                **(env or {}),
            },
        )

    def read(self) -> dict[str, Any]:
        """Waits for the next answer; the first one comes when the model is ready."""
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"Worker ended with exit code {self._process.wait()}; its error is above")
        return json.loads(line)

    def run(self, steps: int) -> dict[str, Any]:
        """Runs some steps; returns `seconds` (CPU, per step), `loss` and `peak_bytes`."""
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def take_turns(workers: Mapping[str, Worker], turns: int, steps: int, warm_up: int) -> dict[str, list[float]]:
    """Runs the workers in turn and returns their CPU seconds per step, one value a turn. Closes them."""
    try:
        for worker in workers.values():
            worker.read()
            worker.run(warm_up)
        times: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(turns):
            for name, worker in workers.items():
                times[name].append(worker.run(steps)["seconds"])
        return times
    finally:
        for worker in workers.values():
            worker.close()


def serve(step: Callable[[int], float]) -> None:
    """The worker's side: calls `step(n)`, which runs n steps and returns the last loss, as asked."""
    import resource
    import time

    # The protocol has standard output for itself; whatever a library prints goes to standard error.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        values["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    answer(ready=True)
    for line in sys.stdin:
        steps = int(line)
        start = time.process_time()
        loss = step(steps)
        answer(seconds=(time.process_time() - start) / steps, loss=loss)
