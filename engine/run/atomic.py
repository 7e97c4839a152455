"""Hashes files and writes them atomically.

Uses only the standard library, because every exported folder has a copy of this file.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from engine.errors import UserError


def sha256(path: str | Path) -> str:
    """Returns the hexadecimal SHA-256 of a file or, for a folder, of the checksums of all its files."""
    if os.path.isdir(path):
        sums = [sha256(file) for file in sorted(Path(path).rglob("*")) if file.is_file()]
        return hashlib.sha256("".join(sums).encode()).hexdigest()
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def open_nofollow(path: Path, append: bool = False) -> TextIO:
    """Opens a file with a predictable name for writing, without following symbolic links.

    append: keep the existing content; otherwise the file must not exist.
    """
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | (os.O_APPEND if append else os.O_EXCL)
    return open(os.open(path, flags, 0o666), "a" if append else "w", encoding="utf-8", newline="")


@contextmanager
def atomic_file(path: str | Path, durable: bool = False) -> Iterator[TextIO]:
    """Yields a text file to write, and moves it to `path` when it is complete.

    durable: flush it to disk first, so that it is complete even after a power failure.
    """
    path = Path(path)
    require_file(path)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with open_nofollow(temporary) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def require_file(path: str | Path) -> None:
    """Raises UserError if the path exists but is not a regular file, for example a folder, a pipe or a device."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path}: is {'a folder' if os.path.isdir(path) else 'not a file'}; choose another one")
