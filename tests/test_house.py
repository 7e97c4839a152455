"""The architecture: allowed imports, lengths of functions and lines, depth of calls."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_trainer import make_trainer

TOP_LEVEL = set("main config data_process data_loader model_utils trainer tricks logging_config metrics".split())
BELOW = ("engine", "preprocess", "huggingface_hands_on", "tools")
GROUND = {"engine.errors", "engine.schema"}  # for all packages of engine/
ORDER = "task run model data predict train tricks".split()  # each imports only earlier ones
STAGES = (
    "example storage labels schema readers splits shots checks gates prepared preview".split()
)  # the same for preprocess/
LIBRARY = [*sorted(ROOT.glob("*.py")), *(path for name in BELOW for path in sorted((ROOT / name).rglob("*.py")))]


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, modules):
    """Returns the modules of this repository that a file imports, also inside functions."""
    found, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":  # the type of config
            node.body = [line for line in node.body if ast.unparse(line) != "from config import Config"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return {name for name in found if name in modules and name not in BELOW}


MODULES = {module_of(path): path for path in LIBRARY}
IMPORTS = {module: imports_of(path, MODULES) for module, path in MODULES.items()}


def test_top_level_has_only_files_that_people_edit():
    assert {path.stem for path in ROOT.glob("*.py")} == TOP_LEVEL
    folders = {path.parent.name for path in ROOT.glob("[a-z]*/*.*") if path.suffix in (".py", ".md", ".jsonl")}
    folders |= {path.parent.parent.name for path in ROOT.glob("[a-z]*/*/*.py")}
    assert folders == {
        "engine",
        "preprocess",
        "huggingface_hands_on",
        "tools",
        "dataset",
        "tests",
        "benchmarks",
        "docs",
    }
    assert {path.name for path in (ROOT / "engine").iterdir() if (path / "__init__.py").exists()} == {*ORDER}


def test_packages_import_only_lower_levels():
    """Top level -> preprocess/ -> engine/, never back; the packages within both are ordered."""
    for module, imported in IMPORTS.items():
        allowed = {"engine": ("engine.",), "preprocess": ("engine.", "preprocess.")}.get(module.split(".")[0])
        if allowed:
            assert all(name.startswith(allowed) for name in imported), f"{module} imports {sorted(imported)}"
        elif not module.startswith("huggingface_hands_on"):
            assert not any(name.startswith("huggingface_hands_on") for name in imported), module
        if module.startswith("engine.") and module not in GROUND:
            package = module.split(".")[1]
            earlier = {*ORDER[: ORDER.index(package) + 1]}
            found = {name for name in imported if name not in GROUND and name.split(".")[1] not in earlier}
            assert not found, f"{module} imports {sorted(found)}"
        if module.startswith("preprocess."):
            later = STAGES[STAGES.index(module.split(".")[1]) + 1 :]
            found = {name for name in imported if name.startswith("preprocess.") and name.split(".")[1] in later}
            assert not found, f"{module} imports {sorted(found)}"


def test_tools_can_be_deleted():
    """Only main.py imports from tools/, and only inside functions."""
    for module, imported in IMPORTS.items():
        if not module.startswith(("tools", "main")):
            assert not any(name.startswith("tools") for name in imported), module
    for node in ast.parse((ROOT / "main.py").read_text(encoding="utf-8")).body:
        assert not (isinstance(node, ast.ImportFrom) and node.module.startswith("tools"))


def test_no_circular_imports():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            path.append(module)
            for name in sorted(IMPORTS[module] - {module}):
                visit(name)
            done.add(path.pop())

    for module in MODULES:
        visit(module)


def test_functions_and_lines_are_short():
    for path in (*LIBRARY, *ROOT.glob("tests/**/*.py"), *ROOT.glob("benchmarks/*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 120, f"{path.name}, line {number}"
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 50, f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("trick, most", [({}, 6), ({"use_fgm": True}, 8), ({"use_rdrop": True}, 8)])
def test_few_frames_from_main_to_the_forward_algorithm(trick, most, tiny):
    """`main` calls Trainer.train. The frames from there to the CRF's forward algorithm are counted."""
    trainer, stacks = make_trainer(tiny(use_crf=True, epochs=1, **trick)), []

    def profile(frame, event, argument):
        if event == "call" and frame.f_code.co_name == "log_partition":
            names = []
            while frame and frame.f_code.co_name != "train":
                path = Path(frame.f_code.co_filename)
                if path.is_relative_to(ROOT) and ".venv" not in path.parts:
                    names.append(frame.f_code.co_name)
                frame = frame.f_back
            stacks.append(["main", "train", *reversed(names)])

    sys.setprofile(profile)
    try:
        trainer.train()
    finally:
        sys.setprofile(None)
    in_training = [stack for stack in stacks if "train_one_epoch" in stack and "divergence" not in stack]
    longest = max(in_training, key=len)
    assert len(longest) <= most, " -> ".join(longest)
