# Words to the person at the terminal.
# shellcheck shell=bash

say() {
    printf '%s\n' "$*"
}

# fail WHAT [HINT]: say what is wrong and what helps, then end.
fail() {
    printf 'error: %s\n' "$1" >&2
    [[ -z ${2:-} ]] || printf 'hint: %s\n' "$2" >&2
    exit 1
}
