# The dashboard: what it needs of npm, and its build, which the api serves.
# shellcheck shell=bash

dashboard=$PWD/api/dashboard

# require_dashboard: have it built from what is here.
require_dashboard() {
    local sources
    require_dashboard_packages
    sources=$(dashboard_sources)
    # What it was built of is left there last: without it, or with another one, it is not built.
    [[ ! -f $dashboard/dist/index.html || $(cat "$dashboard/node_modules/built-of" 2>/dev/null) != "$sources" ]] || return 0
    say "Building the dashboard"
    if ! logged dashboard npm run --prefix "$dashboard" build; then
        tail -n 20 .tools/dashboard.log >&2
        fail "the dashboard could not be built" "\`scripts/dashboard check\` may tell more"
    fi
    printf '%s' "$sources" >"$dashboard/node_modules/built-of"
}

# prefer_dashboard: the same, where that can be. The API is complete without it.
prefer_dashboard() {
    if { has node && has npm && is_node_recent; }; then
        require_dashboard
    else
        say "Going on without the dashboard: building it needs Node.js 20.19 or later, and npm."
    fi
}

require_dashboard_packages() {
    require_node
    cmp -s "$dashboard/package-lock.json" "$dashboard/node_modules/made-of" && return
    say "Installing what the dashboard is made of with npm"
    if ! logged npm npm ci --prefix "$dashboard" --ignore-scripts --fetch-retries=1 --no-audit --no-fund; then
        tail -n 5 .tools/npm.log >&2
        fail "npm could not install what the dashboard is made of" "check the network"
    fi
    cp "$dashboard/package-lock.json" "$dashboard/node_modules/made-of"
}

# One word for all that the build is made of.
dashboard_sources() {
    local made=(node_modules dist schema.d.ts e2e e2e-output) names=() name
    for name in "${made[@]}"; do
        names+=(-name "$name" -prune -o)
    done
    find openapi.yaml api/dashboard "${names[@]}" -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
}
