#!/usr/bin/env bash
# The CPU ops under AddressSanitizer and UndefinedBehaviorSanitizer: tests/sanitize.sh PYTHON [pytest's arguments].
# PYTHON has qdengine's test extra; the sanitized package is built for it into a temporary folder, with GCC.
set -euo pipefail

python=$(command -v "${1:?usage: tests/sanitize.sh PYTHON [pytest\'s arguments]}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") # not resolved: a venv's link is the venv
shift
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export CXX=${CXX:-g++}
preload=
for library in libasan.so libubsan.so libstdc++.so; do # libstdc++: for the sanitizer to find what throws
  path=$("$CXX" -print-file-name="$library")
  [[ $path == /* ]] || { echo "$CXX has no $library: install GCC's sanitizers, or set CXX to a GCC" >&2; exit 1; }
  preload+="${preload:+ }$path"
done

"$python" -m pip --disable-pip-version-check wheel . -q --no-deps -w "$work" -C build-dir="$work/build" \
  -C cmake.define.QDENGINE_SANITIZE=ON -C cmake.define.QDENGINE_CUDA=OFF -C install.strip=false
"$python" -m pip --disable-pip-version-check install -q --no-deps --no-index --target "$work/site" "$work"/*.whl

export PYTHONPATH=$work/site LD_PRELOAD=$preload
# AddressSanitizer's reports go to files, for a test that starts a process holds its standard error back.
export ASAN_OPTIONS=detect_leaks=0:log_path=$work/report UBSAN_OPTIONS=print_stacktrace=1
"$python" - "$work" <<'CHECK'
import sys
import torch
from qdengine import _native
assert _native.__file__.startswith(sys.argv[1]), f"not the sanitized build: {_native.__file__}"
assert b"__asan_report_load" in open(_native.__file__, "rb").read(), "not sanitized"
CHECK
run=("$python" -m pytest -q -p no:cacheprovider --capture=sys tests/ops/test_ops.py tests/ops/test_pool.py tests/model/test_linear.py tests/model/test_layers.py)
if "${run[@]}" -k "not triton and not cuda and not reference" "$@"; then
  exit 0
fi
unset LD_PRELOAD
cat "$work"/report.* >&2 2>/dev/null || true
exit 1
