"""A checkpoint is not a save_pretrained folder: other libraries reject it or load the right weights, never random ones.
Checkpoints of earlier versions, which used the names of such a folder, can still be loaded."""

import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from test_automatic import run

from engine.model.encoders import ENCODER_FILE
from engine.predict import load
from engine.run.files import seal
from engine.run.run_folder import WEIGHTS_FILE
from model_utils import load_checkpoint

SHAPE = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=128)
DOORS = {
    "AutoModel": hf.AutoModel.from_pretrained,
    "AutoModelForSequenceClassification": hf.AutoModelForSequenceClassification.from_pretrained,
    "AutoModelForTokenClassification": hf.AutoModelForTokenClassification.from_pretrained,
    "AutoModelForMaskedLM": hf.AutoModelForMaskedLM.from_pretrained,
    "BertModel": hf.BertModel.from_pretrained,
    "BertModel with a config": lambda path: hf.BertModel.from_pretrained(path, config=hf.BertConfig(**SHAPE)),
    "BertForSequenceClassification": hf.BertForSequenceClassification.from_pretrained,
    "AutoConfig": hf.AutoConfig.from_pretrained,
    "pipeline": lambda path: hf.pipeline("text-classification", model=str(path), trust_remote_code=False),
    "pipeline for words": lambda path: hf.pipeline("token-classification", model=str(path), trust_remote_code=False),
    "GenerationConfig": hf.GenerationConfig.from_pretrained,
    "peft": lambda path: pytest.importorskip("peft").PeftModel.from_pretrained(
        hf.BertModel(hf.BertConfig(**SHAPE)), path
    ),
    "peft's config": lambda path: pytest.importorskip("peft").PeftConfig.from_pretrained(path),
    "sentence-transformers": lambda path: pytest.importorskip("sentence_transformers").SentenceTransformer(str(path)),
}


@pytest.fixture(scope="module")
def best(sample, tmp_path_factory):
    from conftest import TINY

    from config import Config

    folder = tmp_path_factory.mktemp("doors")
    given = dict(data_path=str(sample), output_dir=str(folder), model_version="run", do_train=True, epochs=1)
    run(Config(**TINY | given))
    return folder / "run/checkpoints/best"


@pytest.mark.parametrize("door", DOORS)
def test_other_libraries_reject_a_checkpoint(door, best, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((OSError, ValueError)):  # the error is about a missing file
        DOORS[door](best)


def test_weights_loaded_by_other_libraries_are_correct(best):
    tokenizer, (model, own, *_) = hf.AutoTokenizer.from_pretrained(best, trust_remote_code=False), load_checkpoint(best)
    text = "turn on the light 播放"
    assert tokenizer(text)["input_ids"] == own(text)["input_ids"]
    tensors = load_file(best / WEIGHTS_FILE)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture
def earlier(best, tmp_path):
    """Returns a run in the format of an earlier version."""
    folder = tmp_path / "output/earlier"
    shutil.copytree(best.parents[1], folder)
    for checkpoint in (folder / "checkpoints").iterdir():
        (checkpoint / WEIGHTS_FILE).rename(checkpoint / "model.safetensors")
        (checkpoint / ENCODER_FILE).rename(checkpoint / "config.json")
        seal(checkpoint)
    return folder


def test_earlier_checkpoint_loads_resumes_and_initialises(best, earlier, tiny):
    rows = [trained(["turn on the light", "播放音乐"]) for trained in (load(best), load(earlier / "checkpoints/best"))]
    assert rows[0] == rows[1]
    given = dict(do_train=True, model_version="earlier")
    assert "resum" in run(tiny(**given, resume=True, epochs=2, force_resume=True))
    last = max((earlier / "checkpoints").glob("step_*"))
    assert (last / WEIGHTS_FILE).exists() and not (last / "model.safetensors").exists()
    assert "encoder and tokenizer" in run(tiny(do_train=True, epochs=1, init_from=str(earlier), model_version="next"))
