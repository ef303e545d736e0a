"""What makes a second run do its work again, and what the first one notes down."""

import os

from mlet_tf.pipeline.local_runner import fingerprint_of, store_config

from mlet_tf.config import load_config


def test_a_run_depends_on_configuration_schema_and_data(tmp_path):
    """An edited schema file of the same name left the run out: "Nothing to do"."""
    schema, log, config = (tmp_path / name for name in ("shop.yaml", "log.csv", "run.yaml"))
    schema.write_text("{name: shop, label: y, categoricals: [c, d]}")
    log.write_text("1\ta\tb\n")
    config.write_text(f"{{name: x, output: {tmp_path}, data: {{schema: {schema}, train: {log}}}}}")

    def fingerprint(*overrides):
        return fingerprint_of(load_config(config, overrides), [str(log)])

    first = fingerprint()
    assert fingerprint() == first
    found = {first, fingerprint("train.epochs=2")}
    schema.write_text("{name: shop, label: y, categoricals: [c], drop: [d]}")
    found.add(fingerprint())
    os.utime(log, (1, 1))
    found.add(fingerprint())
    assert len(found) == 4


def test_the_stored_configuration_means_the_same_in_any_folder(tmp_path, monkeypatch):
    """A command on a run looked for a schema below the folder that it was called in."""
    for name in ("start", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "start")
    (tmp_path / "start" / "shop.yaml").write_text("{name: shop, label: y, categoricals: [c, d]}")
    (tmp_path / "start" / "run.yaml").write_text(
        "{name: x, output: out, data: {schema: shop.yaml, train: logs/*.csv}}"
    )
    config = load_config("run.yaml", ["serving.push_to=pushed"])
    store_config(tmp_path / "start" / "out", config)
    monkeypatch.chdir(tmp_path / "elsewhere")
    stored = load_config(tmp_path / "start" / "out" / "config.yaml")
    assert stored.schema.categoricals == ("c", "d")
    assert stored.data.train == f"{tmp_path}/start/logs/*.csv" and stored.data.eval is None
    assert (stored.output, stored.push_to) == (f"{tmp_path}/start/out", f"{tmp_path}/start/pushed")
    store_config(tmp_path / "again", load_config(tmp_path / "start" / "run.yaml", ["data.schema=criteo"]))
    assert load_config(tmp_path / "again" / "config.yaml").data.schema == "criteo"
