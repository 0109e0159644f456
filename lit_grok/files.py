"""The one place that writes a file, and the one that says of a file that it cannot be read.

A file is replaced as a whole: its content goes to a temporary name beside it, is flushed to the disk, and takes the
place of the old one. Neither a kill, nor a full disk, nor a power cut can leave half of one under its name.
"""

import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class ReadError(ValueError):
    """A file is damaged or something else than it should be; the message names it."""


class WriteError(OSError):
    """A file could not be written; what was there before is whole, and the message names it."""


def write(path: str | Path, content: bytes | memoryview | str, keep: str | Path | None = None) -> None:
    """Write a file as a whole, or leave the old one.

    Args:
        path: The file; its folder is made where there is none.
        content: Bytes, or text to be encoded as UTF-8.
        keep: Where the old file goes, if there is one; in the same folder.

    Raises:
        WriteError: Where the disk is full, the folder is not to be written to, and so on. Nothing new is left behind.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for text in ("one", "two"):
        ...     write(folder / "last", text, keep=folder / "previous")
        >>> {path.name: path.read_text() for path in sorted(folder.iterdir())}
        {'last': 'two', 'previous': 'one'}
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):  # it has taken its place, or there never was a folder to put it into
            temporary.unlink()
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flush the names, too. Not every system offers it; the content is on the disk by now."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Say in one sentence that a file cannot be read, whatever its content makes a library raise.

    Args:
        path: The file.
        what: What it should be.

    Raises:
        ReadError: In place of any other exception, but for that of a file that does not exist.

    Example:
        >>> with reading("run/summary.json", "a list of records"):
        ...     [].index("status")
        Traceback (most recent call last):
        lit_grok.files.ReadError: run/summary.json: cannot be read as a list of records ('status' is not in list)
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, ReadError):
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ReadError(f"{path}: cannot be read as {what} ({reason})") from error


def check_archive(path: str | Path) -> None:
    """Compare the members of a zip archive, which a checkpoint and a dataset are, with their checksums.

    Raises:
        ReadError: Where they differ, and where a member is compressed: nothing here is, and a few bytes could unfold
            to more than the memory.
    """
    with reading(path, "an archive"), zipfile.ZipFile(path) as archive:
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise ValueError("it is compressed")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} is damaged")


def seal(content: bytes) -> bytes:
    """The content and its checksum behind it, which HDF5 ignores; from a damaged file its library may never return.

    Example:
        >>> seal(b"everything").split()
        [b'everything', b'crc32', b'0542f557']
    """
    return content + b"\ncrc32 %08x\n" % zlib.crc32(content)


def check_seal(path: str | Path) -> None:
    """Compare a file with the checksum that `seal` put behind it.

    Raises:
        ReadError: Where they differ.
    """
    with reading(path, "a file"):
        content = Path(path).read_bytes()
    if seal(content[: -len(seal(b""))]) != content:
        raise ReadError(f"{path}: damaged, or not written by lit_grok (its checksum is not that of its content)")
