"""Unpacks zip archives, which are then read as the folder or file that they contain."""

import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

from engine.errors import UserError
from engine.run.command_line import first_line
from preprocess.example import SPLIT_ALIASES

UNPACKED: dict[str, str] = {}  # {extraction folder: its archive}


def as_named(text: str) -> str:
    """Replaces the paths of extracted files in a message with FILE.zip/NAME."""
    for folder, archive in UNPACKED.items():
        text = text.replace(folder, archive)
    return text


def is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".zip" and path.is_file()


def unpacked(path: Path, stack: ExitStack) -> Path:
    """Unpacks an archive. Returns its innermost folder, which is deleted when the stack is closed."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
    try:
        with zipfile.ZipFile(path) as archive:
            members = [file for file in archive.infolist() if not file.is_dir() and not is_hidden(file.filename)]
            size = sum(member.file_size for member in members)
            folder.mkdir()
            UNPACKED[str(folder)] = as_named(str(path))
            if size > 0.9 * shutil.disk_usage(folder).free:
                problem = f"not enough space in {tempfile.gettempdir()} for the {size:,} decompressed bytes"
                raise UserError(f"{path}: {problem}")
            archive.extractall(folder, members)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a readable .zip file ({first_line(error)}); unpack it") from None
    return innermost(folder)


def is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)


def innermost(path: Path) -> Path:
    """Descends while a folder contains only one folder that is not named after a split."""
    while path.is_dir():
        entries = [entry for entry in path.iterdir() if not is_hidden(entry.name)]
        if len(entries) != 1 or not entries[0].is_dir() or entries[0].name.lower() in SPLIT_ALIASES:
            break
        (path,) = entries
    return path


def note(text: str) -> None:
    """Prints a message from a reader."""
    print(as_named(text))
