#!/bin/bash
# Installs Debian's (or Ubuntu's) Chromium for the tests of this folder; playwright itself downloads no browser.
#
#   tests/browser/install_chromium.sh                    # as root; once
#   CHROMIUM=/path/to/chrome make test                   # or take one that is there already
set -eu

if command -v "${CHROMIUM:-chromium}" >/dev/null; then
    echo "there already: $(command -v "${CHROMIUM:-chromium}")"
    exit
fi
command -v apt-get >/dev/null || { echo "no apt-get here: install Chromium your way and set CHROMIUM to its path" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "not root: sudo $0, or set CHROMIUM to the path of a Chromium" >&2; exit 1; }
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium
command -v chromium
