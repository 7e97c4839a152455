# Sourced by run.sh and test.sh after `requirements="FILE FILE"`: sets $PYTHON to a Python with the packages they list,
# in versions within the ranges there. An active Python that has them is used as it is; otherwise .venv is created and
# filled. If the active Python has a torch within its range, .venv sees that torch and all other packages there, and
# gets only what is missing or out of range: a server's own torch is neither replaced nor downloaded again.
# FORCE_VENV=1 always uses a .venv of its own. docs/environments.md

PYTHON=$(command -v python3 || command -v python || true)
if [ -z "$PYTHON" ] || ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: needs Python 3.10 or newer on the PATH; found ${PYTHON:-none}${PYTHON:+, $("$PYTHON" -V 2>&1)}" >&2
    exit 2
fi
environment="-m engine.run.environment"
if [ -n "${FORCE_VENV:-}" ] || ! problems=$("$PYTHON" $environment check $requirements); then
    if ! .venv/bin/python -c "" 2> /dev/null; then  # there is none, or the Python it was made with has gone
        shared=
        if [ -z "${FORCE_VENV:-}" ]; then
            echo "$PYTHON: $problems" >&2
            shared=$("$PYTHON" $environment folders $requirements)
        fi
        if [ -n "$shared" ]; then
            echo "creating .venv, a virtual environment in this folder, which sees the torch of $PYTHON" >&2
        else
            if ! problems=$("$PYTHON" $environment gpu wheel); then
                echo "error: $problems; then activate that environment and run this again" >&2
                exit 2
            fi
            echo "creating .venv, a virtual environment in this folder" >&2
        fi
        # A virtual environment hides the packages of the Python it was made with; so does .venv then
        system=${shared:+$("$PYTHON" -c 'import sys; print("--system-site-packages" * (sys.prefix == sys.base_prefix))')}
        # Its pip comes last: an interrupted set-up then still shares torch
        "$PYTHON" -m venv --clear --without-pip $system .venv || { echo "error: $PYTHON -m venv failed; its message is above" >&2; exit 2; }
        if [ -n "$shared" ]; then  # also where the active Python is a virtual environment itself
            echo "$shared" > "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth"
        fi
    fi
    PYTHON=$PWD/.venv/bin/python
    if ! problems=$("$PYTHON" $environment check $requirements); then
        if ! "$PYTHON" -m pip --version > /dev/null 2>&1 && ! "$PYTHON" -m ensurepip > /dev/null 2>&1; then
            echo "error: .venv has no pip, and python3 -m ensurepip failed; on Debian: apt install python3-venv" >&2
            exit 2
        fi
        echo "installing the packages of $requirements; this takes a few minutes, once" >&2
        set_up() {
            "$PYTHON" $environment pins "$1" $requirements > .venv/constraints.txt
            "$PYTHON" $environment needed $requirements > .venv/requirements.txt
            # for packages without a wheel (seqeval): builds with setuptools_scm 10 fail, as they do not get its dependencies
            echo "setuptools_scm<9" > .venv/build.txt
            PIP_CONSTRAINT="$PWD/.venv/build.txt ${PIP_CONSTRAINT:-}" PIP_BUILD_CONSTRAINT="$PWD/.venv/build.txt ${PIP_BUILD_CONSTRAINT:-}" \
                "$PYTHON" -m pip install --quiet --disable-pip-version-check --constraint .venv/constraints.txt --requirement .venv/requirements.txt
        }
        if ! set_up constraints.txt; then
            # The tested versions may not fit to what is there already: any within the ranges, then
            ls .venv/lib/python*/site-packages/shared.pth > /dev/null 2>&1 && set_up /dev/null || {
                echo "error: pip failed; its message is above. If it cannot reach its index, set PIP_INDEX_URL to a mirror" >&2
                exit 2
            }
        fi
        problems=$("$PYTHON" $environment gpu) || echo "warning: $problems" >&2
    fi
fi
