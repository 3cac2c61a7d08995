#!/usr/bin/env bash
# On a worker of a TPU VM: installs the package, runs a command that outlives the connection, and
# says how it is. Called by tpu_vm.sh.
#
#   worker.sh install EXTRAS          into .venv of this checkout; stops what still runs
#   worker.sh start TOKEN ARGUMENTS   python -m mrm_jax.main ARGUMENTS, detached; once for a TOKEN
#   worker.sh status                  one line: mrm_jax_worker HOST SUM STATE LAST-LINE-OF-LOG
#   worker.sh sum ARGUMENTS           the SUM that status tells commands apart by
#
# STATE is running, finished (exit code 0), failed:CODE, stopped (by a signal, and saved), lost (it
# left no exit code) or idle (nothing was started).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"
root=$(dirname "$here")
run=$HOME/mrm_jax_run
python=$root/.venv/bin/python

sum() { quoted "$@" | cksum | cut -d ' ' -f 1; }

# The lock is held by the command and all its children, so it tells more than a process id, which
# says nothing after a restart of the machine.
running() { [ -e "$run/lock" ] && ! flock --nonblock "$run/lock" true; }

stop() {
    local signal
    for signal in TERM KILL; do
        running || return 0
        kill "-$signal" -- "-$(<"$run/group")" 2>/dev/null || true
        flock --timeout 60 "$run/lock" true || true
    done
}

install() {
    stop
    cd "$root"
    # The machines' images have Python 3.10; uv finds or brings one that the package takes.
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    [ -x "$python" ] || python3 -m uv venv --quiet --python '>=3.11' .venv
    python3 -m uv pip install --quiet --python "$python" --editable ".[$1]"
}

start() {
    local token=$1
    shift
    mkdir -p "$run"
    if [ "$token" = "$(cat "$run/token" 2>/dev/null)" ]; then
        return # the connection broke after the first time
    fi
    exec 9>"$run/lock"
    flock --nonblock 9 || die 3 "another command runs on $HOSTNAME."
    rm -f "$run/code"
    if [ -e "$run/log.txt" ]; then mv "$run/log.txt" "$run/log.before.txt"; fi
    sum "$@" >"$run/sum"
    cd "$root"
    # The exit code is in its file as a whole or not at all.
    # shellcheck disable=SC2016
    PYTHONUNBUFFERED=1 setsid nohup bash -c '
        echo $$ >"$0/group"
        code=0
        "$@" || code=$?
        echo "$code" >"$0/code.part" && mv "$0/code.part" "$0/code"
    ' "$run" "$python" -m mrm_jax.main "$@" </dev/null >"$run/log.txt" 2>&1 &
    echo "$token" >"$run/token"
}

status() {
    local state=lost code
    if [ ! -e "$run/sum" ]; then
        state=idle
    elif running; then
        state=running
    elif [ -e "$run/code" ]; then
        code=$(<"$run/code")
        state=failed:$code
        if [ "$code" = 0 ]; then
            state=finished
            if was_stopped "$run/log.txt"; then state=stopped; fi
        fi
    fi
    echo "mrm_jax_worker $HOSTNAME $(cat "$run/sum" 2>/dev/null || echo 0) $state" \
        "$(tail -n 1 "$run/log.txt" 2>/dev/null)"
}

case ${1:-} in
install | start | status | sum) "$@" ;;
*)
    usage
    exit 2
    ;;
esac
