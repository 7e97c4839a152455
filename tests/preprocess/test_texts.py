"""Files to predict on go through the readers of data_process.py: what it reads with labels is the same texts without
them, under the same ids."""

import datasets
import pytest
import test_any_data
import test_json_shapes
import test_shapes
import test_tagged

from data_process import DataConfig, prepare
from engine.run.reading import READING
from preprocess.readers.options import ReadOptions
from preprocess.readers.sources import read_texts


def written(files):
    """Writes files of a case into a folder. -> the file or folder to read"""

    def write(folder):
        source = test_shapes.write(folder, files)
        found = [path for path in source.iterdir() if path.is_file()] if source == folder else []
        return found[0] if len(found) == 1 else source

    return write


def of_table(write, columns):
    def into(folder):
        folder.mkdir()
        write(folder, columns)
        return folder / "saved" if (folder / "saved").exists() else folder

    return into


CASES = {  # name: (writes a folder -> what to read, options of data_process.py)
    **{f"tagged: {n}": (written({f: text}), options) for n, (f, text, _, options) in test_tagged.READ.items()},
    **{f"shapes: {n}": (written(files), options) for n, (files, _, _, options) in test_shapes.SHAPES.items()},
    **{f"any: {n}": (of_table(w, columns), o) for n, (w, columns, o, _) in test_any_data.TABLE.items()},
    **{
        f"objects: {n}": (lambda folder, c=content: test_json_shapes.write(folder, c), i if isinstance(i, dict) else {})
        for n, (content, _, i) in test_json_shapes.TASK_OF_SHAPE.items()
    },
    **{
        f"layouts: {n}": (lambda folder, c=content: test_json_shapes.write(folder, c), options)
        for n, (content, options) in test_json_shapes.CLASSES.items()
    },
}


FEWER = {"max_rows", "drop_unlabelled", "drop_empty"}  # options with which data_process.py leaves out rows
LEFT_OUT = ("shapes: OCNLI", "shapes: a folder a class, in parts, GB18030")  # where labels say that rows are left out


def texts(row, like):
    """What is compared of a row: its id, text and tokens, without tokens that only its labels are for."""
    keys = [key for key in ("id", "text", "tokens", "text_pair") if key in row and (key != "tokens" or key in like)]
    return tuple(str(row[key]) for key in keys)


@pytest.mark.parametrize("name", CASES)
def test_the_texts_are_those_of_data_process(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    write, options = CASES[name]
    source = write(tmp_path / "raw")
    parts, *_ = prepare(DataConfig(input=str(source), output_dir="unused", **options))
    read = list(read_texts(source, ReadOptions(**{key: options[key] for key in READING if key in options})))
    found = sorted(texts(row, row) for row in read)
    wanted = sorted(texts(row, read[0]) for rows in parts.values() for row in rows)
    assert found == wanted or ((options.keys() & FEWER or name in LEFT_OUT) and {*found} > {*wanted})
