"""Files that appear whole or not at all."""

import errno
import os

import pytest

from sqlib.config import SqlibError
from sqlib.files import write_atomically


def test_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomically(path, b"first")
    write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file"]


def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SqlibError, match=r"cannot write .*file: No space left on device") as caught:
        write_atomically(path, b"new")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_no_trace(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_a_folder_is_one_sentence(tmp_path):
    (tmp_path / "blocked").write_text("")
    with pytest.raises(SqlibError, match="cannot write"):
        write_atomically(tmp_path / "blocked" / "file", b"new")


def test_advice_stands_at_the_end_of_the_error(tmp_path):
    (tmp_path / "blocked").write_text("")
    with pytest.raises(SqlibError, match=r"Free some room$"):
        write_atomically(tmp_path / "blocked" / "file", b"new", "Free some room")
