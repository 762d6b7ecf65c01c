#!/usr/bin/env bash
# Writes requirements.lock from pyproject.toml. Pins that still fit are kept; arguments go to the resolver:
# --upgrade, or --upgrade-package NAME.
set -euo pipefail
cd "$(dirname "$0")/.."

resolver=$(mktemp -d)
trap 'rm -rf "$resolver"' EXIT
.venv/bin/python -m venv "$resolver"
"$resolver/bin/pip" --disable-pip-version-check --quiet install uv==0.13.8
# For Debian 12's Python and C library; the hashes of every platform's files are listed.
"$resolver/bin/uv" pip compile pyproject.toml --all-extras --output-file requirements.lock \
    --python-version 3.11 --python-platform x86_64-manylinux_2_36 --generate-hashes --no-header --quiet "$@"
