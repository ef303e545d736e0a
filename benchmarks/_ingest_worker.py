"""Ingests one log again and again: the stock component or ours, on Beam's in-memory runner."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from tfx.components import CsvExampleGen
from tfx.components.example_gen.csv_example_gen import executor as csv_executor
from tfx.proto import example_gen_pb2
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from benchmarks import _harness
from components.click_log_example_gen import ClickLogExampleGen, executor
from mlet_tf.datasets import ClickLogSchema


def ingest(node: Any, do: Any, folder: str) -> None:
    """Runs an executor on what its component would hand it."""
    examples = standard_artifacts.Examples()
    examples.uri = folder
    properties = {
        key: value if isinstance(value, str | int) or value is None else proto_utils.proto_to_json(value)
        for key, value in node.exec_properties.items()
    }
    do({}, {"examples": [examples]}, properties)


def main() -> None:
    """Serves runs of the variant named on the command line."""
    spec = json.loads(sys.argv[1])
    if spec["variant"] == "CsvExampleGen":
        path = Path(spec["path"])
        files = example_gen_pb2.Input(splits=[example_gen_pb2.Input.Split(name="all", pattern=path.name)])
        node = CsvExampleGen(input_base=str(path.parent), input_config=files)
        do = csv_executor.Executor().Do
    else:
        node = ClickLogExampleGen(ClickLogSchema.from_dict(spec["schema"]), spec["path"])
        do = executor.Executor().Do

    def step(runs: int) -> float:
        for _ in range(runs):
            folder = tempfile.mkdtemp(dir=spec["scratch"])
            ingest(node, do, folder)
            shutil.rmtree(folder)
        return 0.0

    _harness.serve(step)


if __name__ == "__main__":
    main()
