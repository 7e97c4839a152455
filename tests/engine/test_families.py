"""Model families supported by AutoModel: tiny random models that are trained, scored, resumed, … like in main.py.

`PYTHONPATH=.:tests python tests/engine/test_families.py` prints the table of docs/families.md from these tests. EXCEPT
lists what a family does not support and what happens instead, which is tested too."""

import json
import shutil
from functools import lru_cache, partial
from pathlib import Path

import pytest
import torch
import transformers as hf
from conftest import ROOT
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import main as main_module
from config import seed_torch
from data_loader import MyDataLoader, MyDataset
from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.model import lora
from engine.model.encoders import is_causal, keep_evenly_spaced, layer_ids, load_pretrained
from model_utils import load_checkpoint
from preprocess.schema import training_texts
from tools.check.case import padding_mixer
from tools.check.checkpoints import run_until

CPU = torch.device("cpu")
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
DEBERTA = dict(relative_attention=True, max_relative_positions=16, pos_att_type=["c2p", "p2c"])
LLAMA = dict(**SMALL, num_key_value_heads=1, head_dim=16)
SEQ2SEQ = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2)
SEQ2SEQ |= dict(encoder_ffn_dim=64, decoder_ffn_dim=64)

ENCODERS = {
    "ALBERT": lambda: hf.AlbertConfig(**SMALL, embedding_size=16),
    "BART": lambda: hf.BartConfig(**SEQ2SEQ),
    "BERT": lambda: hf.BertConfig(**SMALL),
    "BigBird": lambda: hf.BigBirdConfig(**SMALL, attention_type="original_full"),
    "CamemBERT": lambda: hf.CamembertConfig(**SMALL),
    "ConvBERT": lambda: hf.ConvBertConfig(**SMALL, embedding_size=16),
    "data2vec-text": lambda: hf.Data2VecTextConfig(**SMALL),
    "DeBERTa v1": lambda: hf.DebertaConfig(**SMALL, **DEBERTA),
    "DeBERTa v2, v3": lambda: hf.DebertaV2Config(**SMALL, **DEBERTA),
    "DistilBERT": lambda: hf.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    "ELECTRA": lambda: hf.ElectraConfig(**SMALL, embedding_size=16),
    "ERNIE": lambda: hf.ErnieConfig(**SMALL),
    "EuroBERT": lambda: hf.EuroBertConfig(**LLAMA),
    "FNet": lambda: hf.FNetConfig(hidden_size=32, num_hidden_layers=2, intermediate_size=64),
    "Longformer": lambda: hf.LongformerConfig(**SMALL, attention_window=8),
    "Megatron-BERT": lambda: hf.MegatronBertConfig(**SMALL),
    "MobileBERT": lambda: hf.MobileBertConfig(**SMALL, embedding_size=32, intra_bottleneck_size=32),
    "ModernBERT": lambda: hf.ModernBertConfig(**SMALL, pad_token_id=0),
    "MPNet": lambda: hf.MPNetConfig(**SMALL),
    "NomicBERT": lambda: hf.NomicBertConfig(**SMALL),
    "RemBERT": lambda: hf.RemBertConfig(**SMALL, input_embedding_size=16),
    "RoBERTa": lambda: hf.RobertaConfig(**SMALL),
    "RoBERTa-prelayernorm": lambda: hf.RobertaPreLayerNormConfig(**SMALL),
    "RoFormer": lambda: hf.RoFormerConfig(**SMALL, embedding_size=16),
    "XLM": lambda: hf.XLMConfig(emb_dim=32, n_layers=2, n_heads=2),
    "XLM-R": lambda: hf.XLMRobertaConfig(**SMALL),
    "XLM-R-XL": lambda: hf.XLMRobertaXLConfig(**SMALL),
    "XLNet": lambda: hf.XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=64),
}
DECODERS = {  # and the pre-tokenization of their tokenizers
    "Gemma": (lambda: hf.GemmaConfig(**LLAMA), "gemma"),
    "Gemma 3, text": (lambda: hf.Gemma3TextConfig(**LLAMA, query_pre_attn_scalar=16), "gemma"),
    "GPT-2": (lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=2), "gpt2"),
    "GPT-NeoX": (lambda: hf.GPTNeoXConfig(**SMALL), "neox"),
    "Llama": (lambda: hf.LlamaConfig(**LLAMA), "llama"),
    "Mistral": (lambda: hf.MistralConfig(**LLAMA), "llama"),
    "OPT": (lambda: hf.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32), "gpt2"),
    "Phi-3": (lambda: hf.Phi3Config(**LLAMA, pad_token_id=0), "llama"),
    "Qwen2": (lambda: hf.Qwen2Config(**LLAMA), "qwen"),
    "Qwen3": (lambda: hf.Qwen3Config(**LLAMA), "qwen"),
}
FAMILIES = [*ENCODERS, *DECODERS]
QUICK = ("BERT", "DeBERTa v1", "GPT-2", "Llama", "Qwen3")


# ---- tiny models -----------------------------------------------------------------------------------------------------


def byte_pairs(texts, pre_tokenizer, special, alphabet=()):
    """Returns (vocabulary, merges) in the format of decoders' tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    options = dict(vocab_size=500, special_tokens=special, initial_alphabet=list(alphabet), show_progress=False)
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**options))
    if not hasattr(hf, "GPTNeoXTokenizer"):  # the classes of transformers 4 use it unchanged
        return dict(tokenizer_object=tokenizer)
    model = json.loads(tokenizer.to_str())["model"]
    return dict(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def decoders_tokenizer(kind, texts):
    """Builds a byte-level tokenizer like GPT-2's, NeoX's and Qwen's, with only an end-of-text token; or like Llama's
    and Gemma's, in which words start with U+2581 and BOS precedes a text."""
    if kind in ("gpt2", "neox", "qwen"):
        special = ["<|endoftext|>", "<|padding|>"][: 2 if kind == "neox" else 1]
        shape = pre_tokenizers.ByteLevel(add_prefix_space=False)
        parts = byte_pairs(texts, shape, special, pre_tokenizers.ByteLevel.alphabet())
        return tokenizer_class({"gpt2": "GPT2", "neox": "GPTNeoX", "qwen": "Qwen2"}[kind])(**parts)
    special = ["<unk>", "<s>", "</s>"] if kind == "llama" else ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    parts = byte_pairs(texts, pre_tokenizers.Metaspace(), special)
    return tokenizer_class({"llama": "Llama", "gemma": "Gemma"}[kind])(**parts, add_bos_token=True)


def tokenizer_class(name):
    return getattr(hf, f"{name}Tokenizer" if hasattr(hf, "GPTNeoXTokenizer") else f"{name}TokenizerFast")


def save_family(name, folder, sample):
    """Saves a model with random weights and a tokenizer, like save_pretrained. Returns the folder's path."""
    texts = list(training_texts(sample / "train.jsonl"))
    make, kind = DECODERS.get(name) or (ENCODERS.get(name) or REFUSED[name][0], None)
    tokenizer = decoders_tokenizer(kind, texts) if kind else train_tokenizer(lambda: texts, 400)
    config = make()
    config.get_text_config().vocab_size = config.vocab_size = len(tokenizer)
    for part in ("pad", "bos", "eos"):
        setattr(config, f"{part}_token_id", getattr(tokenizer, f"{part}_token_id") if kind else tokenizer.pad_token_id)
    if hasattr(config, "initializer_range"):
        config.initializer_range = 0.1
    torch.manual_seed(0)
    kind = (
        hf.FunnelModel._from_config if name == "Funnel" else partial(hf.AutoModel.from_config, trust_remote_code=False)
    )
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def build(config):
    """Returns (trainer, tokenizer), built like in main.py, with few rows."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    seed_torch(config.random_seed)
    data = main_module.load_data(config, CPU, 24)
    seed_torch(config.random_seed)
    return main_module.build_trainer(data, CPU)


@pytest.fixture(scope="module")
def saved(sample, tmp_path_factory):
    """Returns saved(name) -> the folder of a family, created once."""
    base = tmp_path_factory.mktemp("families")
    return lru_cache(None)(lambda name: save_family(name, base / name.replace(" ", "_"), sample))


@pytest.fixture
def family(tiny, tmp_path, saved):
    def options(name, **more):
        path = tmp_path / "pretrained"
        if not path.exists():
            shutil.copytree(saved(name), path)
        path = str(path)
        return tiny(**{**dict(pretrain_model_path=path, epochs=1, use_crf=True, max_length=64, lr=1e-3), **more})

    return options


def logits_of(model, data, rows):
    """Returns the logits of both tasks for these rows as one batch, without padding."""
    batch = data.batch(list(rows))
    with torch.no_grad():
        logits = model(batch.inputs).logits
    return logits["intent"], logits["slots"][batch.inputs["word_mask"]]


def close(first, second, tolerance=1e-4):
    for ours, theirs in zip(first, second):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def same_answers(trainer, folder):
    """Asserts that a copy of `best`, loaded like in another process, gives the trainer's predictions."""
    shutil.copytree(trainer.checkpoints / "best", folder / "copied")
    other, featurizer = main_module.load_trained(folder / "copied", trainer.config, CPU)
    data = MyDataset(Path(trainer.config.data_path) / "dev.jsonl", featurizer, 24)
    ours, _ = trainer.infer(MyDataLoader(trainer.dev_loader.dataset, 7), "")
    theirs, _ = other.infer(MyDataLoader(data, 7), "")
    assert ours.labels == theirs.labels
    close(*(logits_of(one.model.eval(), data, range(8)) for one in (trainer, other)), tolerance=1e-5)


# ---- what each family is asked to do ---------------------------------------------------------------------------------


def trains_and_scores_alone_as_in_a_batch(family, name, folder):
    trainer = build(family(name))
    before = {key: p.detach().clone() for key, p in trainer.model.named_parameters()}
    assert trainer.train() is not None and trainer.progress.step == 3
    moved = [key for key, p in trainer.model.named_parameters() if not torch.equal(p, before[key])]
    assert any(key.startswith("encoder.") for key in moved)
    model, data = trainer.model.eval(), trainer.dev_loader.dataset
    assert is_causal(model.encoder) == (name in DECODERS) == looks_back_only(model.encoder)
    together = logits_of(model, data, range(8))
    alone = [torch.cat(parts) for parts in zip(*(logits_of(model, data, [row]) for row in range(8)))]
    if padding_mixer(model.encoder):
        with pytest.raises(AssertionError):
            close(together, alone)
    else:
        close(together, alone)


@torch.no_grad()
def looks_back_only(encoder):
    ids = torch.tensor([[5, 6, 7, 8]])
    first, second = (
        encoder(
            input_ids=torch.cat([ids, torch.tensor([[last]])], 1), attention_mask=torch.ones(1, 5, dtype=torch.long)
        ).last_hidden_state[:, :4]
        for last in (9, 10)
    )
    return bool((first - second).abs().max() < 1e-6)


def predicts_elsewhere(family, name, folder):
    trainer = build(family(name, batch_size=24))
    trainer.train()
    shutil.rmtree(trainer.config.pretrain_model_path)  # only `best` is needed
    same_answers(trainer, folder)


def resumes_to_equal_bytes(family, name, folder):
    options = dict(early_stop_patience=0, gradient_accumulation_steps=1)
    run_until(whole := build(family(name, model_version="whole", **options)), 2)
    run_until(build(family(name, model_version="stopped", **options)), 1)
    run_until(again := build(family(name, model_version="stopped", **options)), 2)
    sums = [json.loads((run.checkpoints / "step_00000002/manifest.json").read_text()) for run in (whole, again)]
    assert all(sums[0][file] == sums[1][file] for file in ("weights.safetensors", "training.safetensors"))


def learns_in_bf16(family, name, folder):
    trainer = build(family(name, precision="bf16", batch_size=24))
    trainer.train()
    assert trainer.progress.skipped_steps == 0
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def learns_with_fgm(family, name, folder):
    trainer = build(family(name, use_fgm=True, batch_size=24))
    trainer.train()
    (fgm,) = trainer.tricks
    assert float(torch.linalg.vector_norm(fgm.r)) == pytest.approx(1.0, abs=1e-4)  # the words were perturbed


def learns_with_lora(family, name, folder):
    trainer = build(family(name, lora_rank=4))
    before = {key: p.detach().clone() for key, p in trainer.model.named_parameters()}
    trainer.train()
    moved = [key for key, p in trainer.model.named_parameters() if not torch.equal(p, before[key])]
    assert any(lora.is_adapter(key) for key in moved)
    for key, p in trainer.model.named_parameters():
        own = lora.is_adapter(key) or not key.startswith("encoder.")
        assert p.requires_grad == own and (own or torch.equal(p, before[key])), key
    changed = [
        key for key, p in trainer.model.named_parameters() if lora.is_adapter(key) and not torch.equal(p, before[key])
    ]
    assert changed
    kept = load_file(trainer.checkpoints / "best/weights.safetensors")
    assert all(lora.is_adapter(key) or not key.startswith("encoder.") for key in kept)
    same_answers(trainer, folder)


def checkpoints_its_gradients(family, name, folder):
    gradients = []
    for on in (False, True):
        trainer = build(family(name, gradient_checkpointing=on))
        trainer.model.train()
        batch = trainer.dev_loader.dataset.batch(range(4))
        torch.manual_seed(1)
        trainer.model(batch.inputs, batch.labels).total_loss.backward()
        gradients.append({key: p.grad for key, p in trainer.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-5, atol=1e-6)


def keeps_some_layers(family, name, tmp_path):
    """Asserts that all layers together predict like the encoder itself, and that a single layer can be trained and
    loaded."""
    encoder = load_pretrained(family(name).pretrain_model_path).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    inputs = dict(input_ids=ids, attention_mask=torch.ones_like(ids))
    with torch.no_grad():
        own, same = (e.eval()(**inputs).last_hidden_state for e in (encoder, keep_evenly_spaced(encoder, 2)))
    assert torch.equal(own, same)
    config = family(name, keep_layers=1)
    trainer = build(config)
    assert layer_ids(trainer.model.encoder)[1] == 1
    trainer.train()
    model, *_ = load_checkpoint(config.run_dir / "checkpoints/best")
    assert layer_ids(model.encoder)[1] == 1


CHECKS = {
    "train, independent of the batch": trains_and_scores_alone_as_in_a_batch,
    "predict from a copy": predicts_elsewhere,
    "bit-exact resume": resumes_to_equal_bytes,
    "bf16": learns_in_bf16,
    "FGM": learns_with_fgm,
    "LoRA": learns_with_lora,
    "gradient checkpointing": checkpoints_its_gradients,
    "keep layers": keeps_some_layers,
}
EXCEPT = {(name, "gradient checkpointing"): "does not support it" for name in ("ALBERT", "MPNet", "XLM", "XLNet")}
EXCEPT |= {("ALBERT", "keep layers"): "shares one layer's weights"}
EXCEPT |= {("DeBERTa v1", "bf16"): "use fp32, or a DeBERTa v2 or v3"}
ALONE = "cannot read text alone"
REFUSED = {  # unsupported families: expected error message
    "Funnel": (lambda: hf.FunnelConfig(block_sizes=[1, 1], d_model=32, n_head=2, d_head=16, d_inner=64), ALONE),
    "LayoutLM": (lambda: hf.LayoutLMConfig(**SMALL), ALONE),
    "T5": (lambda: hf.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2), ALONE),
    "X-MOD": (lambda: hf.XmodConfig(**SMALL, languages=["en_XX", "zh_CN"]), ALONE),
    "ViT": (lambda: hf.ViTConfig(**SMALL), "does not read text"),
    "Wav2Vec2": (
        lambda: hf.Wav2Vec2Config(**SMALL, conv_dim=(32,), conv_stride=(5,), conv_kernel=(10,)),
        "does not read text",
    ),
    "Whisper": (lambda: hf.WhisperConfig(**SEQ2SEQ), "cannot read"),
    "Gemma 3 with vision": (
        lambda: hf.Gemma3Config(text_config=LLAMA, vision_config=SMALL),
        "use its text model alone",
    ),
    "CLIP": (lambda: hf.CLIPConfig(text_config=SMALL, vision_config=SMALL), "does not read text"),
}


def table():
    """Returns the table of docs/families.md: a cell is "yes" if the corresponding test passes."""
    lines = ["| family | " + " | ".join(CHECKS) + " |", "| --- |" + " --- |" * len(CHECKS)]
    for name in FAMILIES:
        cells = ["rejected" if (name, check) in EXCEPT else "yes" for check in CHECKS]
        if name in ("FNet", "ConvBERT"):  # tested above, with padding_mixer
            cells[0] = "yes, no"
        lines.append(f"| {name}{', decoder' * (name in DECODERS)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_family(name, check, family, tmp_path):
    if expected := EXCEPT.get((name, check)):
        with pytest.raises(UserError, match=expected) as error:
            CHECKS[check](family, name, tmp_path)
        assert "\n" not in str(error.value)
    else:
        CHECKS[check](family, name, tmp_path)


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_family_is_a_one_line_error(name, family):
    with pytest.raises(UserError, match=REFUSED[name][1]) as error:
        build(family(name))
    assert "\n" not in str(error.value) and "use " in str(error.value)


def test_documented_table_equals_the_tests():
    assert table() in (ROOT / "docs/families.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    print(table())
