"""Runs scripts in separate processes without importing the large libraries in each of them.

    python tests/forks.py ADDRESS

A server on a local socket forks for all clients. Each line on a connection is JSON: {"name": string, "words": [script,
flag, …] or ["-m", module, flag, …], "cwd": folder, "scripts": folder of the modules, "env": additional environment
variables, "files": [standard input, output, errors], "seconds": time limit, "kill_at": [folder, step] or null}. The
server responds with [name, "began", process] and, at the end, [name, "ended", exit code]. With kill_at, the process is
killed once the folder has a checkpoint of that step. The server exits after some seconds without connections.

Next to the socket is ADDRESS.python, an executable that replaces Python (stand_in.py): it sends its own streams and
environment to the server, and is the `sys.executable` of forked processes, so that scripts started by scripts are
forked too."""

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

QUIET = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
PYTHON = sys.executable
LONELY = 5  # seconds without a connection after which the server exits


class Forks:
    """`with Forks(scripts, cwd, server) as forks:` connects to a server, and starts it if necessary.

    scripts: folder of the scripts. cwd: working folder of the scripts, and folder of logs. server: path of a socket
    that is shared by several clients (default: a new one in cwd).
    """

    def __init__(self, scripts, cwd, server=None, env=QUIET):
        self.scripts, self.cwd = Path(scripts), Path(cwd)
        self.server = Path(server or self.cwd / "forks.socket")
        self.line = connect(self.server, env)
        self.replies, self.ended = self.line.makefile("r"), {}

    def command(self, words, cwd, input=None, seconds=600):
        """Runs [script, flag, …] in `cwd`. Returns a subprocess.CompletedProcess. The process is killed after the time
        limit."""
        given, out, errors = (self.cwd / name for name in ("in.txt", "out.txt", "errors.txt"))
        given.write_text(input or "", encoding="utf-8")
        code = self.start(words, cwd, [given, out, errors], seconds=seconds)
        return subprocess.CompletedProcess(words, code, *(file.read_text(encoding="utf-8") for file in (out, errors)))

    def run(self, words, code=0, kill_at=None):
        """Runs [script, flag, …]. Returns the output. Raises AssertionError if the exit code differs from the expected
        one."""
        log = self.cwd / "log.txt"
        found = self.start(words, self.cwd, [os.devnull, log, log], kill_at)
        printed = log.read_text(encoding="utf-8")
        assert found == code, f"{' '.join(map(str, words))}: exit {found}\n{printed[-3000:]}"
        return printed

    def several(self, processes, words, cwd=None, seconds=120):
        """Runs a script in several processes connected by torch.distributed, like torchrun. Returns the output. Raises
        AssertionError if one fails."""
        from torch.distributed import TCPStore

        # here, like in torchrun: if the first process hosted it, the others could not end after it
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        logs = [self.cwd / f"log-{rank}.txt" for rank in range(processes)]
        for rank, log in enumerate(logs):
            env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
            self.ask(rank, words, cwd or self.cwd, [os.devnull, log, log], seconds=seconds, env=env)
        codes = [self.wait(rank) for rank in range(processes)]
        printed = "".join(log.read_text(encoding="utf-8") for log in logs)
        assert not any(codes), f"{' '.join(map(str, words))}: exit {codes}\n{printed[-3000:]}"
        return printed

    def start(self, words, cwd, files, kill_at=None, seconds=600):
        self.ask("", words, cwd, files, kill_at, seconds)
        return self.wait("")

    def ask(self, name, words, cwd, files, kill_at=None, seconds=600, env=()):
        """Starts [script, flag, …], or [module, flag, …] like with -m. Returns the process id."""
        script = str(self.scripts / words[0])
        words = [*([script] if script.endswith(".py") else ["-m", words[0]]), *map(str, words[1:])]
        task = {
            "name": name,
            "words": words,
            "cwd": str(cwd),
            "scripts": str(self.scripts),
            "files": [*map(str, files)],
        }
        task |= {"seconds": seconds, "kill_at": kill_at, "env": {key: str(value) for key, value in dict(env).items()}}
        self.line.sendall(json.dumps(task).encode() + b"\n")
        return self.listen("began", name)

    def wait(self, name):
        """Waits until the process with that name has ended. Returns its exit code."""
        return self.ended.pop(name) if name in self.ended else self.listen("ended", name)

    def has_ended(self, process):
        """Returns whether a process has ended, even if its exit code has not been received yet."""
        state = Path(f"/proc/{process}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"

    def listen(self, what, name):
        while True:
            other, kind, number = json.loads(self.replies.readline())
            if (kind, other) == (what, name):
                return number
            self.ended[other] = number

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.replies.close()
        self.line.close()


class Process:
    """A script in the background, with the interface of subprocess.Popen: pid, poll, wait, signals, returncode. Its
    output goes to `log`."""

    def __init__(self, forks, words, cwd, log):
        self.forks, self.log, self.returncode = forks, Path(log), None
        self.pid = forks.ask("process", words, cwd, [os.devnull, log, log])

    def poll(self):
        if self.returncode is None and self.forks.has_ended(self.pid):
            self.wait()
        return self.returncode

    def wait(self, timeout=None):
        """Waits for the end, for at most `timeout` seconds, and returns the exit code; see subprocess.Popen."""
        end = time.monotonic() + (timeout or 0)
        while timeout and self.returncode is None and not self.forks.has_ended(self.pid):
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("", timeout)
            time.sleep(0.003)
        if self.returncode is None:
            self.returncode = self.forks.wait("process")
            self.forks.__exit__()
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def printed(self):
        """Returns the output, once the process has ended."""
        self.wait()
        return self.log.read_text(encoding="utf-8")


def connect(address, env):
    """Connects to the server at that path, and starts it if there is none."""
    with FileLock(f"{address}.lock"):
        for attempt in range(3000):
            line = socket.socket(socket.AF_UNIX)
            with suppress(OSError):
                line.connect(str(address))
                return line
            line.close()
            if attempt == 0:
                address.unlink(missing_ok=True)
                command = [PYTHON, __file__, str(address)]
                quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
                with open(f"{address}.log", "a") as log:
                    process = subprocess.Popen(command, env={**os.environ, **env}, stderr=log, **quiet)
            if process.poll() is not None:
                break
            time.sleep(0.02)
    raise RuntimeError(f"no server at {address}")


# ---- the server ------------------------------------------------------------------------------------------------------


READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "TQDM_", "CUDA_", "PYTHON", "LC_", "LANG", "LD_")


def differs(env):
    """Returns whether a process with that environment must import the libraries itself."""
    names = {name for name in (*env, *os.environ) if name.startswith(READ_AT_IMPORT) and name != "PYTHON_EXEC"}
    return any(env.get(name) != os.environ.get(name) for name in names)


def become_stand_in(words, cwd, env, streams):
    """Turns this process into `python WORDS`. Never returns."""
    import torch

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding=sys.stdout.encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=sys.stderr.encoding, errors="backslashreplace", closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    run_script(words)


def become(words, cwd, scripts, files, seconds, env):
    """Turns this process into the script. Never returns. The process ends without the slow cleanup of the libraries."""
    writes = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND  # two of them may be the same file
    for number, (file, how) in enumerate(zip(files, (os.O_RDONLY, writes, writes))):
        os.dup2(os.open(file, how), number)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    os.chdir(cwd)
    os.environ.update(env)
    signal.alarm(seconds)  # then it is killed
    run_script(words, scripts)


def run_script(words, scripts=""):
    """Runs [script, flag, …] in this process, and ends it; also ["-m", module, flag, …], with `scripts` (default: this
    repository) on the path, and ["-c", code, flag, …]."""
    code, kind = 0, words[0]
    try:
        if kind in ("-m", "-c"):
            sys.argv, sys.path[0] = [kind, *words[2:]], "" if kind == "-c" else scripts or os.getcwd()
        else:
            sys.argv, sys.path[0] = words, str(Path(kind).parent)
        if kind == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(words[1], vars(sys.modules["__main__"]))
        else:
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # waits for threads, like Python at its end
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Server:
    """A single-threaded server, because forking with threads is unsafe."""

    def __init__(self, listening):
        self.listening, self.selector = listening, selectors.DefaultSelector()
        self.selector.register(listening, selectors.EVENT_READ)
        self.children = {}  # {process: (connection of the request, name, where to kill it)}
        self.lines, self.alone_since = {}, time.monotonic()  # {connection: received part of the next line}
        self.streams, self.stand_ins = {}, set()  # streams received with a line; connections of stand-ins

    def run(self):
        """Serves until there have been no connections for a while."""
        while self.lines or self.children or time.monotonic() - self.alone_since < LONELY:
            for key, _ in self.selector.select(0.003 if self.children else 1):
                self.accept() if key.fileobj is self.listening else self.read(key.fileobj)
            self.reap()

    def accept(self):
        line, _ = self.listening.accept()
        self.lines[line] = b""
        self.selector.register(line, selectors.EVENT_READ)

    def read(self, line):
        found, streams, *_ = socket.recv_fds(line, 1 << 16, 3)
        if not found:
            self.forget(line)
            return
        *tasks, self.lines[line] = (self.lines[line] + found).split(b"\n")
        self.streams[line] = [*self.streams.get(line, ()), *streams]
        for task in map(json.loads, tasks):
            name, kill_at = task.pop("name", ""), task.pop("kill_at", None)
            if "files" not in task:
                task["streams"] = self.streams.pop(line)
                self.stand_ins.add(line)
                if differs(task["env"]):
                    self.tell(line, name, "differs", 0)
                    self.close(task["streams"])
                    continue
            child = os.fork()
            if child == 0:
                for other in (self.listening, *self.lines):
                    other.close()
                self.selector.close()
                become(**task) if "files" in task else become_stand_in(**task)
            self.close(task.get("streams", ()))
            self.children[child] = line, name, kill_at
            self.tell(line, name, "began", child)

    def forget(self, line):
        """Closes a connection. If a stand-in was killed, its process is killed too."""
        for child, (asked, *_) in self.children.items():
            if asked is line and line in self.stand_ins:
                os.kill(child, signal.SIGKILL)
        self.selector.unregister(line)
        self.stand_ins.discard(line)
        del self.lines[line]
        line.close()
        self.alone_since = time.monotonic()

    def close(self, streams):
        for stream in streams:
            os.close(stream)

    def tell(self, line, *reply):
        with suppress(OSError):  # the client may have disconnected
            line.sendall(json.dumps(reply).encode() + b"\n")

    def reap(self):
        """Sends the exit codes of ended processes, and kills processes that have reached their step."""
        for child, (line, name, kill_at) in list(self.children.items()):
            if kill_at and is_there(*kill_at):
                os.kill(child, signal.SIGKILL)
                self.children[child] = line, name, None
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                del self.children[child]
                self.tell(line, name, "ended", os.waitstatus_to_exitcode(status))


def is_there(folder, step):
    """Returns whether a checkpoint of that step or a later one exists."""
    return any(int(path.name[5:]) >= step for path in Path(folder).glob("step_*") if path.name[5:].isdigit())


def main(address):
    import datasets  # noqa: F401
    import seqeval.metrics  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import transformers.models.bert.modeling_bert  # noqa: F401

    stand_in = Path(f"{address}.python")
    code = Path(__file__).with_name("stand_in.py").read_text(encoding="utf-8")
    code = f"#!{sys.executable} -IS\nADDRESS, PYTHON = {address!r}, {sys.executable!r}\n{code}"
    stand_in.write_text(code, encoding="utf-8")
    stand_in.chmod(0o755)
    sys.executable = str(stand_in)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        gc.freeze()  # loaded objects stay in shared memory
        Server(listening).run()


if __name__ == "__main__":
    main(sys.argv[1])
