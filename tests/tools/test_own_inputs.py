"""Custom inputs after training: exported folders, the server and the demo accept or reject them."""

import subprocess
import sys

import pytest
import torch
from conftest import TINY
from test_fields import NO_TEXT, HeadOfX, fields, lines_of, processed, run_of, tagged, without_text, write  # noqa: F401
from torch import nn

from config import Config
from data_loader import Field
from engine.errors import UserError
from engine.predict import load
from main import main
from model_utils import HEADS, TaggingHead

pytest.importorskip("onnxruntime", reason="pip install -r tools/export/requirements.txt")
pytest.importorskip("onnxscript", reason="pip install -r tools/export/requirements.txt")

from tools.demo.__main__ import DemoConfig
from tools.demo.__main__ import main as run_demo
from tools.export.__main__ import ExportConfig, export
from tools.export.predictor import InputError, Predictor


class TaggerWithInputs(TaggingHead):
    """Predicts tags from the words, a name per word, standardised numbers and the mean of a list."""

    def __init__(self, hidden_size, task):
        super().__init__(hidden_size + 8 + 2 + 1, task)
        self.pos = nn.Embedding(1 + len(task.fields["pos"]["names"]), 8)

    def forward(self, vectors, inputs):
        mean = inputs["clicks"].sum(1) / inputs["clicks_mask"].sum(1).clamp(min=1)
        of_row = torch.cat([inputs["size"], mean[:, None]], 1)[:, None].expand(-1, vectors.shape[1], -1)
        return self.linear(torch.cat([vectors, self.pos(inputs["pos"]), of_row], 2))


def ship(tmp_path):
    export(ExportConfig(checkpoint=str(tmp_path / "out/run/checkpoints/best"), output_dir=str(tmp_path / "shipped")))
    return Predictor(tmp_path / "shipped", 1)


@pytest.mark.slow
def test_exports_match_main_with_custom_inputs(fields, tmp_path, monkeypatch):  # noqa: F811
    fields(
        pos=Field("pos", dtype="name", level="words"),
        size=Field(["wide", "high"], standardize=True),
        clicks=Field("clicks", level="list"),
    )
    monkeypatch.setitem(HEADS, "tagging", TaggerWithInputs)
    rows = [tagged(n, 3 + 7 * (n % 4)) | {"wide": n, "high": n % 3, "clicks": [0.5] * (n % 3)} for n in range(40)]
    data = processed(tmp_path, rows)
    run = dict(data_path=str(data), output_dir=str(tmp_path / "out"), model_version="run", max_length=24)
    main(Config(do_train=True, do_predict=True, predict_output=str(tmp_path / "torch.jsonl"), **TINY | run))
    predictor, expected = ship(tmp_path), lines_of(tmp_path / "torch.jsonl")
    given = [{key: row[key] for key in ("id", "tokens", "extras")} for row in lines_of(data / "test.jsonl")]
    for batch_size in (1, 16):
        answers = predictor(given, batch_size)
        assert [answer["tags_tags"] for answer in answers] == [row["tags_tags"] for row in expected]
    with pytest.raises(InputError, match="row 1: no column 'pos', which this model needs"):
        predictor([{"tokens": ["a"], "extras": {}}])
    with pytest.raises(InputError, match="row 1: pos must have one value per word"):
        predictor([given[0] | {"tokens": ["w1"]}])


@pytest.mark.slow
def test_models_without_text_are_exported_but_rejected_by_the_demo(fields, tmp_path):  # noqa: F811
    fields(HeadOfX, x=Field("x", shape=(2,)))
    data = processed(tmp_path, without_text([{"label": "ab"[n % 2]} for n in range(40)]), **NO_TEXT)
    main(run_of(tmp_path, do_train=True, data_path=str(data)))
    predictor, rows = ship(tmp_path), [{"x": [0.5, n / 9]} for n in range(5)]
    assert not (tmp_path / "shipped/tokenizer.json").exists()
    write(tmp_path / "new.jsonl", rows)
    predict = dict(predict_file=str(tmp_path / "new.jsonl"), predict_output=str(tmp_path / "torch.jsonl"))
    main(run_of(tmp_path, do_predict=True, **predict))
    expected = lines_of(tmp_path / "torch.jsonl")
    assert [row["label"] for row in predictor([{"extras": row} for row in rows])] == [row["label"] for row in expected]
    assert predictor(rows) == predictor([{"extras": row} for row in rows])  # the columns as keys
    in_python = load(tmp_path / "out/run/checkpoints/best")(rows)
    assert [row["label_probability"] for row in in_python] == [row["label_probability"] for row in expected]
    command = [sys.executable, tmp_path / "shipped/predictor.py", tmp_path / "new.jsonl", tmp_path / "out.jsonl"]
    subprocess.run(command, check=True)
    for found, row in zip(lines_of(tmp_path / "out.jsonl"), expected):
        assert found["text"] == row["text"]
        assert found["label_probability"] == pytest.approx(row["label_probability"], abs=2e-6)
    with pytest.raises(UserError, match="best: the model has no text input"):
        run_demo(DemoConfig(checkpoint=str(tmp_path / "out/run/checkpoints/best"), terminal=True, device="cpu"))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (Field("x", shape=(2,), read=list), "is computed by a function, which cannot"),
        (Field("x", level="spans"), "an exported predictor cannot map spans to tokens"),
    ],
)
def test_unsupported_exports_cause_a_one_line_error(field, message, fields, tmp_path, monkeypatch):  # noqa: F811
    fields(x=field)
    rows = [{"text": f"row {n}", "label": "ab"[n % 2], "x": [0, 2]} for n in range(40)]
    data = processed(tmp_path, rows)
    run = dict(data_path=str(data), output_dir=str(tmp_path / "out"), model_version="run")
    main(Config(do_train=True, **TINY | run))
    with pytest.raises(UserError, match=message):
        ship(tmp_path)
    assert not (tmp_path / "shipped").exists()
