"""The machinery behind training; fine-tuning requires no edits here. Imports nothing from the top level, preprocess/
or tools/.

Packages, each importing only those before it: task, run, model, data, predict, train, tricks.
"""

import sys
from pathlib import Path
from typing import Any

if sys.version_info < (3, 10):  # noqa: UP036  checked before any import that fails in older versions
    print(f"error: needs Python 3.10 or newer, but {sys.executable} is {sys.version.split()[0]}", file=sys.stderr)
    raise SystemExit(2)

excepthook = sys.excepthook


def end_without_package(kind: Any, error: BaseException, trace: Any) -> Any:
    """A sys.excepthook: a package that is not installed ends a command of this repository in one line, exit code 2.
    Most packages are imported before run_command starts."""
    from engine.run.environment import line_of_import_error

    line = line_of_import_error(error)
    if line is None:
        return excepthook(kind, error, trace)
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


program = getattr(sys.modules["__main__"], "__file__", None)
if program and Path(__file__).resolve().parents[1] in Path(program).resolve().parents:  # not in another program
    sys.excepthook = end_without_package
