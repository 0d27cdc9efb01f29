#!/bin/sh
# Last step of the image: folders that any user can write to, the commit for the records, and two checks.
#   finish.sh VARIANT VERSION COMMIT
set -eu
variant=$1 version=$2 commit=$3

mkdir -p /work /cache
chmod 1777 /work /cache
installed=$(python -c 'from importlib.metadata import version; print(version("tttlrm-suite"))')
if [ "$version" != unknown ] && [ "$version" != "$installed" ]; then
  echo "error: the image is to be labelled $version, but the package in it is $installed" >&2
  exit 1
fi
package=$(python -c 'from importlib.util import find_spec; print(find_spec("bench").submodule_search_locations[0])')
if [ "$commit" != unknown ]; then printf '%s\n' "$commit" >"$package/commit.txt"; fi
if [ "$variant" = cuda ]; then
  if command -v nvcc >/dev/null; then echo "error: nvcc is in the image" >&2; exit 1; fi
  python -c 'from gsplat import csrc'
fi
