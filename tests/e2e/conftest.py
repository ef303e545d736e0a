"""What commands make of the one run, for several test files."""

from pathlib import Path
from typing import NamedTuple

import pytest
from tests_support import TIMEOUT


class Output(NamedTuple):
    """A folder that a command wrote, and what it printed."""

    folder: Path
    printed: str


@pytest.fixture(scope="session")
def written(finished_run, installed_command, tmp_path_factory):
    """Runs a command on the run in a process of its own, with a new folder as `--output`."""

    def run(*arguments) -> Output:
        folder = tmp_path_factory.mktemp("written") / "output"
        process = installed_command(*arguments, finished_run.output, "--output", folder)
        out, err = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0 and "Traceback" not in err, err
        return Output(folder, out)

    return run


@pytest.fixture(scope="session")
def shrunk(written) -> Output:
    """The run's model with tables a quarter of their size."""
    return written("shrink", "--ratio", 4)


@pytest.fixture(scope="session")
def report(written) -> Output:
    """The run's report."""
    return written("report")
