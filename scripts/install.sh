#!/usr/bin/env bash
# Installs the appliance on this machine (Debian, Raspberry Pi OS): builds the package here and installs it with apt,
# so that upgrading and removing are apt's as well. See README.md.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A status that has not changed for so long will not change by itself.
STILL_S=120

[ "$(id -u)" -eq 0 ] || fail "installing needs root; run: sudo scripts/install.sh"
command -v apt-get >/dev/null || fail "this is not a Debian system; see README.md for running it with scripts/run"
case $(dpkg --print-architecture) in
amd64 | arm64) ;;
*) fail "hotpind needs a 64-bit system (amd64 or arm64), and this one is $(dpkg --print-architecture); on a Raspberry Pi \
install the 64-bit Raspberry Pi OS" ;;
esac
[ -d /run/systemd/system ] || fail "this machine was not started by systemd; use scripts/run"

# Installed by root itself: the build, as another user, would have to ask for sudo's password.
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
trap interrupted INT TERM HUP
need_packages "${BUILD_PACKAGES[@]}"
trap - INT TERM HUP

# Uncompressed: it is unpacked on this very machine.
foreign=$(as_owner find "$TOP/.venv" "$TOP/.cache" "$TOP/dist" ! -user "$(as_owner id -un)" -print -quit 2>/dev/null) || true
[ -z "$foreign" ] || fail "$foreign belongs to another user; run: sudo chown -R $(as_owner id -un): $TOP"
as_owner "$TOP/scripts/build-deb.sh" --fast --output "$TOP/dist"
package=$(find "$TOP/dist" -maxdepth 1 -name "hotpind_*_$(dpkg --print-architecture).deb" -printf '%T@ %p\n' |
    sort -n | tail -n 1 | cut -d ' ' -f 2-)
# Reinstalled when the version is the same: the clone may have changed without it.
DEBIAN_FRONTEND=noninteractive apt-get install -y --reinstall --allow-downgrades -o DPkg::Options::=--force-confold "$package"

systemctl --quiet is-enabled hotpind || {
    say "the service is disabled; start it with: sudo systemctl enable --now hotpind"
    exit 0
}
say "waiting for the appliance to answer (the first start fetches the models)"
systemctl start --no-block hotpind
# It starts for as long as something stands in its way; what that is, it says in its status. Fetching models changes the
# status all the time, so one that stays the same is something for a person.
shown="" since=$SECONDS
until systemctl --quiet is-active hotpind; do
    if systemctl --quiet is-failed hotpind; then
        systemctl --no-pager --lines 20 status hotpind || true
        fail "the appliance did not start; what it said is above"
    fi
    text=$(systemctl show --property StatusText --value hotpind)
    if [ -n "$text" ] && [ "$text" != "$shown" ]; then
        shown=$text
        since=$SECONDS
        say "  $shown"
    fi
    [ $((SECONDS - since)) -lt "$STILL_S" ] ||
        fail "the appliance has not started yet: ${shown:-it says nothing}. It goes on trying; see: systemctl status hotpind"
    sleep 1
done
systemctl --no-pager --lines 0 status hotpind
say "try it: sudo hotpinctl ask --text 'What is the capital of France?' --out answer.wav"
