"""Build script: maps the folders `pipeline` and `components` to `mlet_tf.pipeline` and `mlet_tf.components`.

All other metadata is in pyproject.toml. Beam's `--setup_file` and the container image need a `setup.py` too.
"""

from setuptools import find_packages, setup

MAPPED = ("pipeline", "components")

setup(
    packages=[
        *find_packages(include=["mlet_tf", "mlet_tf.*"]),
        *(f"mlet_tf.{name}" for top in MAPPED for name in find_packages(include=[top, f"{top}.*"])),
    ],
    package_dir={f"mlet_tf.{top}": top for top in MAPPED},
)
