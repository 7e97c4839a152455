#!/bin/sh
# Sets up the environment if necessary, then runs the tests. Flags are passed to pytest: sh test.sh tests/test_trainer.py -k resume
set -eu
cd "$(dirname "$0")"
requirements="requirements.txt requirements-test.txt"
. ./setup_env.sh

exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
