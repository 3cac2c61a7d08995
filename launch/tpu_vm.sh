#!/usr/bin/env bash
# Trains on a Cloud TPU VM, one host or a pod, until it is done, however often the VM is preempted.
#
#   launch/tpu_vm.sh --name NAME --zone ZONE --accelerator TYPE [OPTION]... -- ARGUMENTS
#
# ARGUMENTS are those of `python -m mrm_jax.main`, with a --workdir in a bucket (gs://...): the VM
# and its disk go, the run goes on. The same command attaches to a VM that is there already.
#
#   --name NAME          of the VM, and of the queued resource
#   --zone ZONE          such as us-west4-a
#   --accelerator TYPE   such as v5litepod-8 (one host) or v5litepod-32 (a pod)
#   --project PROJECT    default: gcloud's
#   --version IMAGE      default: the one for TYPE
#   --spot               cheaper, may be preempted at any time
#   --queued             waits in the queue of queued resources until there is room
#   --create_flag FLAG   one more flag for gcloud's create, such as --network=mine; any number
#   --extras LIST        extras of the package that the VM needs (default: tpu,gcs)
#   --restarts N         how often a lost VM or process is started again (default: 100)
#   --poll SECONDS       between two looks (default: 30)
#   --patience N         looks in a row without an answer before giving up (default: 60)
#   --max_wait SECONDS   for a VM (default: 86400)
#   --tries N            of a step before giving up: create, copy, install, delete (default: 5)
#   --log FILE           all that gcloud says (default: tpu_vm_NAME.log)
#   --delete_on_exit     deletes the VM also after a failure and after Ctrl-C
#   --dry_run            prints every command and runs none
#
# Exit code: 0 when every worker's process was seen to have ended with 0 and the VM is deleted; that
# of the training when it fails; 1 when the VM cannot be had or kept; 2 for a wrong command.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
source "$here/common.sh"

# --- The command line -----------------------------------------------------------------------------

name='' zone='' accelerator='' project='' version='' log='' extras=tpu,gcs create_flags=()
restarts=100 poll=30 patience=60 max_wait=86400 tries=5
spot='' queued='' delete_on_exit='' dry_run=''
while [ $# -gt 0 ]; do
    case $1 in
    --) break ;;
    -h | --help) usage && exit 0 ;;
    --spot | --queued | --delete_on_exit | --dry_run) printf -v "${1#--}" yes && shift ;;
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --name | --zone | --accelerator | --project | --version | --log | --extras | --restarts | \
        --poll | --patience | --max_wait | --tries | --create_flag)
        check_value "${@:1:2}"
        if [ "$1" = --create_flag ]; then create_flags+=("$2"); else printf -v "${1#--}" %s "$2"; fi
        shift 2
        ;;
    *) die 2 "'$1' is not an option; --help lists them. What goes to mrm_jax stands after --." ;;
    esac
done
words=("${@:2}")
[ ${#words[@]} -gt 0 ] || die 2 "nothing to run: end with -- and the arguments of mrm_jax.main."
for option in name zone accelerator; do
    [ -n "${!option}" ] || die 2 "--$option is missing; --help lists the options."
done
for option in name zone accelerator project version; do
    [[ ${!option} =~ ^([[:alnum:]][[:alnum:]_.:-]*)?$ ]] ||
        die 2 "--$option is ${!option@Q}; letters, digits and - make one up."
done
check_numbers restarts patience max_wait tries
[[ $poll =~ ^[0-9]+([.][0-9]+)?$ ]] || die 2 "--poll is ${poll@Q}; it has to be in seconds."
[[ $extras =~ ^[[:alnum:]_.-]+(,[[:alnum:]_.-]+)*$ ]] ||
    die 2 "--extras is ${extras@Q}; it has to be a list of names, such as tpu,gcs."
[[ " ${words[*]}" =~ \ --workdir[\ =]gs:// ]] ||
    die 2 "--workdir has to be in a bucket (gs://...): what is on the VM is lost with it."
if [ -z "$version" ]; then
    case $accelerator in
    v5lite*) version=v2-alpha-tpuv5-lite ;;
    v5p*) version=v2-alpha-tpuv5 ;;
    v6e*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
    esac
fi
log=${log:-tpu_vm_$name.log}
[ -n "$dry_run" ] || command -v gcloud >/dev/null ||
    die 1 "gcloud is not installed: see https://cloud.google.com/sdk/docs/install"

# shellcheck source=launch/cloud.sh
source "$here/cloud.sh"

# --- The VM ---------------------------------------------------------------------------------------

# Returns when the VM is READY: waits for it, creates it, or deletes what is left of it and creates.
bring_up() {
    local failures=0 blind=0 created='' until=$((SECONDS + max_wait)) told='' why=''
    while true; do
        look
        if [ "$state" != "$told" ]; then note "$name: $state"; fi
        told=$state
        case $state in
        READY) return ;;
        MISSING)
            create
            created=yes
            ;;
        UNKNOWN)
            ((++blind < patience)) || die 1 "no answer about $name in $blind looks: $(last_error)"
            ;;
        REFUSED) die 1 "$(last_error)" ;;
        STOPPED) die 1 "someone stopped $name: start it again or delete it." ;;
        FAILED | PREEMPTED | TERMINATED | SUSPENDED)
            if [ "$created$state" = yesFAILED ]; then why=$(why_failed); fi
            remove || die 1 "$name cannot be deleted: $(last_error)"
            [ -z "$why" ] || die 1 "the queued resource failed: $why"
            ;;
        esac
        ((SECONDS < until)) || die 1 "giving up: $name is $state after $max_wait s (--max_wait)."
        pause
    done
}

why_failed() {
    ask "${gcloud[@]}" queued-resources describe "${vm[@]}" \
        --format='value(state.failedData.error.message)' || true
    echo "${answer:-no reason given}"
}

# On EXIT, whatever it comes from: deletes what still costs money, or says so.
# shellcheck disable=SC2329
farewell() {
    local code=$?
    trap '' INT TERM
    # A creation that was refused has left nothing; one that was broken off may still come.
    if [ "$exists" = perhaps ] && ((code < 128)); then look; fi
    if [ -n "$exists" ] && [ -n "$delete_on_exit" ]; then remove || true; fi
    if [ -n "$exists" ]; then
        say "$name ${exists/yes/still} exists and costs money. The same command attaches to it" \
            "again; this deletes it: $(quoted "${delete[@]}")"
    fi
    if [ -n "$scratch" ]; then rm -rf "$scratch"; fi
    exit "$code"
}

# --- The training ---------------------------------------------------------------------------------

sum=$("$here/worker.sh" sum "${words[@]}")
worker='bash mrm_jax/launch/worker.sh'
status="$worker status || echo \"mrm_jax_worker \$HOSTNAME 0 idle\""

# Sets $verdict of all workers: finished (every one with exit code 0), running, failed:CODE, again
# (one was stopped or lost), other (another command runs there), or blind; and $progress, a line.
check() {
    verdict=blind progress=''
    ask "${gcloud[@]}" tpu-vm ssh "${vm[@]}" --worker=all --command="$status" || return 0
    local its is line all=' '
    while read -r _ _ its is line; do
        if [ "$its" != "$sum" ]; then
            if [ "$is" = running ]; then is=other; else is=idle; fi
        fi
        all+="$is "
        progress=${progress:-$line}
    done < <(grep '^mrm_jax_worker ' <<<"$answer" | sort -u -k 2,2)
    if [ "$(wc -w <<<"$all")" != "$workers" ]; then return 0; fi
    case $all in
    *' other '*) verdict=other ;;
    *' stopped '* | *' lost '* | *' idle '*) verdict=again ;; # its peers may have failed for it
    *' failed:'*) verdict=$(grep -o 'failed:[0-9]*' <<<"$all" | head -n 1) ;;
    *' running '*) verdict=running ;;
    *) verdict=finished ;;
    esac
}

# Copies this checkout, installs it and starts the training, unless it runs there already. Returns 1
# when the VM is gone.
start() {
    local try=0 why
    check
    while [ "$verdict$dry_run" = blind ]; do
        why=$(last_error)
        look
        if gone; then return 1; fi
        ((++try < tries)) || die 1 "$name is $state and cannot be reached: $why"
        pause
        check
    done
    case $verdict in
    running | finished) say "attached: the training is there already." && return 0 ;;
    other) die 1 "$name runs another command already; wait for it, or take another --name." ;;
    esac
    repeat "${gcloud[@]}" tpu-vm scp "$archive" "$name:mrm_jax.tgz" "${vm[@]:1}" --worker=all &&
        on_all "mkdir -p mrm_jax && tar -xzf mrm_jax.tgz -C mrm_jax && $worker install $(
            quoted "$extras"
        )" &&
        on_all "$worker start $(date +%s)-$restart $(quoted "${words[@]}")"
}

# Polls until there is a verdict: finished, failed:CODE, again, or gone (the VM). A bad one has to
# be seen twice: the processes of a VM that is being preempted fail before its state says why.
watch() {
    local before='' blind=0 told=''
    while true; do
        look
        [ "$state" != REFUSED ] || die 1 "$(last_error)"
        if gone; then verdict=gone && return; fi
        verdict=blind progress=''
        if [ "$state" = READY ]; then check; fi
        if [ "$progress" != "$told" ]; then say "$workers worker(s), $verdict: $progress"; fi
        told=$progress
        case $verdict in
        finished) return ;;
        running) blind=0 ;;
        blind)
            if [ -n "$dry_run" ]; then
                echo '# ... until every worker is seen to have ended with exit code 0'
                verdict=finished && return
            fi
            ((++blind < patience)) || break
            ;;
        *) [ "$verdict" != "$before" ] || return 0 ;;
        esac
        before=$verdict
        pause
    done
    if [ "$state" = UNKNOWN ]; then
        die 1 "no answer about $name in $patience looks: $(last_error)"
    fi
    say "$name is $state but did not answer in $patience looks (--patience): taken for lost."
    remove || die 1 "$name cannot be deleted: $(last_error)"
    verdict=gone
}

fail() {
    run "${gcloud[@]}" tpu-vm ssh "${vm[@]}" --worker=all \
        --command='tail -n 50 mrm_jax_run/log.txt' || true
    die "$1" "the training ended with exit code $1. Its log's end is above and in $log, all of it" \
        "in mrm_jax_run/log.txt on each worker of $name."
}

# --- From nothing to done -------------------------------------------------------------------------

scratch='' archive=mrm_jax.tgz
trap farewell EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -z "$dry_run" ]; then
    scratch=$(mktemp -d)
    archive=$scratch/mrm_jax.tgz
fi
# Once, so that a run that is resumed goes on with the code that it began with.
run tar -czf "$archive" -C "$(dirname "$here")" --exclude=__pycache__ \
    mrm_jax configs launch pyproject.toml README.md LICENSE || die 1 "the checkout was not packed."

for ((restart = 0; restart <= restarts; restart++)); do
    bring_up
    if start; then watch; else verdict=gone; fi
    case $verdict in
    finished)
        note "done: the process of every worker was seen to have ended with exit code 0."
        remove || die 1 "the training is done, but $name could not be deleted: $(last_error)"
        exit 0
        ;;
    failed:*) fail "${verdict#failed:}" ;;
    gone) say "$name is gone ($state): the run goes on from its last checkpoint on a new one." ;;
    again) say "the training on $name was stopped or lost: starting it again." ;;
    other) die 1 "$name runs another command now." ;;
    esac
done
die 1 "giving up after $restarts restarts (--restarts); the same command goes on."
