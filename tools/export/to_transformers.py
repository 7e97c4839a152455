"""Writes a checkpoint as a folder that transformers or sentence-transformers can load (`--to`).

A head can be exported if transformers has an equivalent class: one linear layer after the encoder, possibly with a
layer in between that can be set to the identity. The export is verified: the folder is loaded with the classes that a
user would use, and its predictions on dev must match the checkpoint's predictions.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from engine.errors import UserError
from engine.model.encoders import silence
from engine.model.pooling import MODES, text_vectors
from engine.run.command_line import first_line
from engine.task.task import pairs_of
from engine.task.text import HAN_CHARACTER, text_of
from engine.task.words import with_blanks

if TYPE_CHECKING:
    from data_loader import MyDataset
    from engine.data.features import Featurizer
    from engine.model.head import Head
    from model_utils import MyModel

logger = logging.getLogger("template")
TOLERANCE = 1e-4  # for probabilities, standardised regression values, and the cosines of vectors
ALTERNATIVES = "--to onnx exports every model; --to sentence-transformers exports the encoder alone"
# {kind of task: (class of transformers, problem_type in its config)}
CLASSES: dict[str, tuple[Any, str | None]] = {
    "classification": (AutoModelForSequenceClassification, "single_label_classification"),
    "multilabel": (AutoModelForSequenceClassification, "multi_label_classification"),
    "regression": (AutoModelForSequenceClassification, "regression"),
    "tagging": (AutoModelForTokenClassification, None),
}
# Values (scale, shift) that make a layer before the logits the identity, up to rounding. Its weights are scale times
# the identity matrix and its bias is shift, because tanh(scale * x) / scale ≈ x and gelu(x + shift) - shift ≈ x
IDENTITIES = ((1.0, 0.0), (1e-3, 0.0), (1.0, 50.0))
BATCH = 32


def why_not(model: MyModel, featurizer: Featurizer) -> str:
    """Returns the reason why transformers has no equivalent class for this model, or ""."""
    layer, heads = model.output_layer, list(model.output_layer.heads.values())
    [head, *more], kind = heads, heads[0].task.kind
    if more:
        return f"it has {len(heads)} tasks; train a model with one of them"
    if kind not in CLASSES or head.level not in ("text", "words"):
        return f"transformers has no class for {kind} with this head"
    if hasattr(head, "crf"):
        return "its tags come from a CRF; train with --no_use_crf"
    if len(layer.shared):
        return "it has hidden layers between encoder and head; train with --shared_layers 0"
    if layer.word_shapes is not None:
        return "its head reads word shapes; train with --word_shapes False"
    if head.level == "words" and layer.word_pooling != "first":
        return f"its head uses --word_pooling {layer.word_pooling}; train with --word_pooling first"
    if featurizer.fields or featurizer.markers or featurizer.apart:
        return "its input is not a single text, or a pair of texts that are encoded together"
    if pairs_of(featurizer.tasks) and featurizer.separator:
        separator = repr(featurizer.separator)
        return f"its tokenizer adds no separator between the texts of a pair, but it was trained with {separator}"
    return why_no_encoder(model, featurizer)


def why_no_encoder(model: MyModel, featurizer: Featurizer) -> str:
    """Returns the reason why the encoder cannot be exported alone, or ""."""
    if not hasattr(model.encoder, "config"):
        return "its encoder is not a transformers model"
    if model.window or featurizer.long_text == "head_tail":
        return "it reads long texts in windows or segments; train with --long_text head"
    return ""


def write(folder: Path, kind: str, model: MyModel, featurizer: Featurizer, data: MyDataset) -> None:
    """Writes a folder for transformers or sentence-transformers (kind), and compares it with the model.

    data: the dev split for the comparison. Raises UserError if the model cannot be exported or the results differ.
    """
    alone = kind == "sentence-transformers"
    try:
        if why := (why_no_encoder if alone else why_not)(model, featurizer):
            raise UserError(why)
        tokenizer = featurizer.tokenizer
        tokenizer.model_max_length = featurizer.max_length
        tokenizer.truncation_side = "left" if featurizer.long_text == "tail" else "right"
        tokenizer.padding_side = "right"  # as in training; matters for decoders with absolute positions
        tokenizer.save_pretrained(folder)
        (write_encoder if alone else write_model)(folder, model, featurizer, data)
    except (OSError, SafetensorError):  # disk errors
        raise
    except Exception as error:  # for some families, transformers can raise any exception
        advice = "" if alone else f". {ALTERNATIVES}"
        raise UserError(f"--to {kind}: {first_line(error)}{advice}") from None


def write_encoder(folder: Path, model: MyModel, featurizer: Featurizer, data: MyDataset) -> None:
    """Writes the encoder and its pooling for sentence-transformers."""
    encoder = AutoModel.from_config(model.encoder.config, trust_remote_code=False).float()
    found = encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    with torch.no_grad():
        for name in found.missing_keys:  # the unused pooler, which would be random
            encoder.get_parameter(name).zero_()
    encoder.save_pretrained(folder)
    write_modules(folder, model.output_layer.pooling, model.hidden_size, featurizer.max_length)
    require_same(data, Checkpoint(model, True), Exported(folder, model, True), "vectors")


def write_model(folder: Path, model: MyModel, featurizer: Featurizer, data: MyDataset) -> None:
    """Writes the encoder and the head as a model of transformers."""
    blanks = (featurizer.unit, HAN_CHARACTER) if featurizer.blanks else None
    for last, (scale, shift) in zip((False, False, True), IDENTITIES):
        target = with_head(model, scale, shift, featurizer.pad_id)
        target.save_pretrained(folder)
        try:
            return require_same(data, Checkpoint(model, False), Exported(folder, model, False, blanks), "predictions")
        except UserError:
            if last or len(layers_of(target, model)) == 1:  # there is no layer in between
                raise


# ---- weights ---------------------------------------------------------------------------------------------------------


def affine(head: Head, hidden_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the weights (C, H) and biases (C,) of a linear head.

    They include the temperature, or the mean and standard deviation of a regression.
    """
    points = torch.cat([torch.zeros(1, hidden_size), torch.eye(hidden_size)])
    shape = (1, -1, hidden_size) if head.level == "words" else (-1, hidden_size)
    with torch.no_grad():
        logits = head(points.reshape(shape), {}).reshape(hidden_size + 1, -1).double()
    scale, shift = 1 / float(head.temperature), 0.0
    if head.task.kind == "regression":
        scale, shift = float(head.task.std), float(head.task.mean)
    return scale * (logits[1:] - logits[0]).T, scale * logits[0] + shift


def with_head(model: MyModel, scale: float, shift: float, pad_id: int) -> Any:
    """Returns the encoder and head as a model of transformers. scale, shift: see IDENTITIES"""
    head = next(iter(model.output_layer.heads.values()))
    kind, problem = CLASSES[head.task.kind]
    before: Any = model.encoder.config
    shape = type(before).from_dict(before.to_dict())
    labels = [*head.task.labels] or ["LABEL_0"]
    shape.id2label = dict(enumerate(labels))
    shape.label2id = {label: number for number, label in shape.id2label.items()}
    shape.problem_type = problem
    if (
        shape.pad_token_id is None or model.output_layer.pooling == "last"
    ):  # transformers pools the last token other than this one
        shape.pad_token_id = pad_id
    try:
        target = kind.from_config(shape, trust_remote_code=False).float().eval()
    except Exception as error:  # the family has no such class
        raise UserError(first_line(error)) from None
    found = base_of(target).load_state_dict(model.encoder.state_dict(), strict=False)
    layers, (weights, biases) = layers_of(target, model), affine(head, model.hidden_size)
    require_layers(layers, weights, found.unexpected_keys)
    biases = biases - shift / scale * weights.sum(1)
    with torch.no_grad():
        for between in layers[:-1]:
            between.weight.copy_(scale * torch.eye(model.hidden_size))
            between.bias.fill_(shift)
        layers[-1].weight.copy_(weights / scale)
        into, biases = (layers[-1].bias, biases) if layers[-1].bias is not None else moved(target, weights, biases)
        into.copy_(biases)
    return target


def moved(target: Any, weights: torch.Tensor, biases: torch.Tensor) -> tuple[nn.Parameter, torch.Tensor]:
    """Moves the biases of the head to the last layer of the encoder, for classes whose head has no biases.

    Returns the bias b of this layer and its new value b + x, with weights @ x = biases. Raises UserError if the encoder
    does not end with a bias (as with RMSNorm), or if there is no such x (as with more labels than hidden dimensions).
    """
    outputs: dict[nn.Module, Any] = {}
    encoder = base_of(target)
    ending = [m for m in encoder.modules() if getattr(m, "bias", None) is not None]
    hooks = [m.register_forward_hook(lambda m, given, output: outputs.update({m: output})) for m in ending]
    hidden = encoder(torch.tensor([[0, 1]])).last_hidden_state
    for hook in hooks:
        hook.remove()
    found = [m for m, output in outputs.items() if torch.is_tensor(output) and torch.equal(output, hidden)]
    if not found:
        raise UserError(
            "the head in transformers has no biases, and the encoder does not end with biases that could replace them"
        )
    added = torch.linalg.lstsq(weights, biases.unsqueeze(1)).solution.squeeze(1)
    if not torch.allclose(weights @ added, biases, atol=1e-6):
        raise UserError(
            f"the head in transformers has no biases, and there are too many labels ({len(biases)}) to omit them"
        )
    bias = cast(nn.Parameter, found[-1].bias)
    return bias, bias.double() + added


def base_of(target: Any) -> Any:
    """Returns the encoder of a transformers model."""
    return getattr(target, target.base_model_prefix)


def layers_of(target: Any, model: MyModel) -> list[Any]:
    """Returns the layers of a transformers model other than the encoder, in order."""
    known = {name for name, _ in model.encoder.named_parameters()}
    own = {id(parameter) for name, parameter in base_of(target).named_parameters() if name in known}
    return [m for m in target.modules() if any(id(parameter) not in own for parameter in m.parameters(recurse=False))]


def require_layers(layers: list[nn.Module], weights: torch.Tensor, unexpected: list[str]) -> None:
    """Raises UserError unless the layers after the encoder are one linear layer with the shape of `weights`, possibly
    after a square linear layer with biases."""
    sizes = [tuple(layer.weight.shape) if isinstance(layer, nn.Linear) else None for layer in layers]
    expected = [(weights.shape[1], weights.shape[1]), tuple(weights.shape)]
    if unexpected or sizes not in (expected, expected[1:]) or any(layer.bias is None for layer in layers[:-1]):
        raise UserError("its class in transformers has other layers after the encoder")


def write_modules(folder: Path, pooling: str, hidden_size: int, max_length: int) -> None:
    """Writes the files that sentence-transformers needs in addition to the encoder."""
    switches = {switch: mode == pooling for switch, mode in MODES.values()}
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "1_Pooling").mkdir()
    files = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": hidden_size, **switches},
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ---- comparison ------------------------------------------------------------------------------------------------------


def probabilities(kind: str, logits: torch.Tensor) -> torch.Tensor:
    """Returns the probabilities for logits that include the temperature, or the values of a regression."""
    logits = logits.double()
    return logits if kind == "regression" else logits.sigmoid() if kind == "multilabel" else logits.softmax(-1)


class Checkpoint:
    """Computes the predictions of the checkpoint, or its text vectors if `alone`."""

    def __init__(self, model: MyModel, alone: bool):
        self.model, self.alone = model, alone
        task = next(iter(model.output_layer.heads.values())).task
        self.by_words = not alone and task.kind == "tagging"
        self.unit = task.std if not alone and task.kind == "regression" else 1.0

    def __call__(self, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """Returns for each row the probabilities (C,), those of its words (W, C), or its normalised vector (H,)."""
        if self.alone:
            return [*nn.functional.normalize(self.model.embed(inputs).double(), dim=1)]
        [(name, head)] = self.model.output_layer.heads.items()
        logits = self.model(inputs).logits[name].double()
        if head.task.kind == "regression":
            return [*(logits.unsqueeze(-1) * head.task.std + head.task.mean)]
        found = probabilities(head.task.kind, logits / float(head.temperature))
        return [row[mask] for row, mask in zip(found, inputs["word_mask"])] if head.level == "words" else [*found]


class Exported:
    """Computes the same for an exported folder, the way a user would."""

    def __init__(self, folder: Path, model: MyModel, alone: bool, blanks: tuple[str, Any] | None = None):
        self.blanks = blanks  # further arguments of `with_blanks`, for tokenizers that need leading spaces
        self.kind = None if alone else next(iter(model.output_layer.heads.values())).task.kind
        self.pooling = model.output_layer.pooling
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with silence():
            load = CLASSES[self.kind][0] if self.kind else AutoModel
            self.model, found = load.from_pretrained(folder, trust_remote_code=False, output_loading_info=True)
        if found["missing_keys"]:
            raise UserError(f"{min(found['missing_keys'])} would have random weights in transformers")
        self.model.eval()

    def __call__(self, rows: list[dict[str, Any]]) -> list[torch.Tensor]:
        options = dict(truncation=True, padding=True, return_tensors="pt", verbose=False)
        if self.kind == "tagging":
            words = [with_blanks(row["tokens"], *self.blanks) if self.blanks else row["tokens"] for row in rows]
            encoded = self.tokenizer(words, is_split_into_words=True, **options)
        elif "text_pair" in rows[0] and self.kind:
            encoded = self.tokenizer([row["text"] for row in rows], [row["text_pair"] for row in rows], **options)
        else:
            encoded = self.tokenizer([text_of(row) for row in rows], **options)
        output = self.model(**encoded)
        if not self.kind:
            vectors = text_vectors(output.last_hidden_state, encoded, self.pooling)
            return [*nn.functional.normalize(vectors.double(), dim=1)]
        found = probabilities(self.kind, output.logits)
        if self.kind != "tagging":
            return [*found]
        firsts = [first_tokens(encoded.word_ids(number)) for number in range(len(rows))]
        return [row[positions] for row, positions in zip(found, firsts)]


def first_tokens(word_ids: list[int | None]) -> list[int]:
    """Returns the position of the first sub-token of each word."""
    return [i for i, word in enumerate(word_ids) if word is not None and word not in word_ids[max(0, i - 1) : i]]


def comparable(data: MyDataset) -> list[int]:
    """Returns the indices of the examples that both models read completely.

    For tagging these are the texts that fit into one window, because tokenizers truncate within words.
    """
    if not data.featurizer.tagging:
        return [*range(len(data))]
    rows = np.bincount(data.example_index, minlength=len(data))
    return [*np.flatnonzero((rows == 1) & (data.columns["num_cut"][data.first_rows] == 0))]


def num_different(data: MyDataset, examples: list[int], checkpoint: Checkpoint, exported: Exported) -> int:
    """Counts examples with different labels, or with probabilities that differ by more than TOLERANCE."""
    different = 0
    for start in tqdm(range(0, len(examples), BATCH), desc="comparing", leave=False, delay=2):
        numbers = examples[start : start + BATCH]
        own = checkpoint(data.batch(data.first_rows[numbers]).inputs)
        for a, b in zip(own, exported([data[number] for number in numbers])):
            same = a.shape == b.shape and bool(((a - b).abs() <= TOLERANCE * checkpoint.unit).all())
            different += not (same and torch.equal(a.argmax(-1), b.argmax(-1)))
    return different


def require_same(data: MyDataset, checkpoint: Checkpoint, exported: Exported, what: str) -> None:
    """Logs how many dev examples have the same result. Raises UserError if more than 1 % differ, or if there are none.

    what: the name of the results in the log line
    """
    examples = comparable(data)
    if not examples:
        raise UserError("no dev example fits into --max_length, so nothing can be compared")
    with torch.inference_mode():
        wrong = num_different(data, examples, checkpoint, exported)
    if wrong > 0.01 * len(examples):
        pooling = checkpoint.model.output_layer.pooling
        hint = f" (trained with --pooling {pooling}; transformers mostly uses first, or last for decoders)"
        hint = "" if checkpoint.by_words else hint
        raise UserError(f"{wrong} of {len(examples)} dev examples differ from torch{hint}")
    same = f"{len(examples) - wrong} of {len(examples)} dev examples have the same {what} as the checkpoint"
    logger.info(f"{same} (within {TOLERANCE})")
