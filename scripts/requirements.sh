# What the machine must have, and how it gets there. Programs of the system come from its own packages,
# the Claude CLI from npm at the version in `claude-cli/package.json`, schemathesis from PyPI as in
# `schemathesis/requirements.txt`, the clients of streams from both as in `../tests/clients`; what needs no root
# goes to `.tools/`.
# shellcheck shell=bash

tools=$PWD/.tools

# Find what is here alone, and what Debian keeps out of a user's `PATH`.
extend_path() {
    local folder
    for folder in /usr/sbin /sbin /usr/lib/postgresql/*/bin; do
        [[ :$PATH: == *:$folder:* || ! -d $folder ]] || PATH+=:$folder
    done
    [[ :$PATH: == *:$tools/bin:* ]] || PATH=$tools/bin:$PATH
}
extend_path

has() {
    command -v "$1" >/dev/null
}

# require_packages COMMAND:PACKAGE…: install the packages whose commands are missing, or unpack them without root.
require_packages() {
    get_packages install_packages "$@"
}

# require_servers COMMAND:PACKAGE…: unpack them in any case. Installed, they would serve this machine's ports for good.
require_servers() {
    get_packages unpack_packages "$@"
}

# get_packages HOW COMMAND:PACKAGE…: get the packages whose commands are missing.
get_packages() {
    local how=$1 entry missing=()
    shift
    for entry in "$@"; do
        has "${entry%%:*}" || missing+=("${entry#*:}")
    done
    ((${#missing[@]})) || return 0
    local by_hand="install with your system's packages: ${missing[*]}"
    has apt-get || fail "not installed: ${missing[*]}, and there is no \`apt-get\`" "$by_hand"
    "$how" "${missing[@]}"
    extend_path
    hash -r
    for entry in "$@"; do
        has "${entry%%:*}" || fail "\`${entry%%:*}\` is still not there with the package \`${entry#*:}\`" "$by_hand"
    done
}

may_install() {
    ((EUID == 0)) || sudo -n true 2>/dev/null
}

install_packages() {
    if may_install; then
        apt_install "$@"
    else
        unpack_packages "$@"
    fi
}

apt_install() {
    local as_root=()
    ((EUID == 0)) || as_root=(sudo -n)
    as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120)
    say "Installing with apt-get: $*"
    logged apt "${as_root[@]}" install --no-install-recommends "$@" && return
    # The list of packages may be missing or old.
    logged apt "${as_root[@]}" update && logged apt "${as_root[@]}" install --no-install-recommends "$@" && return
    tail -n 5 "$tools/apt.log" >&2
    fail "apt-get could not install: $*" "check the network, then try \`apt-get install $*\`"
}

# Without installing: fetch the packages and what they depend on, and unpack them below `.tools/`.
unpack_packages() {
    say "Unpacking into .tools: $*"
    local archives=$tools/apt archive
    mkdir -p "$archives/lists/partial" "$archives/cache/archives/partial"
    if ! download_packages "$archives" "$@" >>"$tools/apt.log" 2>&1; then
        tail -n 5 "$tools/apt.log" >&2
        fail "cannot unpack: $*" "as root: \`apt-get install $*\`"
    fi
    for archive in "$archives"/*.deb; do
        dpkg-deb -x "$archive" "$tools/root"
    done
    rm -rf "$archives"
    expose_unpacked
}

# download_packages FOLDER PACKAGE…: fetch them, with every package they need that is not installed.
download_packages() {
    local archives=$1 needed
    local apt=(apt-get -o "Dir::State::lists=$archives/lists" -o "Dir::Cache=$archives/cache" -o Debug::NoLocking=1)
    shift
    "${apt[@]}" update
    needed=$("${apt[@]}" --simulate --no-install-recommends install "$@" | awk '$1 == "Inst" { print $2 }')
    [[ -n $needed ]] && (cd "$archives" && xargs "${apt[@]}" download <<<"$needed")
}

# Each program gets a starter that shows it the libraries beside it, and nobody else.
expose_unpacked() {
    local program libraries
    libraries=$tools/root/usr/lib/$(uname -m)-linux-gnu
    libraries=$tools/root/usr/lib:$libraries:$libraries/pulseaudio
    mkdir -p "$tools/bin"
    # The browser last: what is in `usr/bin` looks for it where it would be installed.
    for program in "$tools"/root/{bin,usr/bin,usr/sbin,usr/lib/postgresql/*/bin}/* "$tools"/root/usr/lib/chromium/chromium; do
        [[ -x $program ]] || continue
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q "$@"\n' "$libraries" "$program" >"$tools/bin/${program##*/}"
        chmod +x "$tools/bin/${program##*/}"
    done
}

# logged NAME COMMAND…: run it with its words in `.tools/NAME.log`.
logged() {
    local log=$tools/$1.log
    shift
    mkdir -p "$tools"
    step "$@" >>"$log" 2>&1
}

require_rust() {
    has cargo || fail "\`cargo\` is not installed" "install Rust 1.95 or later with rustup"
    # Two of the crates are C inside, and rustc links with `cc`, which is of no use unpacked.
    has cc || ! has apt-get || may_install || fail "\`cc\` is not installed" "as root: \`apt-get install build-essential\`"
    require_packages cc:build-essential
}

require_sandbox() {
    require_packages bwrap:bubblewrap
}

require_services() {
    require_sandbox
    require_servers redis-server:redis-server
}

require_test_services() {
    require_packages ip:iproute2 curl:curl
    require_servers initdb:postgresql nginx:nginx prometheus:prometheus promtool:prometheus
}

# require_chromium: have a browser, and leave its path in `CHROMIUM`.
require_chromium() {
    if [[ -n ${CHROMIUM:-} ]]; then
        has "$CHROMIUM" || fail "\`CHROMIUM\` is \`$CHROMIUM\`, which cannot be run"
        return
    fi
    require_packages chromium:chromium
    CHROMIUM=$(command -v chromium)
    export CHROMIUM
}

# nextest, built here once where the machine has none. `cargo test` runs the same tests, with less to say.
require_nextest() {
    has cargo-nextest && return
    say "Building cargo-nextest into .tools (minutes, once)"
    logged nextest cargo install --locked --debug --root "$tools" --target-dir "$tools/nextest" cargo-nextest@0.9.143 ||
        say "cargo-nextest could not be built (see .tools/nextest.log): \`cargo test\` takes its place"
    rm -rf "$tools/nextest"
}

# require_claude: have the Claude CLI, and leave its path in `CLAUDE_BIN`.
require_claude() {
    if [[ -n ${CLAUDE_BIN:-} ]]; then
        has "$CLAUDE_BIN" || fail "\`CLAUDE_BIN\` is \`$CLAUDE_BIN\`, which cannot be run"
        return
    fi
    local version
    version=$(sed -n 's|.*"@anthropic-ai/claude-code": "\(.*\)".*|\1|p' scripts/claude-cli/package.json)
    CLAUDE_BIN=$tools/claude-$version/claude
    [[ -x $CLAUDE_BIN ]] || install_claude "$version"
    CLAUDE_BIN=$(readlink -f "$CLAUDE_BIN")
    export CLAUDE_BIN
}

# The package is only a starter, written for node, of a native program in a second package: that one
# is what we run. It is in place only once it has told its version.
install_claude() {
    local version=$1 partial=$tools/claude-$1.partial program
    has npm || fail "\`npm\` is not installed, and the Claude CLI comes with it" "\`apt-get install npm\`, or set \`CLAUDE_BIN\`"
    say "Installing the Claude CLI $version with npm into .tools"
    rm -rf "$partial"
    mkdir -p "$partial"
    cp scripts/claude-cli/package*.json "$partial"
    if ! logged npm npm ci --prefix "$partial" --ignore-scripts --include=optional --engine-strict=false --fetch-retries=1 --no-audit --no-fund; then
        tail -n 5 "$tools/npm.log" >&2
        fail "npm could not install the Claude CLI $version" "check the network, or set \`CLAUDE_BIN\` to a copy you have"
    fi
    # npm before 10.4 brings the builds for both C libraries: one of them starts.
    for program in "$partial"/node_modules/@anthropic-ai/claude-code-linux-*/claude; do
        [[ $(version_of "$program" "$partial/home") == "$version "* ]] || continue
        ln -s "${program#"$partial/"}" "$partial/claude"
        rm -rf "${partial:?}/home" "${partial%.partial}"
        mv "$partial" "${partial%.partial}"
        return
    done
    fail "the Claude CLI that npm installed does not start on this machine ($(uname -sm))" "set \`CLAUDE_BIN\` to one that does"
}

# version_of PROGRAM HOME: what it says of itself, seeing nothing of this environment.
version_of() {
    env -i PATH=/usr/bin:/bin HOME="$2" CLAUDE_CONFIG_DIR="$2" \
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_TELEMETRY=1 DISABLE_AUTOUPDATER=1 DISABLE_ERROR_REPORTING=1 \
        "$1" --version 2>/dev/null || true
}

# require_schemathesis: have what tries the contract, and leave its path in `SCHEMATHESIS`.
require_schemathesis() {
    if [[ -n ${SCHEMATHESIS:-} ]]; then
        has "$SCHEMATHESIS" || fail "\`SCHEMATHESIS\` is \`$SCHEMATHESIS\`, which cannot be run"
        return
    fi
    local pins=scripts/schemathesis/requirements.txt version folder
    version=$(sed -n 's|^schemathesis==\([^ ]*\).*|\1|p' "$pins")
    folder=$tools/schemathesis-$version
    # What it was made of is left there last: without it, or with another one, the folder is none.
    cmp -s "$pins" "$folder/requirements.txt" || install_schemathesis "$version" "$folder" "$pins"
    export SCHEMATHESIS=$folder/bin/schemathesis
}

# A venv cannot be moved, so it is made where it stays.
install_schemathesis() {
    local version=$1 folder=$2 pins=$3
    require_venv
    say "Installing schemathesis $version with pip into .tools"
    make_venv "$folder" "$pins" ||
        fail "pip could not install schemathesis $version" "check the network, or set \`SCHEMATHESIS\` to a copy you have"
    [[ $("$folder/bin/schemathesis" --version) == *"$version"* ]] || fail "the schemathesis that pip installed does not start"
    cp "$pins" "$folder/requirements.txt"
}

# make_venv FOLDER PINS: a venv there with what the file pins, and nothing else.
make_venv() {
    rm -rf "$1"
    logged pip python3 -m venv "$1" &&
        logged pip "$1/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps --only-binary :all: \
            --require-hashes --requirement "$2" && return
    tail -n 5 "$tools/pip.log" >&2
    return 1
}

# require_stream_clients: have the clients that streams are tried with, and leave their folder in `STREAM_CLIENTS`.
require_stream_clients() {
    [[ -z ${STREAM_CLIENTS:-} ]] || return 0
    local pins=tests/clients folder=$tools/stream-clients
    # As with schemathesis, what each was made of is left there last.
    cmp -s "$pins/node/package-lock.json" "$folder/node/made-of" || install_node_clients "$pins/node" "$folder/node"
    cmp -s "$pins/python/requirements.txt" "$folder/python/made-of" || install_python_clients "$pins/python" "$folder/python"
    export STREAM_CLIENTS=$folder
}

install_node_clients() {
    local pins=$1 folder=$2
    require_node
    say "Installing the stream clients of node with npm into .tools"
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$pins"/package*.json "$folder"
    if ! logged npm npm ci --prefix "$folder" --ignore-scripts --fetch-retries=1 --no-audit --no-fund; then
        tail -n 5 "$tools/npm.log" >&2
        fail "npm could not install the stream clients" "check the network"
    fi
    cp "$pins/package-lock.json" "$folder/made-of"
}

# What the dashboard is built with needs the newest of its 20.
require_node() {
    local hint="install Node.js 20.19 or later"
    { has node && has npm; } || fail "\`node\` and \`npm\` are not installed" "$hint"
    is_node_recent || fail "the dashboard and the clients of streams need a later Node.js than $(node --version)" "$hint"
}

is_node_recent() {
    local version major minor
    version=$(node --version)
    IFS=. read -r major minor _ <<<"${version#v}"
    ((major > 20 || (major == 20 && minor >= 19)))
}

install_python_clients() {
    local pins=$1 folder=$2
    require_venv
    say "Installing the stream clients of Python with pip into .tools"
    make_venv "$folder" "$pins/requirements.txt" || fail "pip could not install the stream clients" "check the network"
    cp "$pins/requirements.txt" "$folder/made-of"
}

# A Python that can make a venv. Debian keeps what that takes in a package without a program, and apart
# from its Python it is of no use: there is no unpacking it without root.
require_venv() {
    require_packages python3:python3
    local reason="the tests need Python 3.11 or later that can make a venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$reason, and this is $(python3 --version)"
    python3 -c 'import ensurepip' 2>/dev/null && return
    local by_hand="install with your system's packages: python3-venv"
    { has apt-get && may_install; } || fail "$reason" "$by_hand"
    apt_install python3-venv
    python3 -c 'import ensurepip' 2>/dev/null || fail "$reason, even with \`python3-venv\`" "$by_hand"
}
