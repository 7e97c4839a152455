# Sourced by run.sh and test.sh after `requirements="FILE FILE"`: sets $PYTHON to a Python that has what the files name.
# An active Python that has all packages is used as it is, whatever their versions; otherwise .venv is made and filled.
# FORCE_VENV=1 leaves the active one alone.

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
        echo "making .venv, an environment of this folder's own" >&2
        "$PYTHON" -m venv .venv || { rm -rf .venv; echo "error: python3 -m venv failed; on Debian: apt install python3-venv" >&2; exit 2; }
    fi
    PYTHON=$PWD/.venv/bin/python
    if ! cat $requirements | cmp -s - .venv/installed; then
        echo "installing what $requirements name; this takes some minutes once" >&2
        "$PYTHON" -m pip install --quiet --disable-pip-version-check $(for file in $requirements; do echo "-r $file"; done)
        cat $requirements > .venv/installed
    fi
fi
