"""The training library; fine-tuning requires no edits here. It imports nothing from the top level, preprocess/ or
tools/.

Packages, each of which imports only earlier ones: task, run, model, data, predict, train, tricks.
"""

import sys
from pathlib import Path
from typing import Any

if sys.version_info < (3, 10):  # noqa: UP036  checked before any import that fails in older versions
    print(f"error: needs Python 3.10 or newer, but {sys.executable} is {sys.version.split()[0]}", file=sys.stderr)
    raise SystemExit(2)

excepthook = sys.excepthook


def end_without_package(kind: Any, error: BaseException, trace: Any) -> Any:
    """Replaces sys.excepthook: reports a missing package with a one-line error and exit code 2 instead of a traceback.
    Most packages are imported before `run_command` starts, so it cannot handle these errors."""
    from engine.run.environment import line_of_import_error

    line = line_of_import_error(error)
    if line is None:
        return excepthook(kind, error, trace)
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


program = getattr(sys.modules["__main__"], "__file__", None)
if program and Path(__file__).resolve().parents[1] in Path(program).resolve().parents:  # not in another program
    sys.excepthook = end_without_package
