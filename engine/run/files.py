"""Atomic writes of files and folders, and their verification by SHA-256."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from engine.errors import UserError
from engine.run.atomic import atomic_file, sha256
from engine.schema import SchemaError, read_json

# Suffixes used only here, so such folders can be removed without confirmation
TEMPORARY, OLD = ".template-new", ".template-old"
LAST = ("labels.json", "manifest.json")  # a folder without them is rejected


def digest(folder: Path, names: Iterable[str]) -> str:
    """Returns a short hash of the contents of these files, ignoring missing ones."""
    sums = [sha256(path) for path in (folder / name for name in names) if path.is_file()]
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:12]


def sync(path: str | Path) -> None:
    """Flushes a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_other_file(output: str | Path, option: str, *inputs: str | Path) -> None:
    """Raises UserError if an output file is one of the input files, even under another name."""
    for path in inputs:
        if path and os.path.exists(path) and os.path.exists(output) and os.path.samefile(path, output):
            raise UserError(f"--{option} {output} is the input file ({path}); choose another one")


def write_json(path: str | Path, value: Any, durable: bool = False) -> None:
    """Writes a JSON file atomically. durable: see `atomic_file`."""
    with atomic_file(path, durable) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a CSV file atomically. rows: [{column: cell}]; missing cells are empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def replace_folder(
    folder: Path,
    fill: Callable[[Path], None],
    owns: Callable[[Path], None] | None = None,
    unharmed: str = "earlier checkpoints are unchanged",
) -> None:
    """Calls fill(temporary folder), adds a manifest, and replaces `folder` with it.

    owns: see `atomic_folder`. unharmed: end of the error message for a full or read-only disk.
    """
    try:
        with atomic_folder(folder, owns=owns, sealed=True) as temporary:
            fill(temporary)
    except Exception as error:
        # On a full disk, Python raises OSError, torch RuntimeError, safetensors SafetensorError, tokenizers Exception
        if not isinstance(error, OSError | RuntimeError | SafetensorError) and type(error) is not Exception:
            raise
        raise UserError(f"{folder}: cannot be written ({error}); {unharmed}") from None


@contextmanager
def atomic_folder(
    folder: str | Path, keeps: Sequence[str] = (), owns: Callable[[Path], None] | None = None, sealed: bool = False
) -> Iterator[Path]:
    """Yields a temporary folder to fill, and replaces `folder` with it when it is complete.

    keeps: names in the old folder to preserve. owns: function that raises UserError if the old folder contains files
    that the command did not write; called again right before anything is removed. sealed: add a manifest of all files.
    If `folder` is a symbolic link, its target is replaced. If the process is killed between the two final renames,
    the next call restores the old folder. A folder that cannot be renamed (the working directory, a mount, or a
    folder with a read-only parent) has its files replaced one by one; LAST come last, because without them the folder
    is rejected.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not folder.is_dir():  # otherwise a device would be renamed
        raise UserError(f"{folder}: is not a folder; choose another one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}{end}") for end in (TEMPORARY, OLD))
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    if Path.cwd().is_relative_to(folder) or not os.access(folder.parent, os.W_OK) or folder.is_mount():
        temporary = folder / TEMPORARY
    for stale in (temporary, old):
        remove_folder(stale)
    temporary.mkdir()
    try:
        yield temporary
        if sealed:
            seal(temporary)
        else:
            for path in [*temporary.rglob("*"), temporary]:
                sync(path)
        if owns:
            owns(folder)
        put_in_place(temporary, folder, old, keeps)
    finally:
        remove_folder(temporary)


def remove_folder(path: Path) -> None:
    """Removes a temporary folder. If it is a symbolic link, removes only the link."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def put_in_place(temporary: Path, folder: Path, old: Path, keeps: Sequence[str]) -> None:
    """Moves the temporary folder to `folder`, replacing it if it exists."""
    try:
        if temporary.parent == folder:
            raise OSError
        if folder.exists():
            shutil.copymode(folder, temporary)
            os.rename(folder, old)
        os.rename(temporary, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        return fill_in_place(temporary, folder, keeps)
    sync(folder.parent)
    for name in keeps:
        if (old / name).exists():
            os.rename(old / name, folder / name)
    remove_folder(old)


def fill_in_place(temporary: Path, folder: Path, keeps: Sequence[str]) -> None:
    """Replaces the files of a folder that cannot be renamed. In the meantime, the folder is incomplete."""
    if temporary.parent != folder:  # copy to the other file system before any old file is removed
        remove_folder(folder / TEMPORARY)
        temporary = Path(shutil.move(temporary, folder / TEMPORARY))
    for path in sorted(folder.iterdir(), key=lambda path: path.name not in LAST):
        if path.name not in {temporary.name, *keeps}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    for path in sorted(temporary.iterdir(), key=lambda path: path.name in LAST):
        os.rename(path, folder / path.name)
    temporary.rmdir()


def seal(folder: Path) -> None:
    """Writes a manifest with the SHA-256 of each file in a folder, and flushes everything to disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "manifest.json")
    with ThreadPoolExecutor(4) as pool:  # overlaps hashing and disk writes
        syncs = [pool.submit(sync, path) for path in files]
        sums = list(pool.map(sha256, files))
        for done in syncs:
            done.result()
    write_json(folder / "manifest.json", {path.relative_to(folder).as_posix(): sum for path, sum in zip(files, sums)})
    mode = (folder / "manifest.json").stat().st_mode
    for path in files:  # safetensors creates files that only the owner can read
        if path.stat().st_mode != mode:
            path.chmod(mode)
    for path in (folder / "manifest.json", folder):
        sync(path)


def verify(folder: Path) -> str | None:
    """Returns None if every file of a checkpoint matches its manifest, otherwise a description of the problem."""
    try:
        manifest = read_json(folder / "manifest.json", {str: str})
    except SchemaError as error:
        return f"no readable manifest ({str(error).removeprefix(f'{folder}/manifest.json: ')})"
    if not manifest:
        return "its manifest lists no files"
    for name, expected in manifest.items():
        if not is_inside(name) or not os.path.isfile(folder / name):  # never raises, for any name
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} has changed since it was written"
    return None


def is_inside(name: str) -> bool:
    """Returns whether a name in a manifest refers to a path inside the manifest's folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def clean_temporaries(root: Path) -> None:
    """Removes temporary files left by a killed run, and restores an old folder whose replacement is missing."""
    for end in (OLD, ".old"):  # earlier versions used ".old"
        for old in root.glob(f".*{end}"):
            place = old.with_name(old.name[1 : -len(end)])
            if place.exists():
                remove_folder(old)
            else:
                os.rename(old, place)
    for temporary in [*root.glob(f".*{TEMPORARY}"), *root.glob(".*.tmp")]:
        remove_folder(temporary)
