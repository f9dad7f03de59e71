# A network of one's own: a loopback and nothing else.
# shellcheck shell=bash

# Leave in `alone` the words before a command that give it a network of its own, if that works here.
can_be_alone() {
    local namespaces=(--net) rights=()
    # Who is not root gets the right to set up a loopback, and drops it after: bwrap refuses to run with it.
    ((EUID == 0)) || namespaces=(--user --map-current-user --net --keep-caps) rights=(--inh-caps=-all --ambient-caps=-all)
    alone=(unshare "${namespaces[@]}" sh -c 'ip link set lo up && exec "$@"' sh setpriv "${rights[@]}" --pdeathsig TERM)
    "${alone[@]}" true 2>/dev/null
}

# run_alone PREPARE WORK ARGUMENT…: prepare, then work in a network of its own where that can be. There, this script
# begins again, and is told so by `--alone`. At its end it calls its own `stop_all`.
run_alone() {
    local prepare=$1 work=$2
    shift 2
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    trap stop_all EXIT
    if [[ ${1:-} == --alone ]]; then
        "$work" "${@:2}"
        return
    fi
    "$prepare" "$@"
    if can_be_alone; then
        exec "${alone[@]}" "$PWD/scripts/${0##*/}" --alone "$@"
    fi
    say "No network namespace to be had here: this runs in the machine's network."
    "$work" "$@"
}
