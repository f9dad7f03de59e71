# The settings in `.env`, for the programs started from here, and what each of them is to see.
# shellcheck shell=bash

# load_settings FILE: read it as data: a value with `$(…)` in it stays text. What the environment already holds wins.
load_settings() {
    local file=$1 line name value
    [[ -f $file ]] || return 0
    while IFS= read -r line || [[ -n $line ]]; do
        line=${line%$'\r'}
        [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] || continue
        name=${BASH_REMATCH[2]} value=$(unquote "${BASH_REMATCH[3]}")
        [[ -n ${!name+set} ]] || export "$name=$value"
    done <"$file"
}

# A value without its quotes, or without the remark and the blanks after it.
unquote() {
    local value=$1
    if [[ $value =~ ^\"([^\"]*)\" || $value =~ ^\'([^\']*)\' ]]; then
        value=${BASH_REMATCH[1]}
    else
        value=${value%%[[:space:]]#*}
        value=${value%"${value##*[![:space:]]}"}
    fi
    printf '%s' "$value"
}

# apart NAME: leave in `apart` the words before a command that keep from it the secrets of others than NAME.
apart() {
    local secrets=()
    [[ $1 == api ]] || secrets+=(JWT_SECRET ADMIN_PASSWORD)
    [[ $1 == worker ]] || secrets+=(ANTHROPIC_API_KEY ANTHROPIC_AUTH_TOKEN CLAUDE_CODE_OAUTH_TOKEN)
    # shellcheck disable=SC2034 # Whoever calls this uses it.
    apart=(env "${secrets[@]/#/--unset=}")
}

# built NAME [PROFILE]: the path of a program of ours.
built() {
    printf '%s/%s/%s' "${CARGO_TARGET_DIR:-$PWD/target}" "${2:-debug}" "$1"
}

# Where a client on this machine finds an API that listens at `HOST`.
reachable_host() {
    case ${HOST:-} in
    '' | 127.0.0.1 | 0.0.0.0 | ::1 | ::) printf localhost ;;
    *) printf '%s' "$HOST" ;;
    esac
}

# The seconds that the settings give a program to stop, and half a minute for the end itself.
stop_grace() {
    printf '%s' $(($(seconds "${DRAIN_DELAY:-0}") + $(seconds "${DRAIN_TIMEOUT:-30}") + 30))
}

seconds() {
    local unit=1
    case $1 in
    *ms) unit=0 ;;
    *m) unit=60 ;;
    *h) unit=3600 ;;
    esac
    printf '%s' $((10#0${1%%[!0-9]*} * unit))
}

has_credential() {
    [[ -n ${ANTHROPIC_API_KEY:-}${ANTHROPIC_AUTH_TOKEN:-}${CLAUDE_CODE_OAUTH_TOKEN:-} ]]
}
