#!/usr/bin/env bash
# Installs OPA's own engine, which decisions are compared with, into .tools/opa. Its wheel declares a later Python than it
# needs, so uv.lock can't hold it; it is pinned here by its hash instead.
set -euo pipefail
cd "$(dirname "$0")/../.."

target=.tools/opa
version=0.4.4
# The wheel for x86-64; on another machine there is none, and the comparison is skipped.
hash=d411c901e14b8c7c3023e23e4a944f4cf429c1d31baf80e959e57d11efbfd24a

[ -f "$target/.version" ] && [ "$(cat "$target/.version")" = "$version" ] && exit 0
if [ "$(uname -sm)" != 'Linux x86_64' ]; then
  echo 'install_opa: there is no wheel for this machine; decisions are not compared with OPA here' >&2
  exit 0
fi

python="${PYTHON:-}"
for candidate in "$python" .tools/uv-*/bin/python python3; do
  if [ -n "$candidate" ] && "$candidate" -m pip --version >/dev/null 2>&1; then
    python=$candidate
    break
  fi
  python=''
done
if [ -z "$python" ]; then
  echo 'install_opa: no Python with pip was found; name one: PYTHON=/path/to/python3' >&2
  exit 1
fi

requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
echo "opa-golib-python-bindings==$version --hash=sha256:$hash" >"$requirements"
echo "Installing OPA's engine into $target …" >&2
rm -rf "$target"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
  --ignore-requires-python --target "$target" -r "$requirements"
echo "$version" >"$target/.version"
