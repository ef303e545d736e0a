"""Packing the rows of a finished run again, where something is in the way."""

import resource
import shutil
from pathlib import Path

import pytest

from mlet_tf.datasets import CRITEO
from mlet_tf.errors import InputError
from mlet_tf.features.ingestion.report import read_ingest_report, write_ingest_report
from mlet_tf.features.packing import pack_examples
from mlet_tf.features.transform_graph import TransformGraph


def test_disk_full_while_rows_are_packed(finished_run, tmp_path):
    """The message names the folder; once there is room the same call goes on."""
    artifacts = finished_run.result["artifacts"]
    transform = TransformGraph(artifacts["transform_graph"])
    train, folder = f"{artifacts['examples']}/Split-train/*", tmp_path / "packed" / "train"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(InputError, match=f"{folder} cannot be written: .*File too large"):
            pack_examples([train], CRITEO, transform, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    packed = [
        pack_examples([train], CRITEO, transform, where) for where in (folder, tmp_path / "packed" / "whole")
    ]
    assert Path(packed[0].path).read_bytes() == Path(packed[1].path).read_bytes()
    assert packed[0].rows == finished_run.result["rows"]["train"]


def test_rows_that_got_lost_are_noticed_by_the_trainer(finished_run, tmp_path):
    artifacts = finished_run.result["artifacts"]
    shutil.copytree(artifacts["examples"], tmp_path / "examples")
    report = read_ingest_report(tmp_path / "examples")
    report["rows"]["eval"] += 1
    write_ingest_report(tmp_path / "examples", report)
    transform = TransformGraph(artifacts["transform_graph"])
    with pytest.raises(InputError, match=rf"{report['rows']['eval']} rows were written, \d+ can be read"):
        pack_examples([f"{tmp_path}/examples/Split-eval/*"], CRITEO, transform, tmp_path / "packed" / "eval")
    assert list((tmp_path / "packed").iterdir()) == []
