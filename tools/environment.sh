#!/usr/bin/env bash
# Makes .venv from requirements.lock, or brings the one that is there up to date. PYTHON=... names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=${PATH//"$PWD/.venv/bin:"/}  # the one that is there can't remake itself

pick_python() {
    for python in ${PYTHON:-python3.11 python3.12 python3}; do
        # MLServer, which the example is served by, has no release for 3.13.
        if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "error: no Python 3.11 or 3.12 found as ${PYTHON:-python3.11, python3.12 or python3}: install one" \
        "(on Debian: apt-get install python3), or name it with PYTHON=/path/to/python" >&2
    return 1
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(pick_python)
    # Debian keeps in another package what makes virtual environments.
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        tools/debian-packages.sh --required python3-venv
    fi
    echo "environment: making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

echo "environment: installing $(grep -c == requirements.lock) packages (about 2 min the first time)"
pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }
# Wheels alone: building one would download what the lock doesn't name.
pip install --require-hashes --only-binary :all: --requirement requirements.lock
# By path (compat), not by a list of today's packages: a package added later is found without installing again.
# setuptools warns each time that this may go one day.
PYTHONWARNINGS=ignore pip install --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
touch .venv/.up-to-date
