"""Exports a model as one ONNX graph from inputs to the logits of each task, with dynamic batch size and length."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from engine.data.own_inputs import fields_of
from engine.errors import UserError
from engine.model import lora
from engine.model.long_texts import OF_TOKENS
from engine.run.command_line import first_line
from engine.task.task import pairs_of

if TYPE_CHECKING:
    from data_loader import Batch
    from engine.data.features import Featurizer
    from model_utils import BiLSTM, MyModel

NEEDED = "pip install -r tools/export/requirements.txt"
MAX_BYTES = 2**30  # maximum size of tensors in the graph file, which is limited to 2 GB


def require_packages() -> None:
    """Raises UserError if a required package is missing, or if torch is too old."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"tools.export needs the package {error.name}; {NEEDED}") from None
    if not hasattr(torch.onnx, "ops"):
        raise UserError(
            f"tools.export needs torch 2.8 or newer, but this is {torch.__version__}; export in another environment"
        )


class LogitsOnly(nn.Module):
    """Wraps a MyModel: takes tensors in the order of `names` and returns the logits of each task.

    If the model reads long texts in windows, token inputs have the shape (B, N, L), with N windows of L tokens. Windows
    may be empty.
    """

    def __init__(self, model: MyModel, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = dict(zip(self.names, tensors))
        if not self.model.window:
            return tuple(self.model(inputs).logits.values())
        mask = inputs["attention_mask"]
        rows = {name: inputs[name].flatten(0, 1) for name in OF_TOKENS if name in inputs}
        rows["attention_mask"] = torch.cat([torch.ones_like(mask[:, :, :1]), mask[:, :, 1:]], 2).flatten(0, 1)
        hidden = self.model.encode_rows(rows).unflatten(0, mask.shape[:2]).flatten(1, 2)
        texts = {name: inputs[name].flatten(1, 2) for name in rows} | {"window_mask": mask}
        return tuple(self.model.output_layer(hidden, inputs | texts).values())


class PaddedLSTM(nn.Module):
    """The BiLSTM of model_utils.py with one ONNX LSTM operator per layer, which accepts sequence lengths.

    Packed sequences of torch cannot be exported. The order of gates is i, f, g, o in torch and i, o, f, g in ONNX.
    """

    def __init__(self, encoder: BiLSTM):
        super().__init__()
        self.embeddings = encoder.embeddings
        layers = cast(list[nn.LSTM], list(encoder.layers))
        self.sizes = [layer.hidden_size for layer in layers]
        for number, layer in enumerate(layers):
            for kind in ("weight_ih", "weight_hh", "bias"):
                directions = [self.reordered(layer, kind, suffix) for suffix in ("", "_reverse")]
                self.register_buffer(f"{kind}_{number}", torch.stack(directions))

    def reordered(self, layer: nn.LSTM, kind: str, suffix: str) -> torch.Tensor:
        """Returns a parameter of one direction in ONNX's gate order. The two biases are concatenated."""
        names = [f"{name}_l0{suffix}" for name in (("bias_ih", "bias_hh") if kind == "bias" else (kind,))]
        parts = [getattr(layer, name).detach().chunk(4) for name in names]
        return torch.cat([torch.cat([i, o, f, g]) for i, f, g, o in parts])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        lengths = attention_mask.sum(1).to(torch.int32)
        hidden = self.embeddings(input_ids).transpose(0, 1)  # (L, B, H)
        for number, size in enumerate(self.sizes):
            weights = [getattr(self, f"{kind}_{number}") for kind in ("weight_ih", "weight_hh", "bias")]
            steps, batch = hidden.shape[:2]
            both = torch.onnx.ops.symbolic(
                "LSTM",
                (hidden, *weights, lengths),
                attrs={"hidden_size": size, "direction": "bidirectional"},
                dtype=hidden.dtype,
                shape=(steps, 2, batch, size),
            )
            hidden = both.permute(0, 2, 1, 3).flatten(2)
        hidden = hidden.transpose(0, 1)  # (B, L, H)
        last = (lengths.long() - 1)[:, None, None].expand(-1, 1, hidden.shape[2] // 2)
        forward, backward = hidden.chunk(2, 2)
        first = torch.cat([forward.gather(1, last), backward[:, :1]], 2)  # the final states of both directions
        return SimpleNamespace(last_hidden_state=torch.cat([first, hidden[:, 1:]], 1))


def merge_adapter(encoder: nn.Module) -> None:
    """Merges LoRA adapters: replaces each adapted layer with a plain one whose weight is W + alpha / r * B A."""
    for name, module in list(encoder.named_modules()):
        if hasattr(module, "base_layer") and hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight(lora.ADAPTER)
            plain = module.base_layer
            plain.weight.data = plain.weight.data.float() + delta.float()
            parent, _, child = name.rpartition(".")
            setattr(encoder.get_submodule(parent), child, plain)


def prepare(model: MyModel) -> MyModel:
    """Prepares a model for export, in place: converts it to fp32, merges adapters, replaces BiLSTM with PaddedLSTM."""
    if lora.base_of(model):
        merge_adapter(model.encoder)
        del model.encoder.lora_base
    model.float()
    model.encoder_in_fp32, model.wide_mask_on = True, "none"
    if type(model.encoder).__name__ == "BiLSTM":
        model.encoder = PaddedLSTM(cast("BiLSTM", model.encoder))
    return model.eval()


def example_inputs(
    featurizer: Featurizer, batch_of: Callable[[list[dict[str, Any]]], Batch]
) -> dict[str, torch.Tensor]:
    """Returns the inputs of two texts of different lengths. All their dimensions have different sizes."""
    examples = []
    for number, words in enumerate((["a"] * 3, ["b"] * 5)):
        words = [*featurizer.markers, *words]
        example: dict[str, Any] = {"id": str(number), "text": " ".join(words)}
        if featurizer.tagging:
            example["tokens"] = words
        if pairs_of(featurizer.tasks):
            example["text_pair"] = "c d"
        example["extras"] = {}
        for field in featurizer.fields.values():
            example["extras"] |= field.example(len(words))
        examples.append(example)
    inputs = batch_of(examples).inputs
    windows = {name: torch.stack(3 * [inputs[name]], 1) for name in OF_TOKENS if featurizer.long_text == "windows"}
    return inputs | windows


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter, which logs warnings and prints the graph if tracing fails."""
    output = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def remove_sources(graph_model: Any) -> None:
    """Removes the source locations of all nodes, because they contain local paths and take up space."""
    graph = graph_model.graph
    for node in graph.all_nodes():
        node.doc_string = None
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph_model.metadata_props.clear()


def write_graph(model: MyModel, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """Writes a prepared model as ONNX and validates the file. inputs: the result of `example_inputs`

    Raises UserError if torch cannot export the encoder. Tensors of more than 1 GB in total are saved in a second file.
    """
    import onnx

    names, tensors = list(inputs), tuple(inputs.values())
    dynamic = torch.export.Dim.DYNAMIC
    own = fields_of({name: head.task for name, head in model.output_layer.heads.items()})
    fixed = {name for name, tensor in inputs.items() if tensor.ndim == 1 or tensor.shape[1] == 1}
    fixed |= {name for name, field in own.items() if field.level == "text"}
    sizes = {name: 1 if name in fixed else max(2, 3 * (model.window > 0 and name in OF_TOKENS)) for name in names}
    shapes = tuple(dict.fromkeys(range(sizes[name]), dynamic) for name in names)
    outputs = [f"logits_{number}" for number in range(len(model.output_layer.heads))]
    module = LogitsOnly(model, names).eval()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                tensors,
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=names,
                output_names=outputs,
                verbose=False,
            )
    except Exception as error:  # tracing an unsupported encoder can raise any exception
        kind = getattr(getattr(model.encoder, "config", None), "model_type", type(model.encoder).__name__)
        cause = first_line(error.__cause__ or error)
        raise UserError(f"torch cannot export {kind} to ONNX ({type(error).__name__}: {cause})") from None
    assert program  # not None with dynamo=True
    remove_sources(program.model)
    size = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    program.save(str(path), external_data=size > MAX_BYTES)
    onnx.checker.check_model(str(path), full_check=size <= MAX_BYTES)
