#!/usr/bin/env bash
# Trains in several processes on this machine, which find each other by explicit coordinator flags:
# on the CPU, or with one GPU each. When one fails, the others are ended too.
#
#   launch/local_processes.sh --processes N [OPTION]... -- ARGUMENTS
#
# ARGUMENTS are those of `python -m mrm_jax.main`, --config among them.
#
#   --processes N     how many
#   --gpus            process I gets GPU I (default: the CPU)
#   --port PORT       of the coordinator, process 0 (default: 12321)
#   --logs DIR        of process-I.log (default: a temporary folder); process 0 is also shown
#   --grace SECONDS   from asking the others to end to ending them (default: 30)
#   --dry_run         prints every command and runs none
#
# Exit code: 0 when all end with 0, otherwise that of the first that does not. SIGTERM and Ctrl-C
# are passed on, so that the run saves; the second Ctrl-C ends all at once.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

processes='' port=12321 logs='' grace=30 gpus='' dry_run=''
while [ $# -gt 0 ]; do
    case $1 in
    --) break ;;
    -h | --help) usage && exit 0 ;;
    --gpus | --dry_run) printf -v "${1#--}" yes && shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --processes | --port | --logs | --grace)
        check_value "${@:1:2}"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    *) die 2 "'$1' is not an option; --help lists them. What goes to mrm_jax stands after --." ;;
    esac
done
words=("${@:2}")
[ ${#words[@]} -gt 0 ] || die 2 "nothing to run: end with -- and the arguments of mrm_jax.main."
[[ $processes =~ ^[1-9][0-9]*$ ]] || die 2 "--processes is '$processes'; say how many, from 1 on."
check_numbers port grace

# Sets $command: process $1's.
command_of() {
    local device=JAX_PLATFORMS=cpu
    if [ -n "$gpus" ]; then device=CUDA_VISIBLE_DEVICES=$1; fi
    command=(env "$device" PYTHONUNBUFFERED=1 python -m mrm_jax.main "${words[@]}"
        --config.mesh.coordinator="localhost:$port" --config.mesh.process_count="$processes"
        --config.mesh.process_index="$1")
}

if [ -n "$dry_run" ]; then
    for ((i = 0; i < processes; i++)); do
        command_of "$i"
        quoted "${command[@]}"
    done
    exit 0
fi

logs=${logs:-$(mktemp -d)}
mkdir -p "$logs"
alive=() # process id of every process that runs, by index
pipe=$(mktemp -d)
mkfifo "$pipe/pipe"
exec 7<>"$pipe/pipe"
exec 8>"$pipe/pipe" # held by this script alone
exec 9<"$pipe/pipe"
exec 7>&-
rm -r "$pipe"

signal() {
    local pid
    for pid in "${alive[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done
}

# Answered in the loop below: bash forgets a signal that comes while it still answers one.
heard=0 answered=0
trap 'heard=$((heard + 1))' INT TERM
trap 'signal KILL' EXIT # none is left, unless this script itself fails

export MRM_JAX_LIFELINE=9 # by which they hear of it when this script is killed, and save and end
set -m # each leads a group of its own, which Ctrl-C does not reach, with the loaders that it starts
for ((i = 0; i < processes; i++)); do
    command_of "$i"
    if ((i == 0)); then
        "${command[@]}" </dev/null 8>&- > >(exec tee -i "$logs/process-0.log" 8>&-) 2>&1 &
    else
        "${command[@]}" </dev/null 8>&- >"$logs/process-$i.log" 2>&1 &
    fi
    alive[i]=$!
done
set +m
exec 9<&-
say "$processes processes; their logs are $logs/process-*.log"

# Looks for ended ones five times a second: `wait -n` misses those that end while it does not wait.
result=0 until=''
while [ ${#alive[@]} -gt 0 ]; do
    sleep 0.2 || true # Ctrl-C reaches it, too
    # From the first signal on the run saves and ends by itself; the second does not wait for that.
    if ((heard > answered)); then
        if ((++answered > 1)); then
            signal KILL
        else
            say "asking $processes processes to save and end; once more ends them at once."
            # To the processes alone: a loader that ends before the run has saved is a failure.
            kill -TERM "${alive[@]}" 2>/dev/null || true
        fi
    fi
    for i in "${!alive[@]}"; do
        if kill -0 "${alive[i]}" 2>/dev/null; then continue; fi
        code=0
        wait "${alive[i]}" 2>/dev/null || code=$?
        kill -KILL -- "-${alive[i]}" 2>/dev/null || true # what it started and left
        unset "alive[$i]"
        if ((code != 0 && result == 0)); then
            result=$code
            say "process $i ended with exit code $code; ending the others. Its log ends with:"
            tail -n 20 "$logs/process-$i.log" >&2
            signal TERM
            until=$((SECONDS + grace))
        fi
    done
    if [ -n "$until" ] && ((SECONDS >= until)); then signal KILL; fi
done
exit "$result"
