# A PostgreSQL of one's own, that forgets everything with its end.
# shellcheck shell=bash

# What it is started with beside the usual.
postgres_options=()

# Start one that keeps its data in `scratch`, known as `postgres`, and leave its address in
# `TEST_POSTGRES_URL`.
start_postgres() {
    # shellcheck disable=SC2154 # `scratch` is set by whoever calls this.
    local home=$scratch/pg port password user=()
    port=$(free_port)
    password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' ')
    mkdir "$home"
    printf '%s' "$password" >"$home/password"
    # PostgreSQL refuses to run as root: to itself it is somebody else, who can still go where root alone may.
    ((EUID != 0)) || user+=(unshare --user --map-user nobody --map-group nogroup setpriv --pdeathsig INT)
    # md5: the tests log in thousands of times, and the hashing of scram is slow in a debug build.
    step "${user[@]}" initdb -D "$home/data" --username postgres --pwfile "$home/password" --auth md5 --encoding UTF8 --no-locale \
        --no-sync >"$scratch/initdb.log" 2>&1 || fail "initdb failed: $(tail -n 3 "$scratch/initdb.log")"
    launch postgres "${user[@]}" postgres -D "$home/data" -k "$home" -h 127.0.0.1 -p "$port" \
        -c max_connections=400 -c fsync=off -c full_page_writes=off -c synchronous_commit=off \
        "${postgres_options[@]}" >"$scratch/postgres.log" 2>&1
    await 30 "starting postgres" is_taken 127.0.0.1 "$port"
    export TEST_POSTGRES_URL=postgresql://postgres:$password@127.0.0.1:$port/postgres
}
