"""A file is read again exactly if it may have changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from labelwise.formats import is_dicom, nifti, once, read_geometry, write_image, write_labels
from labelwise.formats.label_maps import label_maps_among
from labelwise.formats.once import once_per_file
from labelwise.types import Volume


@pytest.fixture
def counted():
    """A reader that remembers, and the paths that it has really read."""
    read: list[Path] = []

    @once_per_file
    def content(path: Path) -> str:
        read.append(path)
        return path.read_text()

    return content, read


def test_a_file_that_has_settled_is_read_once(tmp_path, counted, monkeypatch):
    content, read = counted
    monkeypatch.setattr(once, "_SETTLED_NS", -1)
    file = tmp_path / "a"
    file.write_text("one")
    assert [content(file), content(file)] == ["one", "one"]
    assert read == [file]


def test_a_file_that_changed_a_moment_ago_is_read_again(tmp_path, counted, monkeypatch):
    content, read = counted
    monkeypatch.setattr(once, "_SETTLED_NS", 10**18)
    file = tmp_path / "a"
    file.write_text("one")
    content(file)
    file.write_text("two")
    assert content(file) == "two"
    assert len(read) == 2


@pytest.mark.parametrize("how", ["rewritten", "replaced"])
def test_another_content_of_equal_size_and_time_is_read(tmp_path, counted, monkeypatch, how):
    content, _ = counted
    monkeypatch.setattr(once, "_SETTLED_NS", -1)
    file = tmp_path / "a"
    file.write_text("one")
    assert content(file) == "one"
    before = file.stat()
    other = tmp_path / "b"
    other.write_text("two")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    if how == "replaced":
        other.replace(file)
    else:
        file.write_text("two")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        while file.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of the file system ticks
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert content(file) == "two"


def test_errors_are_not_kept(tmp_path, counted):
    content, _ = counted
    with pytest.raises(FileNotFoundError):
        content(tmp_path / "a")
    (tmp_path / "a").write_text("one")
    assert content(tmp_path / "a") == "one"


def test_only_so_many_files_are_kept(tmp_path, counted, monkeypatch):
    content, read = counted
    monkeypatch.setattr(once, "_SETTLED_NS", -1)
    monkeypatch.setattr(once, "_MOST", 2)
    files = [tmp_path / name for name in "abc"]
    for file in (*files, files[2], files[0]):
        file.write_text("x") if not file.exists() else None
        content(file)
    assert read == [*files, files[0]]


def test_headers_and_first_bytes_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(once, "_SETTLED_NS", -1)
    file = tmp_path / "a.nii.gz"
    write_image(file, Volume(np.zeros((1, 2, 3, 4), np.float32), np.eye(4)))
    opened: list[Path] = []
    monkeypatch.setattr(nifti, "_open", lambda path, of=nifti._open: opened.append(path) or of(path))
    assert read_geometry(file).shape == read_geometry(file).shape == (2, 3, 4)
    assert opened == [file]
    assert not is_dicom(file)


def test_that_no_file_of_a_folder_names_label_values_costs_no_second_look(tmp_path, monkeypatch):
    monkeypatch.setattr(once, "_SETTLED_NS", -1)
    files = [tmp_path / name for name in ("a.nii.gz", "b.nii", "c.nii.gz")]
    for file in files:
        write_image(file, Volume(np.zeros((1, 2, 3, 4), np.float32), np.eye(4)))
    labels = Volume(np.zeros((2, 3, 4), np.uint8), np.eye(4))
    write_labels(tmp_path / "named.nii.gz", labels, like=files[0], names=["", "liver"])
    opened: list[Path] = []
    monkeypatch.setattr(nifti, "_open", lambda path, of=nifti._open: opened.append(path) or of(path))
    monkeypatch.setattr(
        nifti.nibabel, "load", lambda path, of=nifti.nibabel.load: opened.append(path) or of(path)
    )
    for file in files:  # the first one is known since it gave its grid to the labels
        read_geometry(file)
    assert list(label_maps_among([*files, tmp_path / "named.nii.gz"])) == [tmp_path / "named.nii.gz"]
    assert opened == [*files[1:], tmp_path / "named.nii.gz", tmp_path / "named.nii.gz"]
