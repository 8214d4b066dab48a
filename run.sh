#!/usr/bin/env bash
# Sets up .venv on a fresh Debian or Ubuntu, or on any Linux with Python 3.11 and its venv module. Then
#
#   bash run.sh [FLAGS]         trains: python train.py FLAGS
#   bash run.sh test [FLAGS]    lints, and runs the tests: pytest FLAGS
set -euo pipefail
cd "$(dirname "$0")"

usage() {
    sed -n 's/^# \{0,3\}//; 2,5p' run.sh
    echo "All flags of the training: .venv/bin/python train.py --help"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

apt_install() {
    as_root apt-get update -q && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q "$@"
}

set_up() {
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo "Python's venv module is missing: installing the package python3-venv"
        apt_install python3-venv
    fi
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Python 3.11 or newer is needed; python3 is $(python3 --version)" >&2
        exit 1
    fi
    # A .venv whose making was interrupted has no pip
    [ -x .venv/bin/pip ] || python3 -m venv --clear .venv
    .venv/bin/pip install -q -r requirements.txt
}

has_chromium() {
    command -v chromium || command -v chromium-browser || command -v google-chrome
} >/dev/null

install_chromium() { # where apt can, and nobody has to type a password
    command -v apt-get >/dev/null || return
    [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null || return
    [ "$(. /etc/os-release && echo "$ID")" = debian ] || return # Ubuntu's package only points to a snap
    echo "installing Chromium, for the tests of the page"
    apt_install chromium >/dev/null
}

run_tests() {
    has_chromium || install_chromium || true
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    local code=0
    .venv/bin/pytest -q "$@" || code=$?
    if ! has_chromium; then
        echo "The tests of the page were left out: they need Chromium, which this machine does not have."
        echo "To get it, as root: apt-get install chromium (on Ubuntu: snap install chromium)"
    fi
    return $code
}

case "${1:-}" in
    --help)
        usage
        ;;
    "" | --*)
        set_up
        .venv/bin/python train.py "$@"
        ;;
    test)
        set_up
        run_tests "${@:2}"
        ;;
    *)
        usage
        exit 2
        ;;
esac
