#!/bin/sh
# Installs the Debian packages that `make test-container` needs, where any is missing.
set -eu
missing=""
for package in podman runc catatonit mmdebstrap charliecloud-runtime; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
apt-get update -qq
# shellcheck disable=SC2086 # words
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
