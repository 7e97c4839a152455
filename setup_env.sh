# Sourced by run.sh and test.sh after `requirements="FILE FILE"`: sets $PYTHON to a Python with the packages they list.
# An active Python that has all of them, in any version, is used as it is; otherwise .venv is created and filled.
# FORCE_VENV=1 always uses .venv.

check='
import re, sys
from importlib.metadata import PackageNotFoundError, version
for path in sys.argv[1:]:
    for name in re.findall(r"^[\w-]+", open(path).read(), re.M):
        try:
            version(name)
        except PackageNotFoundError:
            sys.exit(1)
'
PYTHON=$(command -v python3 || command -v python || true)
if [ -z "$PYTHON" ] || ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: needs Python 3.10 or newer on the PATH" >&2
    exit 2
fi
if [ -n "${FORCE_VENV:-}" ] || ! "$PYTHON" -c "$check" $requirements; then
    if [ ! -x .venv/bin/python ]; then
        echo "creating .venv, a virtual environment in this folder" >&2
        "$PYTHON" -m venv .venv || { rm -rf .venv; echo "error: python3 -m venv failed; on Debian: apt install python3-venv" >&2; exit 2; }
    fi
    PYTHON=$PWD/.venv/bin/python
    if ! cat $requirements | cmp -s - .venv/installed; then
        echo "installing the packages of $requirements; this takes a few minutes, once" >&2
        "$PYTHON" -m pip install --quiet --disable-pip-version-check $(for file in $requirements; do echo "-r $file"; done)
        cat $requirements > .venv/installed
    fi
fi
