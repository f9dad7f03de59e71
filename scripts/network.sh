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
