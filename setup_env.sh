# Sourced by run.sh and test.sh after `requirements="FILE FILE"`. Sets $PYTHON to a Python that has the listed packages
# in supported versions. The active Python is used if it has them. If it does not, .venv is created. If the active
# Python has a supported torch, .venv can import its packages, and only missing or unsupported packages are installed:
# a server's torch is neither replaced nor downloaded again. FORCE_VENV=1 always creates an independent .venv.
# See docs/environments.md.

PYTHON=$(command -v python3 || command -v python || true)
if [ -z "$PYTHON" ] || ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: needs Python 3.10 or newer on the PATH; found ${PYTHON:-none}${PYTHON:+, $("$PYTHON" -V 2>&1)}" >&2
    exit 2
fi
environment="-m engine.run.environment"
if [ -n "${FORCE_VENV:-}" ] || ! problems=$("$PYTHON" $environment check $requirements); then
    if ! .venv/bin/python -c "" 2> /dev/null; then  # .venv does not exist, or its Python has been removed
        shared=
        if [ -z "${FORCE_VENV:-}" ]; then
            echo "$PYTHON: $problems" >&2
            shared=$("$PYTHON" $environment folders $requirements)
        fi
        if [ -n "$shared" ]; then
            echo "creating .venv, a virtual environment in this folder, which uses the torch of $PYTHON" >&2
        else
            if ! problems=$("$PYTHON" $environment gpu wheel); then
                echo "error: $problems; then activate that environment and run this again" >&2
                exit 2
            fi
            echo "creating .venv, a virtual environment in this folder" >&2
        fi
        # If the active Python is a virtual environment, .venv must not see the system's packages either
        system=${shared:+$("$PYTHON" -c 'import sys; print("--system-site-packages" * (sys.prefix == sys.base_prefix))')}
        # pip is added last, so that an interrupted set-up still shares torch
        "$PYTHON" -m venv --clear --without-pip $system .venv || { echo "error: $PYTHON -m venv failed; its message is above" >&2; exit 2; }
        if [ -n "$shared" ]; then  # also works if the active Python is a virtual environment
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
            # Packages without a wheel (seqeval) fail to build with setuptools_scm 10, which lacks its dependencies there
            echo "setuptools_scm<9" > .venv/build.txt
            PIP_CONSTRAINT="$PWD/.venv/build.txt ${PIP_CONSTRAINT:-}" PIP_BUILD_CONSTRAINT="$PWD/.venv/build.txt ${PIP_BUILD_CONSTRAINT:-}" \
                "$PYTHON" -m pip install --quiet --disable-pip-version-check --constraint .venv/constraints.txt --requirement .venv/requirements.txt
        }
        if ! set_up constraints.txt; then
            # The tested versions may conflict with the shared packages: allow any supported version
            ls .venv/lib/python*/site-packages/shared.pth > /dev/null 2>&1 && set_up /dev/null || {
                echo "error: pip failed; its message is above. If it cannot reach its index, set PIP_INDEX_URL to a mirror" >&2
                exit 2
            }
        fi
        problems=$("$PYTHON" $environment gpu) || echo "warning: $problems" >&2
    fi
fi
