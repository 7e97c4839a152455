import itertools

import numpy as np
import pytest
import torch
import torchcrf
import transformers
from test_trainer import make_trainer
from transformers import AutoModel, BertConfig

import main
from config import Config
from engine.data.tokenizer import train_tokenizer
from engine.errors import UserError
from engine.model.crf import CRF
from engine.model.encoders import layer_ids
from engine.run import compat
from engine.task.tags import may_follow
from engine.task.task import Task
from engine.train.optimization import learning_rates, parameter_groups
from model_utils import HEADS, BiLSTM, HeadOptions, MyModel, TaggingHead, build_model, heads_of, mean_of_tokens

TASKS = {
    "intent": Task("classification", labels=["a", "b", "c"]),
    "slots": Task("tagging", labels=["O", "B-x", "I-x"], unit="word"),
}


def log_likelihood(crf, emissions, tags, mask):
    return crf.path_score(emissions, tags, mask) - crf.log_partition(emissions, mask)


def crf_case(labels, batch=3, width=4, seed=0, scale=1.0):
    torch.manual_seed(seed)
    crf = CRF(labels)
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    lengths = [width, *torch.randint(1, width + 1, (batch - 1,)).tolist()]
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return crf, torch.randn(batch, width, len(labels)) * scale, mask, lengths


def path_score(crf, emissions, path):
    score = (
        crf.start_transitions[path[0]]
        + crf.end_transitions[path[-1]]
        + sum(emissions[t, tag] for t, tag in enumerate(path))
    )
    return score + sum(crf.transitions[a, b] for a, b in itertools.pairwise(path))


@pytest.mark.parametrize("seed", range(4))
def test_crf_likelihood_and_decoding_equal_brute_force(seed):
    labels = ["O", "B-x", "I-x", "B-y"]
    crf, emissions, mask, lengths = crf_case(labels, seed=seed)
    tags = torch.randint(0, 4, mask.shape)
    likelihood, decoded = log_likelihood(crf, emissions, tags, mask), crf.viterbi(emissions, mask)
    for row, length in enumerate(lengths):
        paths = list(itertools.product(range(4), repeat=length))
        scores = torch.stack([path_score(crf, emissions[row], path) for path in paths])
        expected = path_score(crf, emissions[row], tags[row, :length].tolist()) - scores.logsumexp(0)
        torch.testing.assert_close(likelihood[row], expected)
        legal = [all(may_follow(labels[a], labels[b], False) for a, b in zip((0, *path), path)) for path in paths]
        best = paths[scores.masked_fill(~torch.tensor(legal), -torch.inf).argmax()]
        assert decoded[row, :length].tolist() == list(best)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_crf_equals_pytorch_crf_in_value_and_gradient(scale):
    labels = [f"B-{i}" for i in range(9)]  # no transition is forbidden, so decoding must agree, too
    crf, emissions, mask, lengths = crf_case(labels, batch=16, width=12, scale=scale)
    reference = torchcrf.CRF(9, batch_first=True)
    reference.load_state_dict(crf.state_dict())
    tags, results = torch.randint(0, 9, mask.shape), []
    for model, likelihood in (
        (crf, lambda e: log_likelihood(crf, e, tags, mask)),
        (reference, lambda e: reference(e, tags, mask, reduction="none")),
    ):
        e = emissions.clone().requires_grad_()
        value = likelihood(e)
        value.sum().backward()
        results.append([value.detach(), e.grad, *(p.grad for p in model.parameters())])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert [row[:n] for row, n in zip(crf.viterbi(emissions, mask).tolist(), lengths)] == reference.decode(
        emissions, mask
    )


def test_crf_has_finite_gradients_where_transitions_are_forbidden_by_hand():
    crf, emissions, mask, _ = crf_case(["O", "B-x", "I-x"], scale=1.0)
    with torch.no_grad():
        crf.transitions[0, 2] = -1e4
    emissions = (emissions * 100).requires_grad_()
    loss = -log_likelihood(crf, emissions, torch.zeros(mask.shape, dtype=torch.long), mask).sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(emissions.grad).all() and torch.isfinite(crf.transitions.grad).all()


def test_decoding_never_breaks_bio_or_bioes():
    for labels, last in ((["O", "B-x", "I-x", "B-y", "I-y"], "OBI"), (["O", "B-x", "I-x", "E-x", "S-x"], "OES")):
        crf, emissions, mask, lengths = crf_case(labels, batch=40, width=9, scale=3.0)
        for row, length in zip(crf.viterbi(emissions, mask).tolist(), lengths):
            names = [labels[i] for i in row[:length]]
            assert all(may_follow(a, b, "S-x" in labels) for a, b in zip(["O", *names], names)) and names[-1][0] in last
            if "S-x" in labels:
                assert not any(a[0] in "BI" and b[0] in "OBS" for a, b in itertools.pairwise(names))


def tokenizer():
    return train_tokenizer(lambda: ["turn on the light", "play a song", "播放音乐", "turn off the song"] * 3, 200)


def inputs_of(model_tokenizer, texts):
    encoded = model_tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=True)
    mask = encoded["attention_mask"].bool()
    return {
        **encoded,
        "word_starts": torch.arange(1, mask.shape[1]).expand(len(texts), -1),
        "word_mask": mask[:, 2:].new_ones(len(texts), mask.shape[1] - 1) & mask[:, 1:],
    }


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(use_crf=True, shared_layers=2),
        dict(encoder="bilstm"),
        dict(encoder="bilstm", use_crf=True),
        dict(pooling="mean"),
    ],
)
def test_padding_does_not_change_logits(options):
    torch.manual_seed(0)
    words = tokenizer()
    model = build_model(Config(hidden_size=32, num_layers=2, **options), words, TASKS).eval()
    both = inputs_of(words, ["turn on the light", "play"])
    alone = {name: tensor[1:] for name, tensor in both.items()}
    kept = alone["attention_mask"].sum().item()
    alone = {name: tensor[:, : kept - (name.startswith("word"))] for name, tensor in alone.items()}
    with torch.inference_mode():
        together, single = model(both), model(alone)
    torch.testing.assert_close(together.logits["intent"][1:], single.logits["intent"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.logits["slots"][1:, : kept - 1], single.logits["slots"], rtol=1e-4, atol=1e-5)
    label_ids, probabilities = model.decode(single.logits, alone)["slots"]
    assert label_ids.shape == probabilities.shape[:2] == (1, kept - 1) and (probabilities <= 1).all()


def test_the_mean_of_a_text_is_that_of_its_real_tokens():
    torch.manual_seed(0)
    model = build_model(Config(hidden_size=32, num_layers=1, pooling="mean"), tokenizer(), TASKS).eval()
    hidden, mask = torch.randn(3, 400, 32).bfloat16(), torch.zeros(3, 400, dtype=torch.long)
    for i, length in enumerate((1, 2, 391)):
        mask[i, :length] = 1
    inputs = {"attention_mask": mask, "word_starts": torch.zeros(3, 1, dtype=torch.long)}
    means = [sum(hidden[i, j].double() for j in range(400) if mask[i, j]) / mask[i].sum() for i in range(3)]
    expected = torch.stack(means).float()
    torch.testing.assert_close(mean_of_tokens(hidden, mask), expected, rtol=1e-5, atol=1e-5)
    head = model.output_layer.heads["intent"]
    torch.testing.assert_close(
        model.output_layer(hidden.float(), inputs)["intent"], head(expected, inputs), rtol=1e-5, atol=1e-5
    )


def test_losses_are_means_over_labels_and_weighted_by_task():
    torch.manual_seed(0)
    words = tokenizer()
    model = build_model(
        Config(hidden_size=32, num_layers=1, use_crf=False, task_weights="slots=3"), words, TASKS
    ).eval()
    inputs = inputs_of(words, ["turn on the light", "play"])
    slots = torch.where(inputs["word_mask"], 1, -100)
    slots[0, 0] = -100
    output = model(inputs, {"intent": torch.tensor([2, -100]), "slots": slots})
    expected = -output.logits["slots"].log_softmax(-1)[slots >= 0][:, 1].mean()
    torch.testing.assert_close(output.losses["slots"], expected)
    torch.testing.assert_close(output.losses["intent"], -output.logits["intent"].log_softmax(-1)[0, 2])
    torch.testing.assert_close(output.total_loss, output.losses["intent"] + 3 * expected)
    nothing = model(inputs, {"intent": torch.tensor([-100, -100]), "slots": torch.full_like(slots, -100)})
    assert nothing.total_loss.item() == 0  # a batch without labels has a loss of 0 instead of NaN


def test_crf_loss_ignores_texts_with_unknown_tags():
    words = tokenizer()
    model = build_model(Config(hidden_size=32, num_layers=1, use_crf=True), words, TASKS).eval()
    inputs = inputs_of(words, ["turn on the light", "play a song"])
    slots = torch.where(inputs["word_mask"], 1, -100)
    slots[0, 1] = -100
    joint = model(inputs, {"slots": slots}).losses["slots"]
    alone = model({name: tensor[1:] for name, tensor in inputs.items()}, {"slots": slots[1:]}).losses["slots"]
    torch.testing.assert_close(joint, alone)


@pytest.mark.parametrize(
    "layers, frozen", [(0, set()), (1, {"embeddings", "layer.0"}), (-1, {"embeddings", "layer.0", "layer.1"})]
)
def test_freezing(layers, frozen):
    model = build_model(Config(hidden_size=32, num_layers=2, freeze_layers=layers), tokenizer(), TASKS)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not any(part in name for part in frozen), name
    with pytest.raises(UserError, match="freeze_layers"):
        build_model(Config(hidden_size=32, num_layers=2, freeze_layers=7), tokenizer(), TASKS)


def test_depths_of_other_encoders():
    """Parameters outside all layers are treated like the embeddings, so they are frozen and decayed."""
    from transformers import AlbertConfig, AutoModel, DebertaV2Config, MPNetConfig, XLMConfig

    shape = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50)
    for settings, layers, low in (
        (
            DebertaV2Config(**shape, relative_attention=True, max_relative_positions=16),
            2,
            "encoder.rel_embeddings.weight",
        ),
        (AlbertConfig(**shape, embedding_size=16), 1, "encoder.embedding_hidden_mapping_in.weight"),
        (MPNetConfig(**shape), 2, "encoder.relative_attention_bias.weight"),
        (XLMConfig(emb_dim=32, n_layers=2, n_heads=2, vocab_size=50), 2, "position_embeddings.weight"),
    ):
        found, count = layer_ids(AutoModel.from_config(settings))
        above = {name for name, depth in found.items() if depth > count}
        assert count == layers and found[low] == 0 and all("pooler" in name for name in above), above
        assert {depth for depth in found.values() if 0 < depth <= count} == set(range(1, count + 1))


def test_parameter_groups_cover_everything_once():
    config = Config(hidden_size=32, num_layers=1, use_crf=True, lr=1e-4, head_lr=2e-3)
    model = build_model(config, tokenizer(), TASKS)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, config)
    seen = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(names.values())
    for group in groups:
        for name in (names[id(p)] for p in group["params"]):
            assert group["lr"] == (1e-4 if name.startswith("encoder.") else 2e-3)
            assert (group["weight_decay"] == 0) == (name.endswith("bias") or "LayerNorm" in name or ".crf." in name)
    assert learning_rates(model.encoder, Config()) == (1e-3, 1e-3)


def test_task_names_that_torch_reserves_and_unknown_weights():
    tasks = dict.fromkeys(("type", "items", "forward"), TASKS["intent"])
    model = build_model(Config(hidden_size=32, num_layers=1), tokenizer(), tasks)
    assert set(model.output_layer.heads.keys()) == set(tasks) and any(
        "heads.type.linear" in key for key in model.state_dict()
    )
    with pytest.raises(UserError, match="task_weights"):
        MyModel(model.encoder, 32, tasks, HeadOptions(task_weights={"intent": 1.0}))


def test_a_pretrained_folder_loads_its_weights_and_grows_for_special_tokens(tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    words = tokenizer()
    torch.manual_seed(3)
    bert = BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
    )
    bert.save_pretrained(tmp_path / "bert")
    words.save_pretrained(tmp_path / "bert")
    config = Config(pretrain_model_path=str(tmp_path / "bert"), special_tokens="<e1>,</e1>")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "bert")
    loaded.add_special_tokens({"additional_special_tokens": ["<e1>", "</e1>"]})
    model = build_model(config, loaded, TASKS)
    own = dict(model.encoder.named_parameters())
    assert own["embeddings.word_embeddings.weight"].shape[0] == len(words) + 2
    for name, parameter in bert.named_parameters():
        if "pooler" not in name:
            assert torch.equal(own[name][: parameter.shape[0]], parameter), name
    with pytest.raises(UserError, match="embedding"):
        build_model(Config(pretrain_model_path=str(tmp_path / "bert")), loaded, TASKS)
    torch.save({}, tmp_path / "bert/pytorch_model.bin")
    (tmp_path / "bert/model.safetensors").unlink()
    with pytest.raises(UserError, match="pretrain_model_path"):
        build_model(Config(pretrain_model_path=str(tmp_path / "bert")), words, TASKS)


def test_a_bilstm_is_torchs_lstm_of_several_layers():
    """Includes dropout, whose masks come from torch's generator, which is stored in checkpoints."""
    torch.manual_seed(0)
    model = BiLSTM(50, 16, 3, 0.5, pad_id=0)
    whole = torch.nn.LSTM(16, 8, 3, batch_first=True, bidirectional=True, dropout=0.5)
    weights = {
        name.replace("l0", f"l{k}"): p for k, layer in enumerate(model.layers) for name, p in layer.state_dict().items()
    }
    whole.load_state_dict(weights)
    mask = torch.arange(7) < torch.tensor([[7], [3], [5]])
    ids = torch.randint(1, 50, (3, 7)) * mask
    for module in (model, whole):
        module.train()
    torch.manual_seed(1)
    found = model(ids, mask.long()).last_hidden_state
    torch.manual_seed(1)
    vectors = torch.nn.functional.dropout(model.embeddings(ids), 0.5)
    packed = torch.nn.utils.rnn.pack_padded_sequence(vectors, mask.sum(1), batch_first=True, enforce_sorted=False)
    expected, _ = torch.nn.utils.rnn.pad_packed_sequence(whole(packed)[0], batch_first=True)
    assert torch.equal(found[:, 1:], expected[:, 1:])


def test_an_encoder_stored_in_half_precision_trains_and_returns_in_full(tmp_path):
    from transformers import BertConfig, BertModel

    words = tokenizer()
    bert = BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
    )
    bert.half().save_pretrained(tmp_path / "half")
    model = build_model(Config(pretrain_model_path=str(tmp_path / "half")), words, TASKS)
    model.encoder.config.save_pretrained(tmp_path / "again")
    again = build_model(Config(pretrain_model_path="gone"), words, TASKS, checkpoint=tmp_path / "again")
    assert {p.dtype for p in (*model.parameters(), *again.parameters())} == {torch.float32}


def test_robertas_positions_start_after_the_padding_index(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    words = tokenizer()
    RobertaModel(
        RobertaConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=66,
            pad_token_id=1,
        )
    ).save_pretrained(tmp_path)
    build_model(Config(pretrain_model_path=str(tmp_path), max_length=64), words, TASKS)
    with pytest.raises(UserError, match="64 positions"):
        build_model(Config(pretrain_model_path=str(tmp_path), max_length=65), words, TASKS)


def test_freezing_layers_freezes_only_earlier_modules(tmp_path):
    from transformers import ModernBertConfig, ModernBertModel

    words = tokenizer()
    ModernBertModel(
        ModernBertConfig(
            vocab_size=len(words),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            pad_token_id=0,
        )
    ).save_pretrained(tmp_path)
    model = build_model(Config(pretrain_model_path=str(tmp_path), freeze_layers=1), words, TASKS)
    trained = {name for name, p in model.encoder.named_parameters() if p.requires_grad}
    assert "final_norm.weight" in trained and not any(name.startswith(("embeddings", "layers.0.")) for name in trained)
    assert any(name.startswith("layers.1.") for name in trained)


# ---- heads and losses, compared with torch and scikit-learn ------------------------------------------


def heads_case(kind="classification", size=4, batch=12, **options):
    torch.manual_seed(0)
    head = HEADS[kind](8, Task(kind, labels=[f"l{i}" for i in range(size)], counts=[12, 6, 2, 60][:size]))
    head.set_options(Config(**options), "x")
    logits = (torch.randn(batch, size) * 2).requires_grad_()
    return head, logits, torch.randint(0, size, (batch,))


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_and_smoothed_losses_are_torchs_means(weights, smoothing):
    head, logits, labels = heads_case(label_smoothing=smoothing, class_weights="balanced" if weights else "none")
    labels[3] = -100
    ours = head.loss(logits, labels, None) / head.label_weights(labels, None).sum()
    expected = torch.nn.CrossEntropyLoss(weight=head.class_weights, label_smoothing=smoothing)(logits, labels)
    torch.testing.assert_close(ours, expected)


def test_focal_loss_by_its_formula():
    head, logits, labels = heads_case(focal_gamma=2.0)
    p = logits.softmax(1)[range(12), labels]
    torch.testing.assert_close(head.loss(logits, labels, None), (-((1 - p) ** 2) * p.log()).sum())
    head, logits, _ = heads_case("multilabel", focal_gamma=2.0)
    labels = torch.randint(0, 2, (12, 4))
    p = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(head.loss(logits, labels, None), (-((1 - p) ** 2) * p.log()).sum())


def test_balanced_weights_are_scikit_learns(tiny):
    from sklearn.utils.class_weight import compute_class_weight

    labels = ["a"] * 50 + ["b"] * 5 + ["c"] * 10
    tasks = {"x": Task("classification", labels=["a", "b", "c"], counts=[50, 5, 10])}
    model = build_model(tiny(class_weights="balanced", label_smoothing=0.1, focal_gamma=1.0), tokenizer(), tasks)
    head = model.output_layer.heads["x"]
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    assert head.class_weights.tolist() == pytest.approx(expected.tolist()) and (
        head.label_smoothing,
        head.focal_gamma,
    ) == (0.1, 1.0)
    assert "output_layer.heads.x.class_weights" not in model.state_dict()
    labels = torch.tensor([0, 1, -100, 2])  # the divisor in training: the sum of the labels' weights
    assert head.label_weights(labels, None).sum().item() == pytest.approx(expected.sum())
    with pytest.raises(UserError, match="no counts"):
        build_model(tiny(class_weights="balanced"), tokenizer(), {"x": Task("classification", labels=["a", "b"])})


def test_multilabel_loss_threshold_and_names():
    head, logits, _ = heads_case("multilabel", size=3, batch=40)
    labels = torch.randint(0, 2, (40, 3))
    labels[5] = -100
    known = labels[:, 0] != -100
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known].float())
    torch.testing.assert_close(head.loss(logits, labels, None) / head.label_weights(labels, None).sum(), expected)
    head.calibrate(logits.detach(), labels)

    def f1(threshold):
        taken = logits.sigmoid()[known] >= threshold
        return (2 * (taken & (labels[known] == 1)).sum() / (taken.sum() + labels[known].sum())).item()

    best = max(f1(chance.item()) for chance in logits.sigmoid()[known].flatten())
    assert f1(head.threshold.item()) == pytest.approx(best) and 0 < head.threshold < 1
    label_ids, probabilities = head.decode(logits, None)
    labels_of, probabilities_of = head.to_labels(label_ids[0].tolist(), probabilities[0].tolist())
    assert labels_of == [f"l{i}" for i in range(3) if probabilities[0, i] >= head.threshold] and len(
        probabilities_of
    ) == len(labels_of)
    before = head.threshold.clone()
    head.calibrate(logits.detach(), torch.zeros_like(labels))  # a split without any label does not change the threshold
    assert head.threshold == before


def test_regression_is_scaled_and_comes_back_in_its_own_units():
    head = HEADS["regression"](8, Task("regression", mean=50.0, std=10.0))
    vectors = torch.randn(5, 8)
    logits, labels = head(vectors, {}), torch.tensor([40.0, 60.0, float("nan"), 55.0, 50.0])
    assert logits.shape == (5,)
    known = ~labels.isnan()
    expected = torch.nn.functional.mse_loss(logits[known], (labels[known] - 50) / 10)
    torch.testing.assert_close(head.loss(logits, labels, None) / head.label_weights(labels, None).sum(), expected)
    head.loss(logits, labels, None).backward()
    assert torch.isfinite(head.linear.weight.grad).all()
    torch.testing.assert_close(head.decode(logits, None)[0], logits.double() * 10 + 50)
    assert head.to_labels(3.5, 1.0) == (3.5, None)


def test_a_replaced_tagging_head_is_used_despite_the_default_crf(monkeypatch, tiny, logged):
    class MyTagger(TaggingHead):
        pass

    tasks = {"slots": Task("tagging", ["O", "B-x"], unit="word")}
    assert heads_of(tasks, use_crf=True)["slots"] is HEADS["crf_tagging"]
    monkeypatch.setitem(HEADS, "tagging", MyTagger)
    assert heads_of(tasks, use_crf=True)["slots"] is MyTagger
    config = tiny(focal_gamma=2.0, use_crf=True)
    main.load_data(config, torch.device("cpu"))
    assert "no effect on tagging" not in logged.text
    monkeypatch.undo()
    main.load_data(config, torch.device("cpu"))
    assert "no effect on tagging with a CRF" in logged.text


@pytest.mark.parametrize("kind", ["classification", "multilabel", "tagging", "crf"])
def test_the_average_of_equal_models_is_that_model(kind):
    task = Task("tagging" if kind == "crf" else kind, labels=["O", "B-x", "I-x"])
    torch.manual_seed(1)
    head = HEADS["crf_tagging" if kind == "crf" else kind](8, task)
    logits = torch.randn(2, 5, 3) if head.level == "words" else torch.randn(2, 3)
    inputs = {"word_mask": torch.ones(2, 5, dtype=torch.bool)}
    mean = torch.stack([head.distribution.to_average(logits)] * 3).mean(0)
    again, expected = head.decode(head.distribution.from_average(mean), inputs), head.decode(logits, inputs)
    assert torch.equal(again[0], expected[0])
    torch.testing.assert_close(again[1], expected[1])


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra", "albert"])
def test_the_gpu_mask_equals_the_plain_mask(kind):
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    torch.manual_seed(0)
    shape = AutoConfig.for_model(
        kind, vocab_size=50, max_position_embeddings=40, pad_token_id=0, initializer_range=0.3, **sizes
    )
    model = MyModel(AutoModel.from_config(shape), 32, TASKS).eval()
    lengths = torch.tensor([9, 4, 6])
    mask = (torch.arange(16) < lengths[:, None]).long()
    inputs = {
        "input_ids": torch.randint(5, 50, (3, 16)) * mask,
        "attention_mask": mask,
        "token_type_ids": torch.zeros_like(mask),
    }
    inputs |= {"word_starts": torch.arange(1, 4).repeat(3, 1), "word_mask": torch.ones(3, 3, dtype=torch.bool)}
    plain = model(inputs).logits
    model.wide_mask_on = "cpu"
    assert model.takes_wide_mask == compat.takes_4d_mask()  # otherwise a GPU gets the plain mask
    for name, logits in model(inputs).logits.items():
        torch.testing.assert_close(logits, plain[name])


@pytest.mark.slow
def test_compile_makes_few_graphs_for_all_length_buckets(tiny, monkeypatch):
    """For batches of every width from 6 to 40, the compiled encoder is traced once for training and once for
    evaluation."""
    from test_trainer import make_trainer
    from torch._dynamo.testing import CompileCounterWithBackend

    options = []
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "compile", lambda module, **flags: options.append(flags))
        make_trainer(tiny(compile=True))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    encoder = AutoModel.from_config(
        BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    )
    encoder.compile(**options[0], backend=counter)
    for training in (True, False):
        encoder.train(training)
        for width in range(6, 41):
            ids, mask = torch.randint(0, 50, (4 + width % 3, width)), torch.ones(4 + width % 3, width, dtype=torch.long)
            with torch.set_grad_enabled(training):
                encoder(input_ids=ids, attention_mask=mask)
    torch._dynamo.reset()
    assert counter.frame_count <= 2, counter.frame_count


def save_encoder(folder, config):
    """Saves a small encoder with random weights and its tokenizer, like save_pretrained. Returns the folder."""
    words = train_tokenizer(lambda: ["play a song now"] * 3, 100)
    config.vocab_size = len(words)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config, trust_remote_code=False).save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
UNSUPPORTED = {
    "T5": (
        lambda: transformers.T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2),
        "t5 cannot read text alone",
    ),
    "LayoutLM": (lambda: transformers.LayoutLMConfig(**SMALL), "layoutlm cannot read text alone"),
    "X-MOD": (lambda: transformers.XmodConfig(**SMALL, languages=["en_XX", "zh_CN"]), "xmod cannot read text alone"),
    "ViT": (lambda: transformers.ViTConfig(**SMALL), "vit does not read text"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_unsupported_encoder_raises_a_one_line_error(name, tiny, tmp_path):
    config, message = UNSUPPORTED[name]
    folder = save_encoder(tmp_path / "encoder", config())
    with pytest.raises(UserError) as error:
        make_trainer(tiny(pretrain_model_path=folder))
    assert (
        message in str(error.value)
        and "use an encoder such as BERT" in str(error.value)
        and "\n" not in str(error.value)
    )


WORKING = {
    "XLNet": lambda: transformers.XLNetConfig(d_model=32, n_layer=1, n_head=2, d_inner=64),
    "BART": lambda: transformers.BartConfig(
        **dict(d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2),
        **dict(encoder_ffn_dim=64, decoder_ffn_dim=64, scale_embedding=True),
    ),
    "Longformer": lambda: transformers.LongformerConfig(**SMALL, attention_window=8),
}


@pytest.mark.parametrize("name", WORKING)
@pytest.mark.parametrize("trick", ["use_fgm", "use_smart", "use_freelb"])
def test_unusual_encoders_train_with_adversarial_methods_or_raise_an_error(name, trick, tiny, tmp_path):
    config = tiny(
        pretrain_model_path=save_encoder(tmp_path / "encoder", WORKING[name]()),
        epochs=1,
        max_length=64,
        **{trick: True},
    )
    if name == "XLNet" and trick != "use_fgm":
        with pytest.raises(UserError, match="cannot add noise to this encoder's word vectors"):
            make_trainer(config)
        return
    trainer = make_trainer(config)
    assert trainer.train() is not None
    model, data = trainer.model.eval(), trainer.dev_loader.dataset
    with torch.no_grad():
        together = model(data.batch(range(8)).inputs).logits["intent"]
        alone = torch.cat([model(data.batch([row]).inputs).logits["intent"] for row in range(8)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
