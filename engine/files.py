"""Files and folders that are complete or absent, and known by their SHA-256."""

import csv
import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from engine.command_line import UserError


def sha256(path):
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def digest(folder, names):
    """Of those files that are there."""
    sums = [sha256(path) for path in (folder / name for name in names) if path.is_file()]
    return hashlib.sha256("".join(sums).encode()).hexdigest()[:12]


def sync(path):
    """Flushes a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def appearing_whole(path, durable=False):
    """A text file to write, which appears under its name when all of it is written, or not at all.

    durable: it appears when it is on the disk, so that it is whole also after a power failure.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def write_json(path, value, durable=False):
    """Writes a JSON file that appears whole or not at all. durable: see `appearing_whole`."""
    with appearing_whole(path, durable) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_csv(path, rows):
    """Writes a table, which appears whole or not at all. rows: [{column: cell}]; a column that only some have is empty
    in the others."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with appearing_whole(path) as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def replace_folder(folder, fill):
    """Calls fill(temporary folder), then puts it in the place of `folder`, which stays until the new one is safe."""
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        seal(temporary)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        # A full disk raises OSError in Python, RuntimeError in torch, SafetensorError, a bare Exception in tokenizers
        if not isinstance(error, OSError | RuntimeError | SafetensorError) and type(error) is not Exception:
            raise
        raise UserError(f"{folder}: cannot be written ({error}); earlier checkpoints are as they were") from None
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(temporary, folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def appearing_folder(folder):
    """A folder to fill, which takes the place of `folder` when all of it is written, or not at all; `.cache` stays.

    Killed between two renames, at the very end, it leaves no folder; the old one returns with the next call. A folder
    that cannot be renamed (this process is in it, it is mounted, or its parent cannot be written) gets the files one by
    one, labels.json last.
    """
    folder = Path(folder).resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("tmp", "old"))
    if old.exists() and not folder.exists():
        os.rename(old, folder)
    if Path.cwd().is_relative_to(folder) or not os.access(folder.parent, os.W_OK):
        temporary = folder / ".new.tmp"
    for stale in (temporary, old):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        put_in_place(temporary, folder, old)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(temporary, folder, old):
    """Puts what was written where `folder` is, or would be."""
    try:
        if temporary.parent == folder:
            raise OSError
        if folder.exists():
            shutil.copymode(folder, temporary)
            os.rename(folder, old)
        os.rename(temporary, folder)
        if (old / ".cache").exists():
            os.rename(old / ".cache", folder / ".cache")
    except OSError:
        if old.exists():
            os.rename(old, folder)
        if temporary.parent != folder:  # copied over a mount's border, before anything that was there goes
            inside = folder / ".new.tmp"
            shutil.rmtree(inside, ignore_errors=True)
            temporary = Path(shutil.move(temporary, inside))
        stays = {temporary.name, ".cache"}
        for path in sorted(folder.iterdir(), key=lambda path: path.name != "labels.json"):
            if path.name not in stays:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == "labels.json"):
            os.rename(path, folder / path.name)
        temporary.rmdir()
    shutil.rmtree(old, ignore_errors=True)


def seal(folder):
    """Writes the manifest of a folder's files, and syncs all to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "manifest.json")
    with ThreadPoolExecutor(4) as pool:  # the disk works on one file while another is summed
        syncs = [pool.submit(sync, path) for path in files]
        sums = list(pool.map(sha256, files))
        for done in syncs:
            done.result()
    write_json(folder / "manifest.json", {path.relative_to(folder).as_posix(): sum for path, sum in zip(files, sums)})
    for path in (folder / "manifest.json", folder):
        sync(path)


def verify(folder):
    """Why a checkpoint cannot be trusted, or None if every file is what it was when written."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"no readable manifest ({type(error).__name__})"
    for name, expected in manifest.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} is not what was written"
    return None


def clean_temporaries(root):
    """Clears what a killed run left half-way: temporaries go; a folder without its successor returns."""
    for old in root.glob(".*.old"):
        place = old.with_name(old.name[1:-4])
        if place.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, place)
    for temporary in root.glob(".*.tmp"):
        shutil.rmtree(temporary)
