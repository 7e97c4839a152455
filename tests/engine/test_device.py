"""Choice of the device, and behaviour on devices other than the CPU and CUDA (tests/engine/accelerator.py)."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, read_json
from safetensors import safe_open

from engine.errors import UserError
from engine.run.command_line import OUT_OF_MEMORY, exit_code
from engine.run.device import accelerator, can_pin, has_double, name_of, require_precision, to_device, to_double
from engine.run.distributed import backend_of

NO_BACKEND = not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend")
there = pytest.mark.skipif(NO_BACKEND, reason="this torch cannot add a device from Python")
CPU = torch.device("cpu")
SMALL = [f"--{name}={value}" for name, value in TINY.items() if name != "device"] + ["--dropout", "0"]


def start(words, folder, lacks=""):
    """Runs a command, or Python code with -c, with the accelerator of accelerator.py. Returns the finished process."""
    place = str(ROOT / "tests/engine")
    before = [f"{place}/accelerator.py"] if words[0] != "-c" else []
    env = {**os.environ, "LACKS": lacks, "PYTHONPATH": os.pathsep.join([str(ROOT), place])}
    words = [sys.executable, *before, *map(str, words)]
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=500)


def test_auto_device_is_the_accelerator_or_the_cpu():
    assert to_device("auto") == (accelerator() or CPU)
    assert name_of(CPU) == "cpu" and not can_pin("cpu") and not can_pin("mps")


@pytest.mark.skipif(accelerator() is not None, reason="needs a machine without an accelerator")
def test_device_error_names_available_devices():
    with pytest.raises(UserError, match=r"^--device gpu is not a device; use auto, cpu$"):
        to_device("gpu")
    with pytest.raises(UserError, match="npu needs the package torch_npu"):
        to_device("npu:0")
    build = "" if torch.version.cuda or torch.version.hip else "; this torch is a CPU build"
    with pytest.raises(UserError, match=f"^--device mps: 0 MPS devices found{build}; use auto, cpu"):
        to_device("mps")


@pytest.mark.parametrize("name", ["cpu", "xpu"])
def test_torch_before_2_6_supports_only_cpu_and_cuda(name, monkeypatch):
    monkeypatch.delattr(torch, "accelerator")
    assert to_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        assert to_device(name) == CPU
    else:
        with pytest.raises(UserError, match="0 XPU devices"):
            to_device(name)


def test_distributed_on_an_unsupported_device_is_rejected():
    assert backend_of(CPU) == "gloo"
    expected = {"cuda": "nccl", "xpu": "xccl"}
    for kind in ("cuda", "xpu", "mps", "meta"):  # mps: torch selects gloo, which does not support its memory
        if kind in expected and torch.distributed.is_backend_available(expected[kind]):
            assert backend_of(torch.device(kind)) == f"cpu:gloo,{kind}:{expected[kind]}"
        else:
            with pytest.raises(UserError, match=f"connect processes on {kind}; start only one, or add --device cpu"):
                backend_of(torch.device(kind))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a torch without CUDA")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_unsupported_precision_is_rejected(precision):
    require_precision(precision, CPU)
    require_precision("fp32", torch.device("cuda"))
    with pytest.raises(UserError, match=f"^--precision {precision}: not supported on this cuda"):
        require_precision(precision, torch.device("cuda"))


def raises(error):
    def command(_):
        raise error

    return command


@pytest.mark.parametrize(
    "command, advice",
    [
        # errors of torch on mps and xpu, which are not available here
        (
            raises(
                NotImplementedError(
                    "The operator 'aten::_fused_x' is not currently implemented for the MPS device. If you want this op"
                )
            ),
            "set PYTORCH_ENABLE_MPS_FALLBACK=1, or add --device cpu",
        ),
        (
            raises(
                TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
            ),
            "add --device cpu",
        ),
        (raises(RuntimeError("Required aspect fp64 is not supported on the device")), "add --device cpu"),
        # real ones
        (lambda _: torch.empty(1, device="mps"), "add --device cpu"),
        (lambda _: torch.empty(1, device="xpu"), "install the torch of that device, or use --device auto"),
    ],
)
def test_missing_device_feature_is_a_one_line_error(command, advice, capsys):
    if torch.backends.mps.is_available() or torch.xpu.is_available():
        pytest.skip("the device is there")
    assert exit_code(command, None) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: the device lacks a feature (") and line.endswith(f"; {advice}\n")
    assert line.count("\n") == 1


def test_mps_out_of_memory_is_a_one_line_error(capsys):
    assert exit_code(raises(RuntimeError("MPS backend out of memory (MPS allocated: 5.12 GB)")), None) == 2
    assert capsys.readouterr().err == f"error: {OUT_OF_MEMORY}\n"


def test_other_errors_keep_their_traceback():
    for error in (TypeError("an integer is required"), AssertionError("shapes"), RuntimeError("shapes")):
        with pytest.raises(type(error)):
            exit_code(raises(error), None)
    with pytest.raises(NotImplementedError):  # another device would not help
        exit_code(lambda _: torch.eye(2).to_sparse().tril(), None)


def test_float64_on_the_cpu_gives_the_same_values():
    assert has_double("cpu") and to_double(torch.tensor([0.1])).dtype == torch.float64


# ---- on a device that torch has only from accelerator.py -------------------------------------------------------------


@there
@pytest.mark.slow
def test_run_without_float64_equals_the_cpu(sample, tmp_path, command):
    flags = [*SMALL, "--data_path", sample, "--use_crf", "--use_ema", "--gradient_accumulation_steps", 2]
    flags += ["--do_train", "--do_eval", "--do_predict", "--save_epoch", 1]
    there = start(["main.py", *flags, "--model_version", "there"], tmp_path, "float64")
    assert there.returncode == 0 and "parameters on npu" in there.stderr + there.stdout, there.stderr
    here = command("main.py", *flags, "--model_version", "here", "--device", "cpu")
    assert here.returncode == 0, here.stderr
    scores = [read_json(tmp_path / f"output/{name}/eval.json") for name in ("there", "here")]
    for split in ("dev", "test"):
        assert scores[0][split] == pytest.approx(scores[1][split], abs=1e-4)
    last = sorted((tmp_path / "output/there/checkpoints").glob("step_*"))[-1]
    assert read_json(last / "training.json")["environment"]["device"] == "a test's npu"
    with safe_open(last / "training.safetensors", "pt") as file:
        assert "random.npu" in set(file.keys())
    assert read_json(tmp_path / "output/there/answers/about.json")["device"] == "a test's npu"


@there
@pytest.mark.slow
def test_unsupported_precision_is_rejected_before_anything_is_written(sample, tmp_path):
    flags = [*SMALL, "--data_path", sample, "--do_train", "--precision", "bf16", "--model_version", "half"]
    done = start(["main.py", *flags], tmp_path, "bfloat16")
    assert done.returncode == 2 and "error: --precision bf16: not supported on this npu" in done.stderr
    assert not (tmp_path / "output/half/checkpoints").exists()


@there
@pytest.mark.slow
def test_model_checks_pass_on_any_accelerator(sample, tmp_path):
    done = start(["main.py", *SMALL, "--data_path", sample, "--debug", "--do_train", "--model_version", "x"], tmp_path)
    assert done.returncode == 0 and "FAILED" not in done.stderr + done.stdout, done.stderr[-3000:]


WITHOUT_DOUBLES = """
import accelerator, torch
kept = accelerator.register()
from engine.model import span_pointer
from engine.model.crf import CRF
from engine.run.device import can_pin, count_of, has_double, to_device

assert str(to_device("auto")) == "npu" and count_of("npu") == 1 and not has_double("npu") and not can_pin("npu")
torch.manual_seed(0)
mask = torch.arange(12) < torch.tensor([12, 1, 7])[:, None]
for spread in (0.5, 20, 100):  # scan in floats; scan in doubles; sequential
    crf = CRF([f"B-{i}" for i in range(5)])
    for parameter in crf.parameters():
        torch.nn.init.uniform_(parameter, -spread, spread)
    emissions = torch.randn(3, 12, 5)
    found = []
    for device in ("cpu", "npu"):
        there, scores = crf.to(device), emissions.to(device, copy=True).requires_grad_()
        crf.train()  # reads the largest transition again
        total = there.log_partition(scores, mask.to(device))
        total.sum().backward()
        paths = there.viterbi(scores.detach(), mask.to(device))
        statistics = there.path_statistics(scores.detach(), mask.to(device))
        assert all(part.device.type == device for part in statistics)
        found.append([part.detach().cpu().float() for part in (total, scores.grad, *statistics, paths)])
    for here, there in zip(*found):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-3)

scores, found = torch.randn(3, 12, 12 + 2 * 2), []
labels = torch.tensor([[0, 1, 2, 0, 3, 3, 1], [0, 0, 0, 1, -100, -100, -100], [-100] * 7])
for device in ("cpu", "npu"):
    logits = scores.to(device, copy=True).requires_grad_()
    losses = span_pointer.loss(logits, labels.to(device), mask.to(device))
    losses.sum().backward()
    assert losses.device.type == device
    found.append([losses.detach().cpu(), logits.grad.cpu(), span_pointer.find(logits.detach(), mask.to(device))])
torch.testing.assert_close(found[0][:2], found[1][:2])
assert found[0][2] == found[1][2] and found[0][0][2] == 0 < found[0][0][0]
print("held")
"""


@there
@pytest.mark.slow
def test_crf_and_spans_work_without_float64(tmp_path):
    done = start(["-c", WITHOUT_DOUBLES], tmp_path, "float64")
    assert done.returncode == 0 and done.stdout == "held\n", done.stderr[-3000:]
