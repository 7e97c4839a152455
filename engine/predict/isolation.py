"""Imports the template's modules (config, trainer, …) into a program that may have its own modules with the same names.

A module imported with `own_module` is registered as `finetuning_template.NAME`. `import` statements inside it find the
template's modules first, even in functions that run later or in another thread. `sys.path` and the modules of the
program are not modified. If the program has already imported a module of the template, that module is shared, so that
both see the same classes.
"""

import builtins
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "finetuning_template"
OWN = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}


class OwnLoader(SourceFileLoader):
    """Runs a module with a custom `__import__`, which Python looks up in the module's `__builtins__`."""

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = vars(builtins) | {"__import__": import_own_first}
        super().exec_module(module)


class OwnFinder(MetaPathFinder):
    """Finds only modules below PREFIX."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name.startswith(f"{PREFIX}.") else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = OwnLoader(spec.loader.name, spec.loader.path)
        return spec


def is_shared(name: str) -> bool:
    """Returns whether the program has already imported this module or package of the template under its plain name."""
    file = getattr(sys.modules.get(name), "__file__", None) if f"{PREFIX}.{name}" not in sys.modules else None
    return file is not None and ROOT in Path(file).parents


def import_own_first(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """Replaces `__import__` within the template's modules."""
    top = name.partition(".")[0]
    if level or top not in OWN or is_shared(top):
        return builtins.__import__(name, globals, locals, fromlist, level)
    module = builtins.__import__(f"{PREFIX}.{name}", None, None, fromlist or ("__name__",))
    return module if fromlist else sys.modules[f"{PREFIX}.{top}"]


def own_module(name: str) -> Any:
    """Returns a module of the template, such as "trainer" or "preprocess.schema"."""
    if PREFIX not in sys.modules:
        package = ModuleType(PREFIX, "The template's modules in this process.")
        package.__path__ = [str(ROOT)]
        sys.modules[PREFIX] = package
        sys.meta_path.insert(0, OwnFinder())
    return import_own_first(name, fromlist=("__name__",))
