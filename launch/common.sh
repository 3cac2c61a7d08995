# shellcheck shell=bash
# What the scripts of this folder share; sourced, never run.

if ((BASH_VERSINFO[0] < 5)); then
    echo "bash is $BASH_VERSION here; the launch scripts need 5.0 or newer." >&2
    exit 2
fi

say() { printf '%s: %s\n' "$(basename "${BASH_SOURCE[-1]}")" "$*" >&2; }

# die CODE TEXT: says why in one line, and ends with the exit code.
die() {
    local code=$1
    shift
    say "$@"
    exit "$code"
}

# The comment at the top of the script, as its help.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "${BASH_SOURCE[-1]}"; }

# The words as one line that a shell reads as the same words.
quoted() {
    local word line=()
    for word; do
        if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then word=${word@Q}; fi
        line+=("$word")
    done
    printf '%s\n' "${line[*]}"
}

# check_value OPTION [VALUE]: whether there is one. The name of another option is none (of
# --create_flag it is), and a value stays on one line, as do commands and logs.
check_value() {
    [ $# -gt 1 ] || die 2 "$1 needs a value."
    case $1,$2 in
    *,*[[:cntrl:]]*) die 2 "$1 is ${2@Q}; it may hold no control characters." ;;
    --create_flag,*) ;;
    *,--*) die 2 "$1 needs a value; $2 is an option." ;;
    esac
}

# check_numbers OPTION...: whole numbers, in variables of that name. Of another text bash would run
# what stands in its brackets.
check_numbers() {
    local option
    for option; do
        [[ ${!option} =~ ^(0|[1-9][0-9]{0,8})$ ]] ||
            die 2 "--$option is ${!option@Q}; it has to be a whole number."
    done
}

# Whether a training's log says that a signal stopped it before its last step: it saves then, and
# its exit code is 0, as at the end.
was_stopped() { grep -q 'the same command goes on from there' "$1"; }
