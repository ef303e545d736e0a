import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_quick_soak(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORFLOW_MODEL_SERVER", raising=False)
    command = [
        sys.executable,
        "-m",
        "benchmarks.serving_soak",
        "--quick",
        "--json",
        tmp_path / "results.json",
    ]
    run = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    wrong, failed, misbehaving, *lives = json.loads((tmp_path / "results.json").read_text())
    assert (wrong["value"], failed["value"], misbehaving["value"], len(lives)) == (0, 0, 0, 2)
    assert int(wrong["note"].split()[0].replace(",", "")) > 500
    for code in ("REST 400", "REST 404", "REST 413", "gRPC INTERNAL", "gRPC RESOURCE_EXHAUSTED"):
        assert f"{code}: " in misbehaving["note"]
