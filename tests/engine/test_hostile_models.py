"""Models from untrusted sources: unavailable devices, and configs that refer to code elsewhere."""

import json

import pytest
from transformers import AutoModel, BertConfig

from engine.errors import UserError
from engine.model.encoders import load_pretrained
from engine.run.device import to_device


@pytest.mark.parametrize("name", "meta hpu foo cuda:99 cuda:-1 cpu:3 xpu:7 mps:5 cuda:300".split())
def test_unavailable_device_is_a_one_line_error(name):
    with pytest.raises(UserError, match="--device"):
        to_device(name)


@pytest.fixture
def strange_encoder(tmp_path, monkeypatch):
    """Returns make(changes of config.json) -> (folder of a tiny BERT, a file that exists once `kernels` was called)."""
    canary = tmp_path / "canary"
    package = tmp_path / "site/kernels"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        f"def get_kernel(*_, **__):\n    open({str(canary)!r}, 'a').write('get_kernel')\n    raise OSError('fetched')\n"
    )
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda *_, **__: True)
    monkeypatch.setattr("transformers.integrations.hub_kernels._kernels_available", True, raising=False)

    def make(changes):
        folder = tmp_path / "encoder"
        shape = BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
        )
        AutoModel.from_config(shape).save_pretrained(folder)
        values = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(values | changes))
        return folder, canary

    return make


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["owner/name", "flash_attention_2", {"": "owner/name"}, "foo", 5])
def test_attention_kernels_named_in_a_config_are_never_downloaded(strange_encoder, key, value):
    folder, canary = strange_encoder({key: value})
    encoder = load_pretrained(str(folder))
    assert encoder.config._attn_implementation in ("sdpa", "eager") and not canary.exists()


def test_quantized_encoder_and_adapter_are_rejected(strange_encoder):
    folder, _ = strange_encoder({"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(UserError, match="is quantized"):
        load_pretrained(str(folder))
    folder, _ = strange_encoder({})
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    with pytest.raises(UserError, match="contains an adapter"):
        load_pretrained(str(folder))
