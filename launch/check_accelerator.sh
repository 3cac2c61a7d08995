#!/usr/bin/env bash
# Checks an accelerator that nothing was run on yet, in five minutes: what it is, whether narrow
# networks compute on it what they do on a CPU, and time and memory of training steps.
#
#   launch/check_accelerator.sh [OPTION]...
#
# Needs Python with jax (for the device), flax, optax, numpy and ml_collections; no network, no
# data, and not even the package installed: it is read from this checkout.
#
#   --to DIR          where accelerator.json goes, rewritten after every piece, and compiled
#                     programs, which a second run need not compile again (default: accelerator)
#   --limit SECONDS   of all pieces together (default: 300)
#   --pieces NAMES    these alone, with commas between them (default: all)
#   --small           tiny networks, to try the check itself out
#   --python COMMAND  (default: python3)
#   --dry_run         prints the command and does not run it
#
# Exit code: 1 where a piece failed; 0 also where one was stopped at its limit.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

to=accelerator limit=300 pieces='' small='' python=python3 dry_run=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --small | --dry_run) printf -v "${1#--}" yes && shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --to | --limit | --pieces | --python)
        check_value "${@:1:2}"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    *) die 2 "'$1' is not an option; --help lists them." ;;
    esac
done
check_numbers limit

words=(env "PYTHONPATH=$(dirname "$here")${PYTHONPATH:+:$PYTHONPATH}"
    "JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$to/programs}"
    "$python" -m mrm_jax.main bench --suite accelerator --json "$to/accelerator.json"
    --limit "$limit")
if [ -n "$pieces" ]; then words+=(--pieces "$pieces"); fi
if [ -n "$small" ]; then words+=(--small); fi

if [ -n "$dry_run" ]; then
    quoted "${words[@]}"
    exit 0
fi
exec "${words[@]}"
