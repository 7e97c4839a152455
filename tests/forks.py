"""Runs scripts one after another, each in a process of its own, without importing the big libraries anew for each.

    python tests/forks.py

Each line of standard input is JSON: {"words": [script, flag, …], "cwd": folder, "files": [standard input, output,
errors], "seconds": until it is killed, "kill_at": [folder, step] or null}; for each the exit code is printed. With
kill_at the process is killed once the folder has a checkpoint of that step.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

QUIET = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}


class Forks:
    """`with Forks(scripts, cwd) as forks:` — such a process beside the tests. Logs lie in `cwd`."""

    def __init__(self, scripts, cwd, env=QUIET):
        self.scripts, self.cwd = Path(scripts), Path(cwd)
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([sys.executable, __file__], env={**os.environ, **env}, **pipes)

    def command(self, words, cwd, input=None, seconds=600):
        """Runs [script, flag, …] in `cwd` -> subprocess.CompletedProcess. It is killed after so many seconds."""
        given, out, errors = (self.cwd / name for name in ("in.txt", "out.txt", "errors.txt"))
        given.write_text(input or "", encoding="utf-8")
        code = self.start(words, cwd, [given, out, errors], seconds=seconds)
        return subprocess.CompletedProcess(words, code, *(file.read_text(encoding="utf-8") for file in (out, errors)))

    def run(self, words, code=0, kill_at=None):
        """Runs [script, flag, …] -> what it printed. AssertionError if its exit code is another."""
        log = self.cwd / "log.txt"
        found = self.start(words, self.cwd, [os.devnull, log, log], kill_at)
        printed = log.read_text(encoding="utf-8")
        assert found == code, f"{' '.join(map(str, words))}: exit {found}\n{printed[-3000:]}"
        return printed

    def start(self, words, cwd, files, kill_at=None, seconds=600):
        words = [str(self.scripts / words[0]), *map(str, words[1:])]
        task = {"words": words, "cwd": str(cwd), "files": [*map(str, files)], "seconds": seconds, "kill_at": kill_at}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


def become(words, cwd, files, seconds):
    """Never returns: the process becomes the script, and ends without the seconds that taking the libraries apart would
    take."""
    writes = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND  # two may be the same file
    for number, (file, how) in enumerate(zip(files, (os.O_RDONLY, writes, writes))):
        os.dup2(os.open(file, how), number)
    sys.stdin, code = os.fdopen(0, encoding="utf-8", closefd=False), 0
    os.chdir(cwd)
    signal.alarm(seconds)  # then it is killed
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # waits for threads, as Python does at its end
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main():
    import datasets  # noqa: F401
    import seqeval.metrics  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401

    gc.freeze()  # what is loaded stays shared
    for line in iter(sys.stdin.readline, ""):
        task = json.loads(line)
        kill_at = task.pop("kill_at")
        child = os.fork()
        if child == 0:
            become(**task)
        ended = os.waitpid(child, os.WNOHANG) if kill_at else os.waitpid(child, 0)
        while ended == (0, 0):
            if is_there(*kill_at):
                os.kill(child, signal.SIGKILL)
                ended = os.waitpid(child, 0)
            else:
                time.sleep(0.003)
                ended = os.waitpid(child, os.WNOHANG)
        print(os.waitstatus_to_exitcode(ended[1]), flush=True)


def is_there(folder, step):
    """Whether a checkpoint of that step or a later one is there."""
    return any(int(path.name[5:]) >= step for path in Path(folder).glob("step_*") if path.name[5:].isdigit())


if __name__ == "__main__":
    main()
