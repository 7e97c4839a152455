"""Makes an ONNX graph smaller: int8 weights by onnxruntime's dynamic quantisation, or an fp16 graph."""

import logging
import tempfile
from pathlib import Path


def to_int8(path: Path) -> None:
    """Quantises the weights of a graph's matrix products and embeddings to int8.

    Scales are per column. Activations are quantised at run time, so no calibration is needed. Weights use 7 of the 8
    bits, because 8 could overflow silently on CPUs without VNNI.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        small = Path(folder) / path.name
        logging.disable(logging.WARNING)  # recommends a preprocessing step that has no effect here
        try:
            quantize_dynamic(
                path,
                small,
                op_types_to_quantize=["MatMul", "Gemm", "Gather", "LSTM"],
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": 1},  # float, if a type cannot be inferred
            )
        finally:
            logging.disable(logging.NOTSET)
        remove(path)
        small.replace(path)


def to_fp16(path: Path) -> None:
    """Converts weights and computation of a graph to fp16. Inputs and outputs keep their types."""
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
    path.unlink()
    data_of(path).unlink(missing_ok=True)
