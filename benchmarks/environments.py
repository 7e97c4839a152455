"""Runs a small part of the tests in environments with other versions of Python, transformers and datasets.

    python benchmarks/environments.py                     all ENVIRONMENTS, for every Python 3.10 to 3.13 on the PATH
    python benchmarks/environments.py --only oldest       one of them for this Python, like .ci/run
    python benchmarks/environments.py --output table.md   also writes the table of results to a file

Environments for this Python share its torch and all other packages that they do not replace. Environments for another
Python are complete, with the versions in constraints.txt. Each environment takes a few minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.run.environment import read_requirements, version_of  # noqa: E402

HERE = "{}.{}".format(*sys.version_info)
FILES = [ROOT / "requirements.txt", ROOT / "requirements-test.txt"]
OLDEST = "transformers datasets accelerate peft scikit-learn safetensors tqdm tensorboard".split()
SHOWN = ("torch", "transformers", "datasets", "tokenizers", "peft", "accelerate")
# versions of transformers and datasets; pip resolves the other packages
ENVIRONMENTS = {
    "oldest": [
        f"{need.name}=={need.bounds[2:].split(',')[0]}" for need in read_requirements(*FILES) if need.name in OLDEST
    ],
    "4.51": ["transformers==4.51.3", "datasets==3.6.0"],
    "4.57": ["transformers==4.57.6", "datasets==4.0.0"],
    "5.0": ["transformers==5.0.0", "datasets==4.0.0"],
    "newest": [],
}
SMOKE = (
    # training, evaluation, prediction, resuming
    "test_gpu.py::test_device_and_cpu_predictions_are_equal[cpu]",
    "test_trainer.py::test_saved_best_gives_the_training_scores_in_a_new_process",
    "test_trainer.py::test_resume_after_any_step_is_bit_exact[options2]",
    # pretrained models, the GPU code path, LoRA, gradient checkpointing, decoders
    "test_model_utils.py::test_a_pretrained_folder_loads_its_weights_and_grows_for_special_tokens",
    "test_model_utils.py::test_the_gpu_mask_equals_the_plain_mask",
    "engine/test_lora.py::test_lora_resume_is_bit_exact[BERT-gradient checkpointing]",
    "engine/test_lora.py::test_merged_equals_unmerged[GPT-2]",
    "engine/test_decoders.py::test_padding_does_not_change_predictions[GPT-2]",
    "engine/test_decoders.py::test_padding_does_not_change_predictions[Llama]",
    # datasets, export, huggingface_hands_on
    "engine/test_environment.py::test_class_labels_of_a_saved_dataset_are_names",
    "tools/test_export.py::test_a_joint_model_predicts_the_same_as_in_torch",
    "test_hands_on.py::test_packing_does_not_change_the_loss[bert]",
    "test_hands_on.py::test_whole_words_are_masked",
    "test_hands_on.py::test_perplexity_starts_at_the_initial_models_and_falls",
)


def make(folder: Path, python: str, packages: list[str]) -> str:
    """Creates an environment with these packages. Returns its Python."""
    made, own = folder / "bin/python", python == sys.executable
    subprocess.run([python, "-m", "venv", *(["--without-pip"] if own else []), folder], check=True)
    if own:
        shared = "\n".join(path for path in sys.path if path.endswith("-packages"))
        (next(folder.glob("lib/python*/site-packages")) / "shared.pth").write_text(shared)
        pip, packages = [sys.executable, "-m", "pip", "--python", made], [*packages, f"torch=={version_of('torch')}"]
    else:
        names, kept = {package.partition("=")[0] for package in packages}, folder / "constraints.txt"
        tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        kept.write_text("".join(line for line in tested if line.partition("=")[0] not in names))
        packages = [*packages, "-c", kept, *(word for path in FILES for word in ("-r", path))]
        pip = [made, "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    return str(made)


def smoke(python: str) -> tuple[list[str], str, bool]:
    """Runs the tests in an environment. Returns (versions, outcome, whether all passed)."""
    code = f"from importlib.metadata import version; print(*map(version, {SHOWN}))"
    versions = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    began, tests = time.monotonic(), [f"tests/{name}" for name in SMOKE]
    words = [python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "slow or not slow", "--tb=short", "-rf", *tests]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    failed = re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", done.stdout, re.M)
    if done.returncode:
        print(done.stdout[-20000:], done.stderr[-2000:], file=sys.stderr)
    outcome = f"{len(failed)} failed: {', '.join(failed)}" if done.returncode else "passes"
    return versions, f"{outcome} ({time.monotonic() - began:.0f} s)", done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(ENVIRONMENTS),
        metavar="NAME",
        help="environments to test, on this Python only",
    )
    parser.add_argument("--output", help="file to write the table to")
    options = parser.parse_args()
    pythons = {HERE: sys.executable}
    for minor in range(10, 14) if not options.only else ():
        if f"3.{minor}" != HERE and (found := shutil.which(f"python3.{minor}")):
            pythons[f"3.{minor}"] = found
    lines, fine = [f"| Python | {' | '.join(SHOWN)} | outcome |", "| --- " * (len(SHOWN) + 2) + "|"], True
    for number, python in pythons.items():
        for name in options.only or ENVIRONMENTS:
            print(f"{name}, Python {number}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                try:
                    versions, outcome, passed = smoke(make(Path(folder), python, ENVIRONMENTS[name]))
                except subprocess.CalledProcessError as error:
                    versions, outcome, passed = [name, *ENVIRONMENTS[name]], f"not installed: {error}", False
            fine &= passed
            lines.append(f"| {number} | {' | '.join((versions + [''] * len(SHOWN))[: len(SHOWN)])} | {outcome} |")
            print(lines[-1], flush=True)
    print("\n" + "\n".join(lines))
    if options.output:
        Path(options.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
