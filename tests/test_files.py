"""Files that appear whole or not at all."""

import errno
import os
import time

import pytest

from sqlib.checked import SqlibError
from sqlib.files import touch, write_atomically


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


# ---- file systems that refuse ----------------------------------------------------------------------------------------

REFUSALS = [errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL]


def refusing(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", REFUSALS)
def test_where_a_mode_cannot_be_set_files_are_written_all_the_same(tmp_path, monkeypatch, number):
    for name in ("chmod", "fchmod", "lchmod"):
        monkeypatch.setattr(os, name, refusing(number), raising=False)
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_where_nothing_can_be_flushed_to_disk_files_are_written_all_the_same(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refusing(number))
    write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_touch_sets_the_time_it_is_told_else_that_of_now(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    touch(path, 10**18)
    assert path.stat().st_mtime_ns == 10**18
    touch(path)
    assert abs(path.stat().st_mtime - time.time()) < 60


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("only_a_chosen_time", [True, False])
def test_where_no_time_can_be_set_a_file_is_touched_by_writing_it(tmp_path, monkeypatch, number, only_a_chosen_time):
    path, utime = tmp_path / "file", os.utime
    path.write_bytes(b"content")
    os.utime(path, (1, 1))

    def refuse(file, *args, ns=None):
        if ns is not None or not only_a_chosen_time:
            raise OSError(number, os.strerror(number))
        utime(file)

    monkeypatch.setattr(os, "utime", refuse)
    touch(path, 10**18)
    assert path.read_bytes() == b"content" and abs(path.stat().st_mtime - time.time()) < 60


def test_a_file_that_can_be_neither_dated_nor_written_is_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    monkeypatch.setattr(os, "utime", refusing(errno.EPERM))
    monkeypatch.setattr(os, "replace", refusing(errno.EROFS))
    with pytest.raises(SqlibError, match="cannot write .*file: Read-only file system"):
        touch(path)
