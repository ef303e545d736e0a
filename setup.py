"""Build script; all metadata is in pyproject.toml.

Beam's `--setup_file` and the container image need a `setup.py`, so it stays.
"""

from setuptools import setup

setup()
