"""Zip archives, which are read as the folder or file they contain."""

import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

from engine.errors import UserError
from engine.run.command_line import first_line
from preprocess.example import PART_NAMES

UNPACKED: dict[str, str] = {}  # {extraction folder: its archive}


def as_named(text: str) -> str:
    """Replaces paths of extracted files in a text by FILE.zip/NAME."""
    for folder, archive in UNPACKED.items():
        text = text.replace(folder, archive)
    return text


def is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def unpacked(path: Path, stack: ExitStack) -> Path:
    """Unpacks an archive. Returns its innermost folder, which exists until the stack is closed."""
    room = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir() and not is_hidden(one.filename)]
            size = sum(one.file_size for one in members)
            room.mkdir()
            UNPACKED[str(room)] = as_named(str(path))
            if size > 0.9 * shutil.disk_usage(room).free:
                too_many = f"{size:,} bytes when decompressed, too many for the disk of {tempfile.gettempdir()}"
                raise UserError(f"{path}: {too_many}")
            archive.extractall(room, members)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable .zip file ({first_line(error)}); unpack it") from None
    return innermost(room)


def is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)


def innermost(path: Path) -> Path:
    """Descends while a folder contains only one folder that is not named after a part."""
    while path.is_dir():
        inside = [one for one in path.iterdir() if not is_hidden(one.name)]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in PART_NAMES:
            break
        (path,) = inside
    return path


def note(text: str) -> None:
    """Prints a note of a reader."""
    print(as_named(text))
