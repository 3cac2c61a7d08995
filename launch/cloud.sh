# shellcheck shell=bash
# One TPU VM: what gcloud is asked, and what its answers mean. Sourced by tpu_vm.sh after its
# options.
# shellcheck disable=SC2034,SC2154 # variables from and for tpu_vm.sh

gcloud=(gcloud --quiet compute tpus)
vm=("$name" --zone="$zone" ${project:+--project="$project"})
if [ -n "$queued" ]; then
    delete=("${gcloud[@]}" queued-resources delete "${vm[@]}" --force)
else
    delete=("${gcloud[@]}" tpu-vm delete "${vm[@]}")
fi
exists='' # yes, perhaps, or empty: whether there is something that may cost money
answer='' errors=''

# ask COMMAND: its standard output in $answer, its errors in $errors, both in the log.
ask() {
    answer='' errors=''
    if [ -n "$dry_run" ]; then
        quoted "$@"
        return
    fi
    local code=0
    answer=$("$@" 2>"$scratch/errors") || code=$?
    errors=$(<"$scratch/errors")
    printf '%(%F %T)T %s\n%s\n' -1 "$(quoted "$@")" "$answer$errors" >>"$log"
    return "$code"
}

# As ask, and shows the command and what it said.
run() {
    local code=0
    note "$(quoted "$@")"
    ask "$@" || code=$?
    printf '%s' "${answer:+$answer$'\n'}" "${errors:+$errors$'\n'}" >&2
    return "$code"
}

note() { [ -n "$dry_run" ] || say "$@"; }

# What the errors mean, in a word.
meaning() {
    case ${errors,,} in
    *not_found* | *'not found'* | *'error 404'* | *'code=404'*) echo missing ;;
    *already_exists* | *'already exists'*) echo exists ;;
    *'quota limit'* | *quota*exceeded* | *quota*exhausted* | *insufficient*quota*) echo quota ;;
    *'no more capacity'* | *insufficient*capacity* | *stockout* | *resource_exhausted*) echo full ;;
    *permission* | *unauthenticated* | *'auth login'* | *invalid*) echo refused ;;
    *) echo unclear ;;
    esac
}

last_error() { tail -n 1 <<<"${errors:-no reason given}"; }

# Sets $state: the cloud's word for the VM (for a queued resource until it is ACTIVE), MISSING,
# REFUSED (no permission, a wrong zone), or UNKNOWN when there is no answer; and $workers, how many
# hosts it has.
look() {
    state=ACTIVE workers=0
    if [ -n "$queued" ]; then
        describe queued-resources 'value(state.state)'
    fi
    if [ "$state" = ACTIVE ]; then
        describe tpu-vm 'value(state,networkEndpoints.len())'
        # Of the queued resource an empty shell may be left.
        if [ "$queued$state" = yesMISSING ]; then state=TERMINATED; fi
    fi
    case $state in
    MISSING) exists='' ;;
    UNKNOWN | REFUSED) ;;
    *) exists=yes ;;
    esac
}

describe() {
    if ask "${gcloud[@]}" "$1" describe "${vm[@]}" --format="$2"; then
        read -r state workers <<<"$answer" || true
    else
        case $(meaning) in
        missing) state=MISSING ;;
        refused) state=REFUSED ;;
        *) state=UNKNOWN ;;
        esac
    fi
    if [ -n "$dry_run" ]; then # as it would go on
        state=MISSING
        if [ -n "$exists" ]; then state=READY; fi
        if [ "$exists$1" = yesqueued-resources ]; then state=ACTIVE; fi
    fi
}

gone() {
    case $state in
    MISSING | PREEMPTED | TERMINATED | STOP* | DELETING | SUSPEND* | FAILED | HID*) return 0 ;;
    *) return 1 ;;
    esac
}

# In the background, so that a signal is answered at once.
pause() {
    [ -z "$dry_run" ] || return 0
    sleep "$poll" &
    wait $!
}

# repeat COMMAND: until it succeeds, --tries times; returns 1 when the VM is gone.
repeat() {
    local try why
    for ((try = 1; try <= tries; try++)); do
        if run "$@"; then return 0; fi
        why=$(last_error)
        look
        if gone; then return 1; fi
        say "try $try of $tries did not succeed: $why"
        pause
    done
    die 1 "giving up on $name after $tries tries; all that gcloud said is in $log."
}

# on_all COMMAND: on every worker.
on_all() { repeat "${gcloud[@]}" tpu-vm ssh "${vm[@]}" --worker=all --command="$1"; }

create() {
    local command=("${gcloud[@]}")
    if [ -n "$queued" ]; then
        command+=(queued-resources create "${vm[@]}" --node-id="$name"
            --runtime-version="$version" --valid-until-duration="${max_wait}s")
    else
        command+=(tpu-vm create "${vm[@]}" --version="$version")
    fi
    exists=perhaps
    command+=(--accelerator-type="$accelerator" ${spot:+--spot} "${create_flags[@]}")
    if run "${command[@]}"; then
        exists=yes
        return
    fi
    case $(meaning) in
    exists) ;;
    quota) die 1 "no quota for $accelerator in $zone: $(last_error)" ;;
    refused) die 1 "$(last_error)" ;;
    full) say "no room for $accelerator in $zone now; --queued waits in line for it." ;;
    *)
        say "not created: $(last_error)"
        ((++failures < tries)) || die 1 "giving up: $name could not be created in $tries tries."
        ;;
    esac
}

# Deletes the VM; returns 1 when it is still there.
remove() {
    local try
    for ((try = 1; try <= tries; try++)); do
        if run "${delete[@]}" || [ "$(meaning)" = missing ]; then
            exists=''
            return 0
        fi
        pause
    done
    return 1
}
