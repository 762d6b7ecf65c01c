#!/usr/bin/env bash
# Installs Debian packages that hold missing commands: tools/debian-packages.sh [--required] [COMMAND=]PACKAGE...
#
# Only as root on Debian, and only where nobody minds: in CI (CI=true), with LEPTON_INSTALL_DEBIAN=1, or for what the
# set-up can't do without (--required). Elsewhere it says what is missing, and what uses that is skipped.
set -euo pipefail
# Daemons are there, and a user's PATH may lack them.
PATH=$PATH:/usr/sbin:/sbin:/usr/lib/cni$(printf ':%s' /usr/lib/postgresql/*/bin)

required=
if [[ $1 == --required ]]; then required=1; shift; fi

missing=()
for item in "$@"; do
    command -v "${item%%=*}" >/dev/null || missing+=("${item#*=}")
done
if [[ ${#missing[@]} == 0 ]]; then exit 0; fi

if [[ $(id -u) == 0 && ( $required || ${CI:-} == true || ${LEPTON_INSTALL_DEBIAN:-} == 1 ) ]] \
    && command -v apt-get >/dev/null; then
    echo "installing Debian packages: ${missing[*]}"
    # A package's service must not start: it would take a port, or outlive the command that wanted the package.
    if [[ ! -e /usr/sbin/policy-rc.d ]]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    log=$(mktemp)
    if apt-get update >"$log" 2>&1 && apt-get install -y --no-install-recommends "${missing[@]}" >>"$log" 2>&1; then
        rm "$log"
        exit 0
    fi
    tail -n 20 "$log" >&2
    rm "$log"
    echo "could not install: ${missing[*]}" >&2
elif [[ $required ]]; then
    echo "missing: install ${missing[*]} (on Debian, as root: apt-get install ${missing[*]})" >&2
else
    echo "not installed: ${missing[*]}. What needs them is skipped; as root on Debian, LEPTON_INSTALL_DEBIAN=1 installs them."
fi
if [[ $required ]]; then exit 1; fi
