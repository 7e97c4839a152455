"""Makes an ONNX graph smaller: int8 weights with onnxruntime's quantisation, or an fp16 graph."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, np.ndarray]  # the inputs of a graph
TYPE = {"DefaultTensorType": 1}  # float: the type of tensors whose type cannot be inferred
KINDS = ("MatMul", "Gemm", "Gather")  # operators with weights: matrix products and embeddings
SHARES = (8, 4, 2)  # tried in this order: one matrix product out of 8, 4 or 2 stays in fp32
NUM_RANKED = 32  # quantisation errors are measured on this many texts, and on about as many tokens of each


def versions(path: Path, kind: str, feeds: Callable[[], list[Feed]]) -> Iterator[str]:
    """Replaces a graph with smaller versions, the least precise first, and yields the name of each method.

    The caller stops at the first graph that is good enough. kind: int8 or fp16; feeds: returns the inputs of single
    texts, to calibrate static quantisation
    """
    if kind == "fp16":
        to_fp16(path)
        yield kind
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / path.name
        for file in filter(Path.exists, (path, data_of(path))):
            shutil.copyfile(file, whole.with_name(file.name))
        to_int8(whole, path)
        yield "int8"
        texts = feeds()
        to_static_int8(whole, path, texts)
        yield "static int8"
        worst = by_error(whole, texts[:NUM_RANKED])
        for number in sorted({len(worst) // share for share in SHARES} - {0}):
            to_static_int8(whole, path, texts, worst[:number])
            yield f"static int8 except {number} of {len(worst)} matrix products"


def to_int8(source: Path, path: Path) -> None:
    """Quantises the weights of a graph's matrix products and embeddings to int8.

    Scales are per column. Activations are quantised at run time, so no calibration is needed. Weights use 7 of the 8
    bits, because 8 could overflow silently on CPUs without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with replacing(path) as small:
        quantize_dynamic(
            source,
            small,
            op_types_to_quantize=[*KINDS, "LSTM"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options=TYPE,
        )


def to_static_int8(source: Path, path: Path, feeds: list[Feed], excluded: Sequence[str] = ()) -> None:
    """Quantises weights and activations to int8, with fixed scales for activations.

    The scales are computed from the minimum and maximum of each activation, averaged over the texts in `feeds`.
    LSTMs and the operators named in `excluded` stay in fp32. Calibration by percentiles or entropy is not used:
    onnxruntime's histograms (1.32) need texts of equal length and take minutes if there are outliers. The minimum and
    maximum over all texts were less accurate (docs/export.md).
    """
    from onnxruntime.quantization import QuantType, quantize_static

    class Texts:
        remaining = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.remaining, None)

    is_large = data_of(source).exists()
    with replacing(path) as small:
        quantize_static(
            source,
            small,
            Texts(),  # type: ignore[arg-type]
            op_types_to_quantize=list(KINDS),
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            nodes_to_quantize=[node.name for node, _ in weighted(source) if node.name not in excluded],
            use_external_data_format=is_large,
            extra_options=TYPE | {"OpTypesToExcludeOutputQuantization": list(KINDS), "CalibMovingAverage": True},
        )
        if is_large:
            import onnx

            onnx.save(onnx.load(str(small)), str(small))


def weighted(path: Path) -> list[tuple[Any, np.ndarray]]:
    """Returns the matrix products and embeddings of a graph that have constant weights, with the weights."""
    import onnx

    graph = onnx.load(str(path)).graph
    fixed = {tensor.name: tensor for tensor in graph.initializer}
    places = [(node, 0 if node.op_type == "Gather" else 1) for node in graph.node if node.op_type in KINDS]
    found = [(node, fixed[node.input[place]]) for node, place in places if node.input[place] in fixed]
    return [(node, onnx.numpy_helper.to_array(weights)) for node, weights in found]


def by_error(path: Path, feeds: list[Feed]) -> list[str]:
    """Returns the names of the matrix products of a graph, sorted by the error of an 8-bit input, the largest first.

    The error is the mean squared error of the output, divided by the output's variance. feeds: inputs of single texts
    """
    import onnx
    import onnxruntime

    products = {node.name: (node, weights) for node, weights in weighted(path) if node.op_type != "Gather"}
    graph = onnx.load(str(path), load_external_data=False)
    sources = list(dict.fromkeys(node.input[0] for node, _ in products.values()))
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in sources)
    inside = path.with_name("inside.onnx")  # next to a large graph's tensors
    onnx.save(graph, str(inside))
    session = onnxruntime.InferenceSession(str(inside), providers=["CPUExecutionProvider"])
    rows: dict[str, list[np.ndarray]] = {name: [] for name in sources}
    for feed in feeds:
        for name, array in zip(sources, session.run(sources, feed)):
            array = array.reshape(-1, array.shape[-1])
            rows[name].append(array[:: len(array) // NUM_RANKED + 1])
    errors = {}
    for name, (node, weights) in products.items():
        x = np.concatenate(rows[node.input[0]]).astype(np.float64)
        weights = weights.T if any(option.name == "transB" and option.i for option in node.attribute) else weights
        step = max(x.max(initial=0) - x.min(initial=0), 1e-30) / 255
        lost = (np.round(x / step) * step - x) @ weights
        errors[name] = np.square(lost).sum() / max((x @ weights).var(0).sum() * len(x), 1e-30)
    return sorted(products, key=lambda name: -errors[name])


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path for a graph, and then moves the graph to `path`.

    Silences onnxruntime, which recommends a preprocessing step that has no effect here.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        small = Path(folder) / path.name
        logging.disable(logging.WARNING)
        try:
            yield small
        finally:
            logging.disable(logging.NOTSET)
        remove(path)
        small.replace(path)


def to_fp16(path: Path) -> None:
    """Converts the weights and the computation of a graph to fp16. The types of inputs and outputs do not change."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    small = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
    is_large = data_of(path).exists()
    remove(path)
    onnx.save(small, str(path), save_as_external_data=is_large, location=data_of(path).name)


def data_of(path: Path) -> Path:
    """Returns the path of a large graph's external tensor file."""
    return path.with_name(f"{path.name}.data")


def remove(path: Path) -> None:
    """Deletes a graph and its external tensor file."""
    path.unlink(missing_ok=True)
    data_of(path).unlink(missing_ok=True)
