"""A folder has one writer at a time, and a dead writer blocks nobody."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
from filelock import FileLock, Timeout

from labelwise import lock
from labelwise.errors import ResourceError
from labelwise.lock import only_writer

HOLDER = """
import sys
from labelwise.lock import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()  # until it is killed
"""


def test_a_second_writer_is_refused_until_the_first_is_dead(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        with (
            pytest.raises(ResourceError, match="another program is writing into this folder"),
            only_writer(tmp_path),
        ):
            pass
        holder.kill()
    with only_writer(tmp_path):
        assert (tmp_path / lock.LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stays_empty_is_removed_and_no_other(tmp_path):
    with only_writer(tmp_path / "empty"):
        pass
    with only_writer(tmp_path / "full"):
        (tmp_path / "full" / "file").touch()
    (tmp_path / "own").mkdir()
    with only_writer(tmp_path / "own"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "own"]


def test_a_writer_that_came_while_the_lock_was_removed_holds_the_new_one(tmp_path):
    """The file of a lock is removed at its end; who had opened it before must not hold a file without a name."""
    with only_writer(tmp_path):
        late = FileLock(tmp_path / lock.LOCK, timeout=0)
        with pytest.raises(Timeout):
            late.acquire()
    with late:
        assert (tmp_path / lock.LOCK).exists()
        with pytest.raises(ResourceError, match="another program"), only_writer(tmp_path):
            pass


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="file"), only_writer(tmp_path / "file"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="another function locks there")
def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", refuse)
    with only_writer(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
