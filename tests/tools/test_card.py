"""The model card of an export, and uploads to a local stand-in for the hub."""

import json
import shutil
import sys

import hubs
import huggingface_hub
import pytest
import yaml
from conftest import TINY, read_json
from huggingface_hub import ModelCard
from test_automatic import run

from config import Config
from engine.errors import UserError
from tools.export import card
from tools.export.__main__ import ExportConfig, export
from tools.report.collect import collect

SCORE = "intent_accuracy"


@pytest.fixture(scope="module")
def best(sample, tmp_path_factory):
    """A checkpoint of an evaluated run with a single task, intent."""
    folder = tmp_path_factory.mktemp("card")
    data = folder / "intents"
    data.mkdir()
    for split in ("train", "dev", "test"):
        (data / f"{split}.jsonl").write_bytes((sample / f"{split}.jsonl").read_bytes())
    (data / "labels.json").write_text(json.dumps({"intent": read_json(sample / "labels.json")["intent"]}))
    given = dict(
        pooling="first",
        few_shot=False,
        data_path=str(data),
        output_dir=str(folder),
        model_version="my_run",
        do_train=True,
        do_eval=True,
    )
    run(Config(**TINY | given))
    return folder / "my_run/checkpoints/best"


@pytest.fixture(scope="module")
def shipped(best, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shipped") / "out"
    export(ExportConfig(checkpoint=str(best), output_dir=str(folder), to="transformers"))
    return folder


def test_the_metadata_can_be_read_by_the_hub_library(best, shipped):
    data = ModelCard.load(shipped / "README.md").data
    scores = read_json(best.parents[1] / "eval.json")["test"]
    [result] = data.eval_results
    assert (result.task_name, result.dataset_name, result.dataset_split) == ("intent", "intents", "test")
    assert (result.metric_type, result.metric_name) == ("accuracy", SCORE)
    assert result.metric_value == pytest.approx(scores[SCORE], abs=1e-6)
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert data.license == "other" and data.base_model is None
    head = (shipped / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert yaml.safe_load(head)["model-index"][0]["name"] == "my_run"


def test_the_card_matches_the_run(best, shipped):
    text, report = (shipped / "README.md").read_text(encoding="utf-8"), collect(best.parents[1])[0]
    for split in ("dev", "test"):
        [row] = [score for score in report["scores"][split] if score["name"] == SCORE]
        numbers = " | ".join(f"{row[key]:.4f}" for key in ("value", "low", "high"))
        assert f"| {split} | {SCORE} | {numbers} |" in text
    sizes = report["sizes"]
    assert f"`intents`: {sizes['train']} in train, {sizes['test']} in test, {sizes['dev']} in dev texts." in text
    for gold, predicted, count, *_ in report["tasks"]["intent"]["confusions"][:3]:
        assert f"| intent | `{gold}` | `{predicted}` | {count} |" in text
    assert "| `--hidden_size` | `32` |" in text and "pipeline(" in text
    assert all(f"`{label}`" in text for label in read_json(best / "labels.json")["intent"]["labels"])
    assert text.count(card.FILL_IN) == 4
    assert str(best.parents[2]) not in text  # no local path


def test_without_an_evaluation_there_are_no_scores(best, tmp_path):
    shutil.copytree(best, tmp_path / "alone")
    export(
        ExportConfig(checkpoint=str(tmp_path / "alone"), output_dir=str(tmp_path / "out"), to="sentence-transformers")
    )
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert (
        "## Scores" not in text
        and "SentenceTransformer(" in text
        and "model-index" not in text
        and "## How to use it" in text
    )


@pytest.fixture
def online(monkeypatch, tmp_path):
    """online(url) points huggingface_hub to this server, with a token."""

    def go(url):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", url, raising=False)
        monkeypatch.setattr("huggingface_hub.hf_api.api", huggingface_hub.HfApi(endpoint=url), raising=False)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    return go


@pytest.mark.parametrize("public", [False, True])
def test_all_files_are_uploaded_and_private_by_default(public, best, online, tmp_path, capsys):
    with hubs.hub() as server:
        online(server.url)
        options = dict(checkpoint=str(best), output_dir=str(tmp_path / "out"), to="sentence-transformers")
        export(ExportConfig(**options, push_to_hub="me/intents", public=public))
        assert f"uploaded to {server.url}/me/intents" in capsys.readouterr().out
        stored = server.stored["me/intents"]
        own = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*") if p.is_file()}
        assert stored["files"] == {name: path.read_bytes() for name, path in own.items()}
        assert stored["private"] == (not public) and set(server.tokens) == {"Bearer secret"}
        card.push(tmp_path / "out", "me/intents", public)  # upload again to the same model
        stored["files"].clear()
        stored["private"] = False
        if not public:
            with pytest.raises(UserError, match="--push_to_hub me/intents: is already public; add --public"):
                card.push(tmp_path / "out", "me/intents", public)
            assert not stored["files"]


def test_a_failed_upload_ends_in_a_one_line_error_and_keeps_the_export(best, online, tmp_path):
    with hubs.hub(status=403) as server:
        online(server.url)
        options = dict(checkpoint=str(best), output_dir=str(tmp_path / "out"), to="sentence-transformers")
        with pytest.raises(
            UserError, match=r"--push_to_hub me/x: .*403.*; .*out is complete; to upload it again: hf "
        ) as e:
            export(ExportConfig(**options, push_to_hub="me/x"))
    assert "\n" not in str(e.value) and (tmp_path / "out/README.md").exists()


@pytest.fixture
def modelscope(monkeypatch, tmp_path):
    """modelscope(url) points the package to this server, with a token."""
    pytest.importorskip("modelscope.hub.api", reason="needs pip install 'modelscope>=1.40'")

    def go(url):
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", url)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "secret")
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        pytest.importorskip("modelscope_hub.config").set_default_config(None)  # the configuration is only read once
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    return go


@pytest.mark.parametrize("public", [False, True])
def test_all_files_are_uploaded_to_modelscope_and_private_by_default(public, best, modelscope, tmp_path, capsys):
    with hubs.hub(handler=hubs.ModelScope) as server:
        modelscope(server.url)
        out = tmp_path / "out"
        options = dict(checkpoint=str(best), output_dir=str(out), to="sentence-transformers", model_hub="modelscope")
        export(ExportConfig(**options, push_to_hub="me/intents", public=public))
        assert f"uploaded to {server.url}/models/me/intents" in capsys.readouterr().out
        stored = server.stored["me/intents"]
        own = {p.relative_to(out).as_posix(): p for p in out.rglob("*") if p.is_file()}
        assert stored["files"] == {name: path.read_bytes() for name, path in own.items()} and server.objects
        assert stored["private"] == (not public) and stored["license"] == "other"
        assert set(server.tokens) == {"Bearer secret"}
        card.push(out, "me/intents", public, "modelscope")  # upload again to the same model
        stored["files"].clear()
        stored["private"] = False
        if not public:
            with pytest.raises(UserError, match="--push_to_hub me/intents: is already public; add --public"):
                card.push(out, "me/intents", public, "modelscope")
            assert not stored["files"]
        export(ExportConfig(**options))  # succeeds because the upload left no files in the folder


def test_a_failed_upload_to_modelscope_ends_in_a_one_line_error(modelscope, shipped):
    with hubs.hub(status=403, handler=hubs.ModelScope) as server:
        modelscope(server.url)
        with pytest.raises(
            UserError, match=r"--push_to_hub me/x: .*not allowed.*; to upload it again: modelscope"
        ) as e:
            card.push(shipped, "me/x", False, "modelscope")
    assert "\n" not in str(e.value)


def test_modelscope_needs_its_package(shipped, monkeypatch):
    for name in ("modelscope", "modelscope.hub.api"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"needs the package modelscope .*: pip install .*complete$"):
        card.push(shipped, "me/x", False, "modelscope")


def test_an_edited_card_is_not_overwritten(best, shipped):
    path = shipped / "README.md"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("license: other", "license: mit"), encoding="utf-8")
    with pytest.raises(UserError, match=r"README\.md has changed since it was written"):
        export(ExportConfig(checkpoint=str(best), output_dir=str(shipped), to="sentence-transformers"))
    path.write_text(before, encoding="utf-8")
