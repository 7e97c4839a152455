"""Replaces python with a process forked by the server of forks.py that behaves like it: standard streams, signals and
exit code. forks.py writes it into an executable file that starts with ADDRESS (of the server) and PYTHON (the real
one). The real Python is used where a fork would differ: in a terminal, with options of Python itself, with environment
variables that the libraries have already read, and without a server."""

import array
import json
import os
import signal
import socket
import sys

PASSED_ON = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


def be_real():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    os.execv(PYTHON, [PYTHON, *sys.argv[1:]])  # noqa: F821


def main(words):
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until their handlers are set
    if not words or not (words[0] in ("-c", "-m") or words[0].endswith(".py")) or os.isatty(0):
        be_real()
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(ADDRESS)  # noqa: F821
    except OSError:
        be_real()
    task = json.dumps({"words": words, "cwd": os.getcwd(), "env": dict(os.environ)})
    server.sendmsg([task.encode() + b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    replies = server.makefile("r")
    _, what, process = json.loads(replies.readline())
    if what == "differs":
        be_real()
    for number in PASSED_ON:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    *_, code = json.loads(replies.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


main(sys.argv[1:])
