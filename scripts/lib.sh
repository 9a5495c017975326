# Functions that the scripts and the client suites share. This file is sourced, never run.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Everything that is built or fetched is kept outside the source tree.
cache=${ENTREPOT_CACHE:-${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/entrepot}
export PATH=$cache/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin
mkdir -p "$cache/bin"

say() { printf '%s\n' "$*" >&2; }
die() {
    say "error: $*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command with a time limit in seconds. The command cannot read this terminal, and ends with Ctrl-C.
bounded() { timeout --foreground --kill-after=10 "$@" </dev/null; }

# Waits until a command succeeds, for the given number of seconds at most.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.1
    done
}

# The same for something that a started process does. It stops waiting when that process has ended.
wait_for_process() {
    local deadline=$((SECONDS + $2)) id=$1
    shift 2
    until "$@" >/dev/null 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ] || is_gone "$id"; then return 1; fi
        sleep 0.1
    done
}

# A free port on the loopback address, below those that the kernel gives to outgoing connections.
declare -A given_ports=()
free_port() {
    while :; do
        free_port=$((20000 + RANDOM % 12000))
        [ -z "${given_ports[$free_port]-}" ] || continue
        (exec 3<>"/dev/tcp/127.0.0.1/$free_port") 2>/dev/null || break
    done
    given_ports[$free_port]=1
}

# The processes that were started here, so that all of them can be ended with the script.
started=()
stop() {
    local id
    for id in "$@"; do kill "$id" 2>/dev/null || true; done
    for id in "$@"; do
        wait_until 15 is_gone "$id" || kill -9 "$id" 2>/dev/null || true
        wait "$id" 2>/dev/null || true
    done
}
is_gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.*zombie' "/proc/$1/status"; }
stop_started() {
    local at
    for ((at = ${#started[@]} - 1; at >= 0; at--)); do stop "${started[at]}"; done
    started=()
}

# Installs missing packages as root where there is apt; elsewhere prints the command that would, and fails.
install_packages() {
    local packages=("$@") log=$cache/apt.log
    if [ "$(id -u)" != 0 ] || ! have apt-get; then
        say "missing; this would install it: sudo apt-get install -y ${packages[*]}"
        return 1
    fi
    say "installing ${packages[*]}"
    (
        # Debian starts services when they are installed. They are not needed here, and some take ports.
        policy=/usr/sbin/policy-rc.d
        if [ -e "$policy" ]; then
            mv "$policy" "$policy.entrepot"
            trap 'mv "$policy.entrepot" "$policy"' EXIT
        else
            trap 'rm -f "$policy"' EXIT
        fi
        trap 'exit 130' INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        export DEBIAN_FRONTEND=noninteractive
        install=(apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "${packages[@]}")
        bounded 900 "${install[@]}" >"$log" 2>&1 ||
            { bounded 300 apt-get update -q >>"$log" 2>&1 && bounded 900 "${install[@]}" >>"$log" 2>&1; }
    ) || {
        say "apt could not install ${packages[*]}:"
        tail -n 5 "$log" >&2
        return 1
    }
}

# Collects the packages of missing commands: `need COMMAND PACKAGE`, then `install_needed`.
needed=()
need() { have "$1" || needed+=("$2"); }
install_needed() {
    [ ${#needed[@]} -eq 0 ] || install_packages "${needed[@]}" || return 1
    needed=()
}

# shellcheck disable=SC2034 # the scripts that source this file use them
crane_version=v0.22.1 grpcurl_version=v1.9.4 oras_version=v1.3.6 helm_version=v3.22.0 cosign_version=v2.6.5

# Builds a client with Go, once: COMMAND PACKAGE VERSION. The client suites skip missing clients, and say so.
install_go_tool() {
    local tool=$1 package=$2 version=$3
    [ ! -e "$cache/bin/.$tool-$version" ] || return 0
    if ! have go; then
        have "$tool" || say "there is no Go, which would install $tool: go install $package@$version"
        return 0
    fi
    say "installing $tool $version"
    # From a folder without a module, so that nothing in this source tree has an effect.
    if (cd / && GOBIN=$cache/bin bounded 600 go install "$package@$version" >"$cache/go.log" 2>&1); then
        : >"$cache/bin/.$tool-$version"
    else
        say "$tool could not be installed:"
        tail -n 5 "$cache/go.log" >&2
    fi
}

# Entrepot looks for `postgres` in the same places.
have_postgres() { have postgres || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

have_venv() { python3 -c 'import ensurepip, venv' >/dev/null 2>&1; }
