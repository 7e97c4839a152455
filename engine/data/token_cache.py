"""Caches numeric tables as Arrow files next to the data and verifies them before use."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pyarrow as pa

from engine.run.atomic import sha256
from engine.run.command_line import os_error_line

logger = logging.getLogger("template")
CACHE_NAME = re.compile(r"[\w.-]+-[0-9a-f]{20}\.[0-9a-f]{16}\.arrow")
MAX_CACHES = 24  # files per folder; the least recently used ones are removed


def cached_table(
    folder: Path, name: str, make_batches: Callable[[], Iterator[pa.RecordBatch]], schema: pa.Schema | None = None
) -> pa.Table:
    """Returns the table of the record batches of make_batches() (at least one), memory-mapped from a cache in `folder`.

    The file name contains `name`, which identifies the table's inputs, and the SHA-256 of the file. A file that is
    damaged or has another schema is rebuilt. If the folder is not writable, the table stays in memory.
    """
    from datasets import Dataset as ArrowDataset

    temporary = folder / f"{name}.{os.getpid()}.tmp"
    try:
        cache = find_cache(folder, name, schema)
        if cache is None:
            folder.mkdir(exist_ok=True)
            batches = make_batches()
            first = next(batches)
            with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_stream(file, first.schema) as writer:
                for batch in chain([first], batches):
                    writer.write_batch(batch)
            cache = folder / f"{name}.{sha256(temporary)[:16]}.arrow"
            os.replace(temporary, cache)
            clear(folder, MAX_CACHES)
        return ArrowDataset.from_file(str(cache)).data.table
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        logger.warning(f"no token cache ({os_error_line(error)}); tokens stay in memory and are recomputed in each run")
        return pa.Table.from_batches(list(make_batches()))


def find_cache(folder: Path, name: str, schema: pa.Schema | None = None) -> Path | None:
    """Returns the cached file, or None. Files that do not match their SHA-256 are logged and removed."""
    for path in sorted(folder.glob(f"{name}.*.arrow")):
        if sha256(path)[:16] == path.name.split(".")[-2] and has_schema(path, schema):
            with suppress(OSError):  # the folder may be read-only
                os.utime(path)
            return path
        logger.warning(f"{path}: the token cache is damaged and will be rebuilt")
        path.unlink()
    return None


def has_schema(path: Path, schema: pa.Schema | None) -> bool:
    """Returns whether an Arrow file has this schema."""
    if schema is None:
        return True
    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            return stream.schema.remove_metadata().equals(schema)
    except pa.ArrowInvalid:
        return False


def clear(folder: Path, kept: int = 0) -> None:
    """Removes a folder's caches, except the `kept` most recently used token caches and `kept` teacher caches."""
    with suppress(OSError):
        paths = [path for path in folder.glob("*.arrow") if CACHE_NAME.fullmatch(path.name)]
        caches = sorted(paths, key=lambda path: -path.stat().st_mtime_ns)
        teachers = [path for path in caches if path.name.startswith("teacher-")]
        old = [path for path in caches if path not in teachers][kept:] + teachers[kept:]
        for path in old:
            path.unlink()
        if old:
            logger.info(f"{folder}: {len(old)} caches removed")
