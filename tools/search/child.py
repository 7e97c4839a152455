"""Runs main.py in child processes, for scripts that start many runs."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Options of main.py that are set by these scripts
SET_BY_SCRIPT = "data_path pretrain_model_path debug fold model_version output_dir checkpoint random_seed".split()
PR_SET_PDEATHSIG = 1
LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """Makes Linux send SIGTERM to this child process if the parent is killed, so that the run saves and exits."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """A process that appends its output to a log. Ctrl-C in the terminal only reaches the parent."""

    def __init__(self, command: Sequence[str], log: Path, jobs: int) -> None:
        """Starts the process. jobs: number of processes; they share the cores unless OMP_NUM_THREADS is set."""
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        env = {"OMP_NUM_THREADS": threads, "TQDM_DISABLE": "1"} | dict(os.environ)
        self.log, self.start = log, time.perf_counter()
        self.code: int | None = None
        self.used: Any = None  # resource usage, set after the process has ended
        with open(log, "a", encoding="utf-8") as file:
            self.log_begins = file.tell()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=env,
                start_new_session=True,
                preexec_fn=end_with_parent if LIBC else None,
            )

    def wait(self, options: int = 0) -> int | None:
        """Waits for the process to end. Returns the exit code, which is negative if a signal killed the process."""
        if self.code is None:
            pid, status, used = os.wait4(self.process.pid, options)
            if pid:
                self.end, self.used = time.perf_counter(), used
                self.code = self.process.returncode = os.waitstatus_to_exitcode(status)
        return self.code

    def poll(self) -> int | None:
        """Returns the exit code like `wait`, or None while the process is running."""
        return self.wait(os.WNOHANG)

    def terminate(self) -> None:
        """Asks the process to save and exit."""
        if self.code is None:
            os.kill(self.process.pid, signal.SIGTERM)

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self.code is None else self.end) - self.start

    @property
    def cpu_seconds(self) -> float:
        """CPU time, including finished child processes. While the process is running, it is 0 except on Linux."""
        if self.used:
            return self.used.ru_utime + self.used.ru_stime
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def last_line(self) -> str:
        """Returns the last line of output, or the signal that killed the process."""
        if self.code is not None and self.code < 0:
            name = signal.Signals(-self.code).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        with open(self.log, encoding="utf-8", errors="replace") as file:
            file.seek(self.log_begins)
            lines = file.read().strip().splitlines()
        return lines[-1].removeprefix("error: ") if lines else f"exit code {self.code}, without output"
