# The processes a script started, and their end. Each has a process group of its own, so that a Ctrl-C
# at the terminal reaches the script alone and it can stop the others in order; and each is told to
# end should the script be killed.
# shellcheck shell=bash

declare -A process_ids=()

# launch NAME COMMAND…: start COMMAND, known as NAME from here on.
launch() {
    local name=$1
    shift
    # Job control, for the moment of the fork, is what gives the child its own group.
    set -m
    setpriv --pdeathsig TERM -- "$@" </dev/null 9>&- &
    set +m
    process_ids[$name]=$!
}

is_running() {
    kill -0 "${process_ids[$1]}" 2>/dev/null
}

# step COMMAND…: run COMMAND to its end. Run the plain way, bash would hold signals back until then.
step() {
    local status=0
    launch step "$@"
    wait "${process_ids[step]}" || status=$?
    unset 'process_ids[step]'
    return "$status"
}

# stop NAME GRACE [SIGNAL]: ask it to end, and ask again when `hurried` is set by a trap; after GRACE
# seconds, or 5 when hurried, end it and all of its group.
stop() {
    local name=$1 deadline=$((SECONDS + $2)) signal=${3:-TERM}
    local id=${process_ids[$name]:-}
    [[ -n $id ]] || return 0
    # A step has helpers of its own (compilers), and nobody else who would stop them.
    local whom=$id
    [[ $name != step ]] || whom=-$id
    kill -"$signal" -- "$whom" 2>/dev/null || true
    while is_running "$name"; do
        if [[ -n ${hurried:-} ]]; then
            hurried='' deadline=$((SECONDS + 5))
            kill -"$signal" -- "$whom" 2>/dev/null || true
        elif ((SECONDS >= deadline)); then
            say "Ending $name by force"
            kill -KILL -- "-$id" 2>/dev/null || true
        fi
        # A second Ctrl-C reaches the sleep as well.
        sleep 0.1 || true
    done
    wait "$id" 2>/dev/null || true
    unset 'process_ids[$name]'
}

# await SECONDS WHAT COMMAND…: poll COMMAND until it succeeds, or fail when the time is up or a process
# has ended.
await() {
    local deadline=$((SECONDS + $1)) what=$2 name
    shift 2
    until "$@"; do
        for name in "${!process_ids[@]}"; do
            is_running "$name" && continue
            wait "${process_ids[$name]}" && report_end "$name" 0
            report_end "$name" $?
        done
        ((SECONDS < deadline)) || fail "$what took too long" "look at the logs in ${logs:-the terminal}"
        sleep 0.1
    done
}

# Wait until any process has ended, which none should without being asked.
await_an_end() {
    local ended status=0 name
    wait -n -p ended "${process_ids[@]}" || status=$?
    for name in "${!process_ids[@]}"; do
        [[ ${process_ids[$name]} != "$ended" ]] || report_end "$name" "$status"
    done
}

# report_end NAME STATUS: a process ended without being asked to. Say so with its last words, and end.
report_end() {
    local name=$1 status=$2
    unset 'process_ids[$name]'
    if [[ -n ${logs:-} && -s $logs/$name.log ]]; then
        tail -n 15 "$logs/$name.log" >&2
        fail "$name ended (status $status)" "its whole log is $logs/$name.log"
    fi
    fail "$name ended (status $status)"
}

# is_taken HOST PORT: somebody listens there.
is_taken() {
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

# A port of the loopback that is free at this moment.
free_port() {
    local port
    while port=$((RANDOM % 20000 + 20000)); do
        is_taken 127.0.0.1 "$port" || break
    done
    printf '%s' "$port"
}

# answers HOST PORT PATH: an HTTP GET of PATH is answered with 200.
answers() {
    [[ $(status_of "$@") == 200 ]]
}

# status_of HOST PORT PATH [HEADER]: what an HTTP GET of PATH is answered with. Spoken by this shell, as a bare
# machine may have no client.
status_of() {
    local status=''
    {
        exec 3<>"/dev/tcp/$1/$2" || return 1
        printf '%s\r\n' "GET $3 HTTP/1.1" 'Host: localhost' 'Connection: close' ${4:+"$4"} '' >&3
        read -r -t 5 _ status _ <&3
        exec 3>&-
    } 2>/dev/null
    printf '%s' "$status"
}
