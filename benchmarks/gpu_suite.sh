#!/usr/bin/env bash
# Builds, tests and measures all GPU code in one call of at most nine minutes, and writes logs and JSON.
#
#     bash benchmarks/gpu_suite.sh FOLDER [BUNDLE]
#
# Needs nvcc, torch with CUDA, and the packages of pyproject.toml; nothing is downloaded. BUNDLE is a student for the
# measurements of the whole engine, which are left out without one.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?usage: gpu_suite.sh FOLDER [BUNDLE]}")
bundle=${2:-}
mkdir -p "$out"
: >"$out/steps.jsonl"
failed=0

# step NAME SECONDS COMMAND...: runs it within its time, keeps its output, notes how it ended.
step() {
  local name=$1 limit=$2 begin=$SECONDS rc
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1
  rc=$?
  ((rc)) && failed=1
  printf '{"step": "%s", "exit": %d, "seconds": %d}\n' "$name" "$rc" $((SECONDS - begin)) | tee -a "$out/steps.jsonl"
  ((rc)) && tail -n 15 "$out/$name.log"
  return 0
}

export QDENGINE_CUDA=ON PYTHONUNBUFFERED=1
QDENGINE_CUDA_ARCHS=$(python3 -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
export QDENGINE_CUDA_ARCHS
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/device.txt"

step build 150 python3 -m pip install -q --no-build-isolation --no-deps --no-index .
step doctor 30 python3 -m qdengine doctor --json
step tests 150 python3 -m pytest -q -m gpu tests
step triton 60 python3 -m pytest -q tests/ops/test_ops.py -k triton
if command -v compute-sanitizer >/dev/null; then
  step memcheck 60 compute-sanitizer --error-exitcode 9 python3 -m pytest -q -x tests/ops/test_ops.py -m gpu \
    -k "rms_norm or rope_append or paged_attention or ngram or verify"
fi
step ops 90 python3 -m pytest -q benchmarks/bench_ops.py --benchmark-json "$out/ops.json" --benchmark-max-time 0.2 \
  --benchmark-min-rounds 3 -k "cuda or triton"
step steps 60 python3 -m pytest -q benchmarks/bench_step.py --benchmark-json "$out/step.json" -k "cuda or triton"
if [[ -n $bundle && -f benchmarks/data/rows.jsonl.gz ]]; then
  for precision in bfloat16 float32; do
    step "engine-$precision" 60 python3 -m qdengine bench --model "$bundle" --data benchmarks/data/rows.jsonl.gz --rows 256 \
      --latency-rows 32 --precision "$precision" --json "$out/engine-$precision.json"
  done
fi
exit $failed
