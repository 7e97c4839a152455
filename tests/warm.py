"""Runs a script that starts runs of main.py, and has them fork from it: a process each, with signals and all, but
without the seconds of importing the libraries again.

    python tests/warm.py search.py --trials 2 …

Not for one that starts them from threads, as benchmarks/ablation.py does: what another thread had locked stays so.
"""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from forks import run_script  # noqa: E402

from engine import child  # noqa: E402


class Forked:
    """What engine/child.py needs of subprocess.Popen."""

    def __init__(self, command, stdin, stdout, stderr, env, start_new_session, preexec_fn):
        self.returncode, self.pid = None, os.fork()
        if self.pid == 0:
            os.setsid()
            for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), stdout.fileno(), stderr.fileno())):
                os.dup2(file, number)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.alarm(0)
            if preexec_fn:
                preexec_fn()
            os.environ.clear()
            os.environ.update(env)
            run_script(command[1:])


child.subprocess = SimpleNamespace(Popen=Forked, DEVNULL=None)
script, *words = sys.argv[1:]
run_script([str(ROOT / script), *words])
