"""Archives (.zip), which are read as the folder or file that is in them."""

import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

from engine.errors import UserError
from engine.run.command_line import first_line
from preprocess.example import PART_NAMES

UNPACKED: dict[str, str] = {}  # {folder of what was unpacked: its archive}


def as_named(text: str) -> str:
    """A text in which the files of archives are called FILE.zip/NAME instead of where they were unpacked."""
    for folder, archive in UNPACKED.items():
        text = text.replace(folder, archive)
    return text


def is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def unpacked(path: Path, stack: ExitStack) -> Path:
    """Unpacks an archive. -> its innermost folder, which exists until the stack is closed"""
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
    """Descends into a folder as long as it contains a single folder that is not named like a part."""
    while path.is_dir():
        inside = [one for one in path.iterdir() if not is_hidden(one.name)]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in PART_NAMES:
            break
        (path,) = inside
    return path
