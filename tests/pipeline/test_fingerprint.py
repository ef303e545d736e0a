"""What makes a second run do its work again."""

import os

from mlet_tf.pipeline.local_runner import fingerprint_of

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
