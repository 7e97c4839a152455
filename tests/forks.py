"""Runs scripts one after another, each in a process of its own, without importing the big libraries anew for each.

    python tests/forks.py FOLDER_OF_THE_SCRIPTS

Each line of standard input is JSON, {"words": [script, flag, …], "log": file, "kill_at": [folder, step] or null}; for
each the exit code is printed. With kill_at the process is killed once the folder has a checkpoint of that step.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path


class Forks:
    """`with Forks(scripts, cwd) as forks:` — such a process beside the tests."""

    def __init__(self, scripts, cwd):
        self.scripts, self.log = Path(scripts), Path(cwd) / "log.txt"
        env = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([sys.executable, __file__, self.scripts], cwd=cwd, env=env, **pipes)

    def run(self, words, code=0, kill_at=None):
        """Runs [script, flag, …] -> what it printed."""
        words = [str(self.scripts / words[0]), *map(str, words[1:])]
        task = {"words": words, "log": str(self.log), "kill_at": kill_at}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        printed = self.process.stdout.readline()
        log = self.log.read_text(encoding="utf-8")
        assert printed == f"{code}\n", f"{' '.join(words)}: exit {printed}{log[-3000:]}"
        return log

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()


def run(words, log):
    """Never returns: the process becomes the script."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv, code = words, 0
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main():
    sys.path[0] = sys.argv[1]
    import datasets  # noqa: F401
    import seqeval.metrics  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401

    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            run(task["words"], task["log"])
        ended = os.waitpid(child, os.WNOHANG) if task["kill_at"] else os.waitpid(child, 0)
        while ended == (0, 0):
            if is_there(*task["kill_at"]):
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
