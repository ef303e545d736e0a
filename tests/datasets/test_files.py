"""Finding the files of a log: every file below a folder or pattern is read or named, wherever it is stored."""

import gzip
import logging
import os
import socket
import uuid
from pathlib import Path

import pytest

from mlet_tf import storage
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.files import list_files, plain_name
from mlet_tf.datasets.reading import read_log
from mlet_tf.errors import InputError

PAIRS = ClickLogSchema.from_dict({"name": "pairs", "label": "y", "categoricals": ["c"], "separator": ","})


@pytest.fixture(params=["disk", "file", "memory", "ram"])
def folder(request, tmp_path) -> str:
    """An empty place: a local path, its address, a file system of fsspec and one of TensorFlow."""
    place = {"disk": str(tmp_path), "file": f"file://{tmp_path}"}
    return place.get(request.param, f"{request.param}://{uuid.uuid4().hex}/log")


def write(folder: str, *names: str) -> None:
    for name in names:
        storage.make_folder(f"{folder}/{name}".rpartition("/")[0])
        with storage.create_binary(f"{folder}/{name}") as file:
            file.write(f"1,{name}\n".encode())


def found(folder: str, pattern: str = "") -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in list_files(f"{folder}{pattern}")]


def test_a_folder_is_read_with_the_folders_inside_it(folder):
    write(folder, "b.csv", "day=1/a.csv", "day=1/hour=2/c.csv", "day=3/d.csv")
    everything = ["b.csv", "day=1/a.csv", "day=1/hour=2/c.csv", "day=3/d.csv"]
    assert found(folder) == found(folder, "/") == found(folder, "/*") == found(folder, "/**") == everything
    rows = [row["c"].decode() for table in read_log(folder, PAIRS) for row in table.to_pylist()]
    assert rows == everything


def test_an_empty_path_is_not_the_root_of_the_disk():
    with pytest.raises(InputError, match="Received: an empty text"):
        list_files("")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("/*.csv", ["x.csv"]),
        ("/**/*.csv", ["a/b/x.csv", "a/x.csv", "x.csv"]),
        ("/**/b/*", ["a/b/x.csv", "a/b/y.tsv"]),
        ("/a/**/x.csv", ["a/b/x.csv", "a/x.csv"]),
        ("/*/x.csv", ["a/x.csv"]),
        ("/[ab]/?.csv", ["a/x.csv"]),
        ("/**/**/*.tsv", ["a/b/y.tsv"]),
        ("/a*", ["a/b/x.csv", "a/b/y.tsv", "a/x.csv"]),
        ("/x.csv", ["x.csv"]),
    ],
)
def test_patterns_reach_as_deep_as_they_say(folder, pattern, names):
    write(folder, "x.csv", "a/x.csv", "a/b/x.csv", "a/b/y.tsv")
    assert found(folder, pattern) == names


def test_a_pattern_that_nothing_matches_is_an_error(folder):
    write(folder, "a/x.csv")
    for pattern in ("/*.csv", "/**/*.tsv", "/nowhere/*", "/a/x.csv/*", "/gone.csv"):
        with pytest.raises(InputError, match="No file found at"):
            found(folder, pattern)


def test_marker_files_are_left_out_and_named_once(folder, caplog):
    write(folder, "part-0.csv", "_SUCCESS", ".part-0.csv.crc", "_temporary/0/part-0.csv", "log.teacher.json")
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        assert found(folder) == ["part-0.csv"]
    (line,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    for name in ("_SUCCESS", ".part-0.csv.crc", "_temporary", "log.teacher.json"):
        assert f"{folder}/{name}" in line


def test_marker_files_are_read_where_the_pattern_asks_for_them(folder):
    write(folder, "_a.csv", ".b/c.csv", "d.json", "e.csv")
    assert found(folder, "/_*") == found(folder, "/_a.csv") == ["_a.csv"]
    assert found(folder, "/.b") == found(folder, "/.*/*.csv") == [".b/c.csv"]
    assert found(folder, "/*.json") == ["d.json"]


def test_what_no_pattern_asks_for_is_no_news(folder, caplog):
    write(folder, "a.csv", "b/c.csv", "b/d.json", "_SUCCESS", ".e.csv", ".git/f.csv")
    caplog.set_level(logging.WARNING)
    assert found(folder, "/**/*.csv") == ["a.csv", "b/c.csv"]
    (line,) = [record.getMessage() for record in caplog.records if "not read" in record.getMessage()]
    assert f"not read: {folder}/.e.csv, {folder}/.git (names" in line


def test_names_with_characters_of_patterns_are_names_first(folder):
    write(folder, "a[1].csv", "a1.csv")
    assert found(folder, "/a[1].csv") == ["a[1].csv"]


def test_relative_paths_and_patterns(tmp_path, monkeypatch):
    write(str(tmp_path), "x.csv", "a/x.csv")
    monkeypatch.chdir(tmp_path)
    assert list_files("**/*.csv") == list_files("**") == ["a/x.csv", "x.csv"]
    assert list_files("*.csv") == ["x.csv"]
    assert list_files("a") == ["a/x.csv"]


@pytest.mark.parametrize("data", ["", "/*", "/**/*.csv", "/inside/gone.csv"])
def test_a_link_to_nowhere_is_named(tmp_path, data):
    write(str(tmp_path), "a.csv", "inside/b.csv")
    (tmp_path / "inside" / "gone.csv").symlink_to("/no/such/file")
    with pytest.raises(
        InputError, match=r"inside/gone\.csv, a link to /no/such/file, cannot be read: No such"
    ):
        list_files(f"{tmp_path}{data}")


def test_a_link_to_nowhere_that_may_have_been_a_folder_is_named(tmp_path):
    write(str(tmp_path), "a.csv", "b/c.csv")
    (tmp_path / "latest").symlink_to("/no/such/folder")
    for pattern in ("/**/*.csv", "/*/c.csv"):
        with pytest.raises(InputError, match=r"latest, a link to /no/such/folder, cannot be read: No such"):
            found(str(tmp_path), pattern)
    assert found(str(tmp_path), "/*.csv") == ["a.csv"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(str(tmp_path / "elsewhere"), "a.csv", "deep/b.csv")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "link").symlink_to(tmp_path / "elsewhere")
    assert found(str(tmp_path / "log")) == ["link/a.csv", "link/deep/b.csv"]
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to("..")
    for data in ("", "/**/*.csv"):
        with pytest.raises(InputError, match=r"deep/up is a link to a folder that it is in"):
            list_files(f"{tmp_path}/log{data}")
    (tmp_path / "elsewhere" / "deep" / "up").unlink()
    (tmp_path / "log" / "self").symlink_to("self")
    with pytest.raises(InputError, match=r"self, a link to self, cannot be read: Too many levels"):
        list_files(f"{tmp_path}/log/*")


def test_a_file_that_two_links_lead_to_is_not_read_twice(tmp_path):
    write(str(tmp_path), "day=1/a.csv", "day=2/a.csv")
    (tmp_path / "latest").symlink_to("day=2")
    with pytest.raises(
        InputError, match=r"latest/a\.csv and .*day=2/a\.csv are the same file|day=2/a\.csv and .*latest"
    ):
        list_files(str(tmp_path))
    assert found(str(tmp_path), "/day=*") == ["day=1/a.csv", "day=2/a.csv"]


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match=r"pipe should be a file or a folder"):
        list_files(str(tmp_path))
    with pytest.raises(InputError, match=r"pipe should be a file or a folder"):
        list_files(str(tmp_path / "pipe"))
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        with pytest.raises(InputError, match=r"socket should be a file or a folder"):
            list_files(str(tmp_path))


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write(str(tmp_path), "a.csv", "closed/b.csv")
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    for data in ("", "/**/*.csv", "/*/*.csv"):
        with pytest.raises(InputError, match=r"closed cannot be read: Permission denied"):
            list_files(f"{tmp_path}{data}")


def test_an_empty_file_among_others_is_named(tmp_path):
    write(str(tmp_path), "a.csv")
    (tmp_path / "b.csv").touch()
    with pytest.raises(InputError, match=r"b\.csv is empty \(0 bytes\)"):
        list(read_log(str(tmp_path), PAIRS))
    (tmp_path / "b.csv").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match=r"b\.csv is empty \(0 bytes when uncompressed\)"):
        list(read_log(str(tmp_path), PAIRS))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/logs/a.tsv.gz", "a.tsv"),
        ("s3://b/a.tsv.zst", "a.tsv"),
        ("a.tsv", "a.tsv"),
        ("part-0", "part-0"),
        ("/a.b/.c", ".c"),
    ],
)
def test_a_file_has_one_name_however_it_is_compressed(path, name):
    """The split by hash goes by it."""
    assert plain_name(path) == name
