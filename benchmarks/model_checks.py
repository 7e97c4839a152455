"""Runs the checks of `main.py --debug` on the broken and the correct models of tests/tools, on one core.

    python benchmarks/model_checks.py [--only NAME]

Prints one line per model with a wrong or undecided result, and a table. The last check needs a trial run and is
skipped.
"""

import argparse
import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import time
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # hundreds of short epochs
sys.path[:0] = [str(Path(__file__).resolve().parent.parent / folder) for folder in ("", "tests/tools")]

import broken_models  # noqa: E402, F401
import correct_models  # noqa: E402, F401
import torch  # noqa: E402
from collection import BROKEN, CORRECT, is_found, run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression for the names of models")
    only = parser.parse_args().only
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        for kind, models in (("broken", BROKEN), ("correct", CORRECT)):
            chosen = [model for model in models if re.search(only, model.name)]
            right, undecided, seconds = 0, 0, []
            for model in chosen:
                start = time.monotonic()
                with contextlib.redirect_stdout(io.StringIO()):
                    failed, open_ = run(model, folder)
                seconds.append(time.monotonic() - start)
                is_right = is_found(model, failed) if model.check else not failed
                right, undecided = right + is_right, undecided + bool(open_ and not failed)
                if not is_right or open_:
                    print(f"{'undecided' if is_right else 'WRONG':9s} {model.name}: {failed | open_}", flush=True)
            mean = sum(seconds) / max(1, len(seconds))
            what = "detected by the right check" if kind == "broken" else "not refused"
            print(f"{kind:7s} {right} of {len(chosen)} {what}, {undecided} undecided; {mean:.1f} s each", flush=True)


if __name__ == "__main__":
    main()
