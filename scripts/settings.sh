# The settings in `.env`, for the programs started from here.
# shellcheck shell=bash

# Read `.env` as data: a value with `$(…)` in it stays text. What the environment already holds wins.
load_dotenv() {
    [[ -f .env ]] || return 0
    local line name value
    while IFS= read -r line || [[ -n $line ]]; do
        line=${line%$'\r'}
        [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] || continue
        name=${BASH_REMATCH[2]} value=$(unquote "${BASH_REMATCH[3]}")
        [[ -n ${!name+set} ]] || export "$name=$value"
    done <.env
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

# The seconds that `DRAIN_TIMEOUT` gives, and some for the end itself.
stop_grace() {
    local digits=${DRAIN_TIMEOUT:-30} unit=1
    case $digits in
    *ms) unit=0 ;;
    *m) unit=60 ;;
    *h) unit=3600 ;;
    esac
    printf '%s' $((10#0${digits%%[!0-9]*} * unit + 15))
}

has_credential() {
    [[ -n ${ANTHROPIC_API_KEY:-}${ANTHROPIC_AUTH_TOKEN:-}${CLAUDE_CODE_OAUTH_TOKEN:-} ]]
}
