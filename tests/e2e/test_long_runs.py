"""Whole runs that take minutes: a kill in the middle, and the real samples."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlet_tf.serving import list_versions

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).parents[2] / "configs"


def _run(config: Path, overrides: list[str], log: Path) -> subprocess.Popen:
    options = [text for override in overrides for text in ("--set", override)]
    command = [sys.executable, "-m", "mlet_tf.pipeline.cli.main", "run", "--config", str(config), *options]
    return subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT)


def _newest_checkpoint(output: Path) -> int:
    return max(
        (int(path.stem.split("-")[1]) for path in output.glob("work/*/checkpoints/*.index")), default=0
    )


def test_a_run_killed_in_training_goes_on_from_its_checkpoint(tmp_path, little_log):
    from conftest import CONFIG

    config, output, log = tmp_path / "config.yaml", tmp_path / "output", tmp_path / "log"
    config.write_text(CONFIG)
    overrides = [
        f"data.train={little_log}",
        f"output={output}",
        "train.epochs=60",
        "train.early_stopping_patience=null",
        "train.checkpoint_steps=4",
    ]
    process = _run(config, overrides, log)
    deadline = time.monotonic() + 900
    while _newest_checkpoint(output) < 9 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "serving").exists()
    assert not (output / "run.json").exists()
    assert _run(config, overrides, log).wait() == 0
    text = log.read_text()
    assert "Transform: unchanged" in text
    epoch = int(re.search(r"Resuming at epoch (\d+)", text)[1])
    assert epoch >= 2
    assert f"Epoch {epoch - 1}: " not in text and "Epoch 60: " in text
    assert list(list_versions(output / "serving" / "ctr")) == [1]


@pytest.mark.parametrize(
    ("config", "file", "rows"),
    [("criteo_sample", "criteo_sample.tsv.gz", 13_513), ("avazu_sample", "avazu_sample.csv.gz", 205_855)],
)
def test_real_samples_end_with_a_pushed_model(tmp_path, samples, config, file, rows):
    overrides = [f"data.train={samples / file}", f"output={tmp_path / 'output'}"]
    assert _run(CONFIGS / f"{config}.yaml", overrides, tmp_path / "log").wait() == 0
    run = json.loads((tmp_path / "output" / "run.json").read_text())
    assert run["rows"]["read"] == rows
    assert run["rows"]["train"] + run["rows"]["eval"] + run["rows"]["rejected"] == rows
    assert Path(run["pushed"], "saved_model.pb").exists()
    aucs = [run["metrics"][model]["auc"] for model in ("collapsed", "uncollapsed")]
    assert aucs[0] == pytest.approx(aucs[1], abs=1e-6) and aucs[0] > 0.65


def test_a_log_without_a_click_is_not_pushed(tmp_path, little_log, command):
    """The gate blessed it: AUC, calibration and normalised entropy are no numbers, and `run.json` had bare NaN."""
    from conftest import CONFIG

    rows = [line.partition("\t")[2] for line in little_log.read_text().splitlines(keepends=True)]
    log, config, output = tmp_path / "log.tsv", tmp_path / "config.yaml", tmp_path / "output"
    log.write_text("".join(f"0\t{row}" for row in rows[:2000]))
    config.write_text(CONFIG)
    code, out, err = command(
        "run", "--config", config, "--set", f"data.train={log}", "--set", f"output={output}"
    )
    assert code == 3, err
    assert "Gate: auc of all rows is nan, expected a number (all labels are 0)" in err
    assert "auc undefined" in out

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    for file in output.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=refuse)
    run = json.loads((output / "run.json").read_text())
    assert run["metrics"]["collapsed"]["auc"] is None and run["pushed"] is None
    assert [check["metric"] for check in run["gate_checks"] if not check["passed"]] == [
        "auc",
        "calibration",
        "normalized_entropy",
    ]
    code, out, err = command("report", output)
    assert code == 0, err
    page = Path(out.strip()).read_text()
    assert "undefined" in page and ">not blessed<" in page
