"""The order in which workers get test files."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from scheduling import LONG, ON_ONE_RUN, pytest_collection_modifyitems, pytest_xdist_make_scheduler


def test_the_files_named_are_there():
    assert all((Path(__file__).parent / name).is_file() for name in (*ON_ONE_RUN, *LONG))


def test_files_on_the_one_run_are_one_piece_of_work_and_come_first():
    names = ["tests/test_storage.py", f"tests/{LONG[0]}", f"tests/{ON_ONE_RUN[1]}", f"tests/{ON_ONE_RUN[0]}"]
    items = [SimpleNamespace(path=Path("/anywhere", name)) for name in names]
    pytest_collection_modifyitems(items)
    assert [str(item.path) for item in items] == [f"/anywhere/{name}" for name in reversed(names)]
    config = SimpleNamespace(
        getoption=lambda name: "loadfile",
        getvalue=lambda name: ["popen"] * 2,
        option=SimpleNamespace(loadscopereorder=True),
    )
    pytest.importorskip("xdist")
    scheduler = pytest_xdist_make_scheduler(config, None)
    assert not config.option.loadscopereorder
    scopes = [scheduler._split_scope(f"{name}::test_a[1]") for name in names]
    assert scopes == [names[0], names[1], ON_ONE_RUN[0], ON_ONE_RUN[0]]
