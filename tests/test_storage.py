"""The file layer: the same on a disk, on TensorFlow's file systems and on fsspec's."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import mlet_tf
from mlet_tf import storage
from mlet_tf.errors import InputError


@pytest.fixture(params=["disk", "file", "memory", "ram"])
def folder(request, tmp_path) -> str:
    place = {"disk": str(tmp_path), "file": f"file://{tmp_path}"}
    return place.get(request.param, f"{request.param}://{uuid.uuid4().hex}/files")


def write(path: str, data: bytes) -> None:
    storage.make_folder(path.rpartition("/")[0])
    with storage.create_binary(path) as file:
        file.write(data)


def read(path: str) -> bytes:
    with storage.open_binary(path) as file:
        return file.read()


def test_files_are_written_found_moved_and_removed(folder):
    write(f"{folder}/a", b"")
    write(f"{folder}/inside/deep/b", b"12345")
    assert storage.entries(folder) == [("a", False), ("inside", True)]
    assert storage.names(f"{folder}/inside/") == ["deep"] and storage.names(f"{folder}/nowhere") == []
    assert storage.tree(folder) == ["a", "inside/deep/b"]
    assert storage.exists(f"{folder}/a") and not storage.is_folder(f"{folder}/a")
    assert storage.is_folder(f"{folder}/inside") and not storage.exists(f"{folder}/b")
    assert storage.file_size(f"{folder}/a") == 0 and storage.file_size(f"{folder}/inside/deep/b") == 5
    storage.move_file(f"{folder}/inside/deep/b", f"{folder}/a")
    assert read(f"{folder}/a") == b"12345"
    storage.copy_file(f"{folder}/a", f"{folder}/new/c")
    storage.move_folder(f"{folder}/new", f"{folder}/moved")
    assert read(f"{folder}/moved/c") == b"12345" and not storage.exists(f"{folder}/new/c")
    storage.remove(f"{folder}/moved")
    storage.remove(f"{folder}/moved")
    assert not storage.exists(f"{folder}/moved")


def test_a_file_that_is_not_there_is_an_input_error(folder):
    with pytest.raises(InputError, match=r"gone cannot be read: "):
        storage.open_binary(f"{folder}/gone")


def test_a_stamp_changes_with_the_content(folder):
    write(f"{folder}/a", b"1")
    first = storage.file_stamp(f"{folder}/a")
    assert storage.file_stamp(f"{folder}/a") == first
    write(f"{folder}/a", b"12")
    assert storage.file_stamp(f"{folder}/a") != first


def test_a_file_written_aside_comes_whole_or_not_at_all(folder):
    write(f"{folder}/page", b"old")
    with pytest.raises(ZeroDivisionError), storage.written_aside(f"{folder}/page") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert read(f"{folder}/page") == b"old" and storage.names(folder) == ["page"]
    with storage.written_aside(f"{folder}/page") as file:
        file.write(b"new")
        assert read(f"{folder}/page") == b"old"
    assert read(f"{folder}/page") == b"new" and storage.names(folder) == ["page"]


def test_a_local_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to("kept")
    storage.remove(tmp_path / "link")
    assert storage.names(tmp_path) == ["kept"]


@pytest.mark.parametrize("data", [b"name: caf\xc3\xa9\n", b"\xef\xbb\xbfname: caf\xc3\xa9\n"])
def test_text_is_read_with_and_without_a_mark(folder, data):
    write(f"{folder}/run.yaml", data)
    assert storage.read_text(f"{folder}/run.yaml") == "name: caf\u00e9\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            "name: a\ncity: K\u00f6ln\n".encode("latin-1"),
            r"byte 0xf6 in line 2, as in Latin-1 or Windows-1252",
        ),
        ("name: caf\u00e9\n".encode("utf-16"), r"UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`"),
        ("name: caf\u00e9\n".encode("utf-16-be"), r"UTF-16BE text"),
        ("name: caf\u00e9\n".encode("utf-32"), r"UTF-32 text"),
        (b"PK\x03\x04" + bytes(30), r"a zip archive"),
        (b"name: a\n" * 1000 + b"\0", r"a NUL byte"),
        (bytes(range(32)), r"binary data"),
    ],
)
def test_what_is_not_utf8_is_named_in_one_line(tmp_path, data, words):
    path = tmp_path / "run.yaml"
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"run\.yaml should be UTF-8 text\. Received: {words}") as error:
        storage.read_text(path)
    assert str(error.value).isprintable()


def test_a_scheme_that_nothing_opens_is_named():
    with pytest.raises(InputError, match="no file system for `nope://`"):
        storage.exists("nope://bucket/a")


def test_importing_it_loads_nothing_heavy():
    program = f"""
import sys, types
package = types.ModuleType("mlet_tf")
package.__path__ = [{str(Path(mlet_tf.__file__).parent)!r}]  # Without what the package itself imports.
sys.modules["mlet_tf"] = package
import mlet_tf.storage
print(sorted({{"tensorflow", "keras", "numpy", "pyarrow", "fsspec"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_what_a_killed_process_left_beside_a_file_is_removed_by_the_next_one(tmp_path):
    """`.NAME.PID.part` stayed for ever after a kill; what a process still writes stays."""
    target = tmp_path / "log.tsv"
    code = "import sys, pathlib; from mlet_tf import storage; print(storage.aside_path(pathlib.Path(sys.argv[1])))"
    run = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=True)
    left, mine, other = (
        Path(run.stdout.strip()),
        storage.aside_path(target),
        tmp_path / ".unfinished-x.log.tsv",
    )
    for path in (left, mine, other, storage.aside_path(tmp_path / "folder") / "inside"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    with storage.written_aside(target) as file:
        file.write(b"1")
    assert not left.exists() and mine.exists() and other.exists()
    assert read(str(target)) == b"1" and len(list(tmp_path.iterdir())) == 4
