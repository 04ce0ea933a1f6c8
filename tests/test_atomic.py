"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from labelwise.atomic import atomic_path, discard_leftovers, explained, write_json, write_new_json, write_text
from labelwise.errors import ResourceError


def test_the_temporary_file_lies_beside_and_keeps_the_suffixes(tmp_path):
    with atomic_path(tmp_path / "new" / "scan.nii.gz") as temporary:
        assert temporary.parent == tmp_path / "new"
        assert temporary.name.endswith(".scan.nii.gz")
        temporary.write_text("x")
        assert not (tmp_path / "new" / "scan.nii.gz").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["scan.nii.gz"]


def write_half(path: Path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        if path.suffix:
            temporary.write_text("half")
        else:
            temporary.mkdir()
        raise error


@pytest.mark.parametrize("error", [ValueError("a defect"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(type(error)):
        write_half(tmp_path / "a.txt", error)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_folders_replace_folders(tmp_path):
    for content in ("old", "new"):
        with atomic_path(tmp_path / "model") as temporary:
            temporary.mkdir()
            write_text(temporary / content, content)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    with pytest.raises(ZeroDivisionError):
        write_half(tmp_path / "model", ZeroDivisionError())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "no permission"),
    ],
)
def test_errors_of_the_system_say_what_to_do(tmp_path, number, words):
    with pytest.raises(ResourceError, match=words) as caught, atomic_path(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))
    assert caught.value.file == tmp_path / "a.txt"
    assert caught.value.do
    with pytest.raises(ResourceError, match=words), explained(tmp_path / "a.txt"):
        raise OSError(number, os.strerror(number))


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    with pytest.raises(ResourceError, match="a folder of this name is in the way"):
        write_text(tmp_path, "text")
    assert not list(tmp_path.parent.glob(f".*.{tmp_path.name}"))


def test_an_unexpected_error_of_the_system_stays_what_it_is(tmp_path):
    with pytest.raises(OSError, match="I/O"), atomic_path(tmp_path / "a.txt"):
        raise OSError(errno.EIO, "I/O")


def test_json_is_for_people_and_strict(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


WRITER = """
import os, signal, sys
from labelwise.atomic import atomic_path, discard_leftovers, explained, write_json, write_new_json, write_text
with atomic_path(sys.argv[1]) as temporary:
    temporary.mkdir() if sys.argv[2] == "folder" else temporary.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_program_left_is_removed_and_what_others_write_now_stays(tmp_path, kind):
    subprocess.run([sys.executable, "-c", WRITER, tmp_path / "a.txt", kind], check=False)
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1
    for name in ("a.txt", ".hidden", ".tmpAbCdEf"):
        (tmp_path / name).touch()
    with atomic_path(tmp_path / "a.txt") as mine:
        mine.touch()
        alive = mine.name.replace(f"{os.getpid():06x}", f"{os.getppid():06x}", 1)
        (tmp_path / alive).touch()
        discard_leftovers(tmp_path / "b.txt")
        assert left[0] in {path.name for path in tmp_path.iterdir()}, "of another file"
        discard_leftovers(tmp_path / "*")
        assert {path.name for path in tmp_path.iterdir()} == {
            mine.name,
            alive,
            "a.txt",
            ".hidden",
            ".tmpAbCdEf",
        }


def test_what_another_machine_left_stays_for_a_day(tmp_path):
    for name in (".00abcd01ffff.one", ".00abcd02ffff.two", "one"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / ".00abcd02ffff.two", (0, 0))
    discard_leftovers(tmp_path / "*")
    assert {path.name for path in tmp_path.iterdir()} == {".00abcd01ffff.one", "one"}


def test_the_next_text_tidies_what_the_writer_of_weights_left_only_with_weights(tmp_path):
    (tmp_path / ".tmpAbCdEf").touch()
    os.utime(tmp_path / ".tmpAbCdEf", (0, 0))
    write_text(tmp_path / "a.txt", "a")
    assert (tmp_path / ".tmpAbCdEf").exists()
    discard_leftovers(tmp_path / "last.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_of_several_processes_that_begin_a_file_one_does(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda number: write_new_json(tmp_path / "plan.json", number), range(8)))
    assert won.count(True) == 1
    assert json.loads((tmp_path / "plan.json").read_text()) == won.index(True)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_folders_of_several_writers_replace_each_other(tmp_path):
    def write(content: str) -> None:
        for _ in range(30):
            with atomic_path(tmp_path / "model") as temporary:
                temporary.mkdir()
                (temporary / "weights").write_text(content)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, "abc"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() in "abc"


def test_an_old_folder_is_removed_when_the_new_one_is_in_its_place(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    seen = []

    def remove(folder: Path, **_: object) -> None:
        seen.append(([file.name for file in folder.iterdir()], (tmp_path / "model" / "new").exists()))

    monkeypatch.setattr("labelwise.atomic.shutil.rmtree", remove)
    with atomic_path(tmp_path / "model") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert seen == [(["old"], True)]
