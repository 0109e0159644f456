import os
import zipfile
from pathlib import Path

import pytest

from lit_grok import files
from lit_grok.files import ReadError, WriteError, check_archive, check_seal, reading, seal, write


@pytest.mark.parametrize("content", ["text with a θ", b"bytes", memoryview(b"bytes"), "", b"x" * 10**6])
def test_what_is_written_is_what_is_there(tmp_path, content):
    write(tmp_path / "new" / "deep" / "file", content)
    expected = content.encode() if isinstance(content, str) else bytes(content)
    assert (tmp_path / "new" / "deep" / "file").read_bytes() == expected
    assert os.listdir(tmp_path / "new" / "deep") == ["file"]


def test_others_can_read_it(tmp_path):
    before = os.umask(0o022)
    try:
        write(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert oct((tmp_path / "file").stat().st_mode & 0o777) == "0o644"


def test_flushed_before_it_takes_its_place_and_its_name_afterwards(tmp_path, monkeypatch):
    write(tmp_path / "file", "old")
    events = []
    fsync, replace = os.fsync, os.replace

    def flushed(descriptor):
        what = os.readlink(f"/proc/self/fd/{descriptor}")
        events.append(("flush", os.path.isdir(what), "" if os.path.isdir(what) else Path(what).read_text()))
        fsync(descriptor)

    def replaced(source, target):
        events.append(("replace", Path(target).name, Path(source).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    write(tmp_path / "file", "new", keep=tmp_path / "before")
    assert events == [
        ("flush", False, "new"),
        ("replace", "before", "old"),
        ("replace", "file", "new"),
        ("flush", True, ""),
    ]


@pytest.mark.parametrize("keep", [False, True])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(full_disk, keep):
    folder, size = full_disk
    write(folder / "file", "old")
    with pytest.raises(WriteError, match=r"file: cannot be written \((No space left on device|File too large)\)"):
        write(folder / "file", b"x" * 2 * size, keep=folder / "before" if keep else None)
    assert os.listdir(folder) == ["file"]
    assert (folder / "file").read_text() == "old"


def test_a_folder_that_is_read_only(read_only):
    with pytest.raises(WriteError, match=r"file: cannot be written \((Read-only file system|Permission denied)\)"):
        write(read_only / "file", "x")
    with pytest.raises(WriteError, match="cannot be written"):
        write(read_only / "new" / "file", "x")


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "folder").touch()
    with pytest.raises(WriteError, match="folder/file: cannot be written"):
        write(tmp_path / "folder" / "file", "x")
    (tmp_path / "file" / "something").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"file: cannot be written \(Is a directory\)"):
        write(tmp_path / "file", "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write(tmp_path / "file", "old")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_a_folder_that_cannot_be_flushed_is_no_failure(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(files.os, "open", refused)
    write(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("error", [KeyError("name"), RecursionError(), MemoryError(), ValueError("two\nlines")])
def test_whatever_a_library_raises_is_one_sentence(error):
    with pytest.raises(ReadError, match=r"^x: cannot be read as a thing") as caught, reading("x", "a thing"):
        raise error
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is error


def test_a_missing_file_and_a_sentence_stay_what_they_are():
    for error in (FileNotFoundError("x"), ReadError("x: said already")):
        with pytest.raises(type(error)) as caught, reading("x", "a thing"):
            raise error
        assert caught.value is error


def archive(path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("member", b"0123456789" * 100)
    return path.read_bytes()


def test_archives(tmp_path):
    path = tmp_path / "archive"
    content = bytearray(archive(path))
    check_archive(path)
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ReadError, match="member"):
        check_archive(path)
    archive(path, zipfile.ZIP_DEFLATED)
    with pytest.raises(ReadError, match="it is compressed"):
        check_archive(path)


def test_a_seal_notices_every_flipped_byte_and_every_cut(tmp_path):
    whole = seal(b"the content of a file")
    path = tmp_path / "file"
    path.write_bytes(whole)
    check_seal(path)
    damaged = [whole[:i] + bytes([whole[i] ^ mask]) + whole[i + 1 :] for i in range(len(whole)) for mask in (1, 255)]
    for content in (*damaged, *(whole[:i] for i in range(len(whole))), whole + b"x", whole + whole, b"a foreign file"):
        path.write_bytes(content)
        with pytest.raises(ReadError, match="file: damaged, or not written by lit_grok"):
            check_seal(path)
