"""A graph of smaller numbers: weights as int8 by onnxruntime's dynamic quantisation, or all in fp16."""

import tempfile
from pathlib import Path


def to_int8(path):
    """Replaces a graph by one with the weights of its matrix products and embeddings as int8.

    Each column of a weight has a scale of its own. What flows between is quantised as it comes, so nothing needs to be
    calibrated. Weights take 7 of the 8 bits: with 8, a processor without VNNI could overflow in silence.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        small = Path(folder) / path.name
        quantize_dynamic(
            path,
            small,
            op_types_to_quantize=["MatMul", "Gemm", "Gather", "LSTM"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},
        )
        replace(small, path)


def to_fp16(path):
    """Replaces a graph by one whose weights and steps are fp16; inputs and outputs stay as they are."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    small = convert_float_to_float16(onnx.load(str(path)), keep_io_types=True)
    replace_files(path)
    onnx.save(small, str(path))


def replace(small, path):
    replace_files(path)
    small.replace(path)


def replace_files(path):
    """Removes a graph, and the file of its tensors if they lie beside it."""
    path.unlink()
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
