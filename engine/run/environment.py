"""Checks the environment: package versions, and whether torch can use the GPU.

    python -m engine.run.environment check requirements.txt …     prints missing or incompatible packages
    python -m engine.run.environment pins constraints.txt requirements.txt …     prints constraints for pip
    python -m engine.run.environment needed requirements.txt …    prints the requirements that pip must install
    python -m engine.run.environment folders requirements.txt     prints site-packages folders with a compatible torch
    python -m engine.run.environment gpu           prints why torch does not use the GPU
    python -m engine.run.environment gpu wheel     the same for the torch build on PyPI

`check` and `gpu` exit with code 1 if they find a problem. setup_env.sh calls this before packages are installed, so it
needs only the standard library.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from engine.errors import UserError

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
CORE_PACKAGES = ("torch", "transformers", "datasets")  # their versions are checked at the start of each command
MODULES = {"scikit-learn": "sklearn", "pytorch-crf": "torchcrf"}  # {package: its module, if the name differs}
OPTIONAL = ("tensorboard", "sentencepiece", "rjieba", "accelerate")  # not needed by every run of main.py
DRIVERS = {"12": 525, "13": 580}  # {major version of CUDA: oldest driver that supports it}
CUDA_OF_PYPI = "13"  # CUDA version of the PyPI torch in constraints.txt
COMPARE: dict[str, Callable[[list[int], list[int]], bool]] = {
    ">=": lambda have, bound: have >= bound,
    "<": lambda have, bound: have < bound,
    "==": lambda have, bound: have == bound,
    "!=": lambda have, bound: have != bound,
}


def version_of(name: str) -> str | None:
    """Returns the version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


class Requirement(NamedTuple):
    """A line of a requirements file."""

    name: str
    bounds: str  # such as ">=2.4,<3"

    def problem(self) -> str | None:
        """Describes why the installed version does not satisfy the requirement; None if it does."""
        if (have := version_of(self.name)) is None:
            return f"{self.name} is missing"
        for sign, bound in re.findall("([=<>!]=?)([^,]+)", self.bounds):
            if not COMPARE[sign](*same_length(have, bound)):
                return f"{self.name} is {have}, but must be {self.bounds}"
        return None


def same_length(*versions: str) -> list[list[int]]:
    """Parses versions into lists of numbers, padded with zeros so that 2.4 equals 2.4.0. Ignores suffixes such as
    +cu121, or a0+145a3a7 in a vendor's build."""
    numbers = [[int(part) for part in re.findall(r"\d+", re.split(r"[^\d.\s]", text)[0])] for text in versions]
    return [row + [0] * (max(map(len, numbers)) - len(row)) for row in numbers]


def read_requirements(*paths: str | Path) -> list[Requirement]:
    """Reads requirements or constraints files. A later line for a package replaces an earlier one. python_version is
    the only supported environment marker; lines for other Python versions are skipped."""
    found: dict[str, Requirement] = {}
    for path in paths:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if match := re.match(r"([\w.-]+)(?:\[.*?\])?\s*([^;#]*)(?:;\s*python_version\s*(\S+)\s*\"(.*)\")?", line):
                name, bounds, sign, python = match.groups()
                if not python or COMPARE[sign](*same_length("{}.{}".format(*sys.version_info), python)):
                    found[name.lower()] = Requirement(name, bounds.strip())
    return list(found.values())


def problems_of(requirements: list[Requirement]) -> str:
    """Lists the packages that are missing or incompatible, on one line; returns "" if there are none."""
    missing = [needed.name for needed in requirements if version_of(needed.name) is None]
    lines = [problem for needed in requirements if needed.name not in missing and (problem := needed.problem())]
    return "; ".join([*lines, f"missing: {', '.join(missing)}"] if missing else lines)


def require_versions() -> None:
    """Raises UserError if the installed version of torch, transformers or datasets is incompatible."""
    lines = read_requirements(REQUIREMENTS) if REQUIREMENTS.exists() else []
    decisive = [needed for needed in lines if needed.name in CORE_PACKAGES]
    problems = [problem for needed in decisive if (problem := needed.problem()) and "missing" not in problem]
    if problems:
        words = " ".join(f"'{needed.name}{needed.bounds}'" for needed in decisive)
        raise UserError(
            f"{'; '.join(problems)} ({sys.executable}): pip install {words}, or sh run.sh, which sets up .venv"
        )


def missing_packages() -> list[str]:
    """Returns the packages of requirements.txt that are not installed, except optional ones."""
    names = [needed.name for needed in (read_requirements(REQUIREMENTS) if REQUIREMENTS.exists() else [])]
    absent = [name for name in names if name not in OPTIONAL and version_of(name) is None]
    return [name for name in absent if find_spec(MODULES.get(name, name)) is None]


def missing_line(names: list[str]) -> str:
    """Returns the error line for packages that are not installed."""
    remedy = "pip install -r requirements.txt, or sh run.sh, which sets up .venv"
    return f"missing: {', '.join(names)} ({sys.executable}): {remedy}"


def line_of_import_error(error: BaseException) -> str | None:
    """Returns the error line if an import failed because a package of requirements.txt is missing, else None."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not module or not REQUIREMENTS.exists() or find_spec(module) is not None:
        return None
    packages = {MODULES.get(needed.name, needed.name): needed.name for needed in read_requirements(REQUIREMENTS)}
    return missing_line(missing_packages() or [packages[module]]) if module in packages else None


def require_packages() -> None:
    """Raises UserError if a package that main.py needs is not installed."""
    if names := missing_packages():
        raise UserError(missing_line(names))


# ---- the GPU ---------------------------------------------------------------------------------------------------------


def nvidia_gpu() -> tuple[str, str] | None:
    """Returns (name, driver version) of the first GPU listed by nvidia-smi, or None."""
    program, columns = shutil.which("nvidia-smi"), ["--query-gpu=name,driver_version", "--format=csv,noheader"]
    if program is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):  # the user has hidden the GPUs
        return None
    try:
        done = subprocess.run([program, *columns], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    name, _, driver = done.stdout.partition("\n")[0].rpartition(", ")
    return (name, driver.strip()) if done.returncode == 0 and name and driver[0].isdigit() else None


def gpu_problem(of_pypi: bool = False) -> str | None:
    """Explains why torch cannot use the GPU listed by nvidia-smi, and what to do. Returns None if it can, or if there
    is no GPU. of_pypi: check the torch build on PyPI instead, before it is downloaded."""
    name, usable = "the torch on PyPI", False
    cuda: str | None = CUDA_OF_PYPI
    if not of_pypi:
        import torch

        name, cuda, usable = f"torch {torch.__version__}", torch.version.cuda, torch.cuda.is_available()
    found = None if usable else nvidia_gpu()
    if found is None:
        return None
    oldest, gpu = DRIVERS.get((cuda or "").split(".")[0], 0), f"nvidia-smi lists {found[0]} with driver {found[1]}, but"
    if cuda is None:
        return f"{gpu} {name} is built without CUDA: install a build with it (https://pytorch.org/get-started/locally)"
    if (driver := int(found[1].split(".")[0])) < oldest:
        older = "12.6" if driver >= DRIVERS["12"] else "11.8"
        return (
            f"{gpu} {name} is built for CUDA {cuda}, which needs driver {oldest} or newer: update the driver, or "
            f"install a torch for CUDA {older} (https://pytorch.org/get-started/locally)"
        )
    return None if of_pypi else f"{gpu} {name} sees no GPU: python -c 'import torch; torch.cuda.init()' prints why"


def folders_to_share(paths: list[str]) -> list[str]:
    """Returns the site-packages folders of this Python if its torch is compatible, so that a new environment can reuse
    them, else []."""
    torch = next((needed for needed in read_requirements(*paths) if needed.name == "torch"), None)
    if torch is None or torch.problem():
        return []
    folders = [path for path in sys.path if path.endswith("-packages")]  # in the order of import
    own = str(distribution("torch").locate_file(""))
    return folders if any(Path(own).samefile(path) for path in folders) else [*folders, own]


def pins(constraints: str, paths: list[str]) -> list[str]:
    """Returns "name==version" lines for pip --constraint: compatible installed versions, otherwise those in
    `constraints`."""
    kept = {needed.name.lower() for needed in read_requirements(*paths) if needed.problem() is None}
    tested = [f"{pin.name}{pin.bounds}" for pin in read_requirements(constraints) if pin.name.lower() not in kept]
    return [*tested, *(f"{name}=={version(name)}" for name in sorted(kept))]


def needed_lines(paths: list[str]) -> list[str]:
    """Returns the requirements that pip must install. Compatible packages are left out, because pip would replace a
    vendor's 2.4.0a0 with 2.4."""
    return [f"{line.name}{line.bounds}" for line in read_requirements(*paths) if line.problem()]


def main(command: str, *paths: str) -> int:
    """Runs one of the commands in the module docstring, and returns its exit code."""
    if command == "check":
        print(problems := problems_of(read_requirements(*paths)))
        return int(bool(problems))
    if command == "gpu":
        problem = gpu_problem(of_pypi=paths == ("wheel",))
        print(problem or "", end="\n" if problem else "")
        return int(bool(problem))
    if command == "pins":
        lines = pins(paths[0], [*paths[1:]])
    else:
        lines = {"needed": needed_lines, "folders": folders_to_share}[command]([*paths])
    print(*lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
