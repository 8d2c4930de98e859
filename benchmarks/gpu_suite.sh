#!/usr/bin/env bash
# Builds, tests and measures all GPU code in one call of at most nine minutes; all steps together take longer, so name some.
#
#     bash benchmarks/gpu_suite.sh [--steps NAME,NAME] OUT [BUNDLE DATA]
#     bash benchmarks/gpu_suite.sh --list                    the steps, and the most seconds that each may take
#     bash benchmarks/gpu_suite.sh --dry OUT [BUNDLE DATA]   on the CPU at tiny sizes: finds what breaks, measures nothing
#
# Writes OUT/gpu.json (the machine, how each step ended, what it measured: gpu_json.py) and OUT/suite.log. A gpu.json that is
# there is added to; a step for which no time is left says so, and can be named in another call. Needs nvcc, torch with
# CUDA, the package's requirements and those of its build, and transformers to compare with; no network. BUNDLE is a student
# and DATA its rows (webqa_en.test.jsonl.gz); without them the steps of the whole engine are left out. Its weights may come in
# parts, BUNDLE/model.safetensors.part-*, which are joined.
set -uo pipefail
cd "$(dirname "$0")/.."
wanted=all mode=run
while [[ ${1:-} == --* ]]; do
  case $1 in
    --list) mode=list ;;
    --dry) mode=dry ;;
    --steps) wanted=${2:?--steps NAME,NAME} && shift ;;
    *) echo "unknown option $1" >&2 && exit 2 ;;
  esac
  shift
done
out=${1:-} bundle=${2:-} data=${3:-} python=${PYTHON:-python3} total=540 failed=0
if [[ $mode != list ]]; then
  [[ -n $out ]] || { echo "usage: gpu_suite.sh [--list] [--dry] [--steps NAME,NAME] OUT [BUNDLE DATA]" >&2; exit 2; }
  out=$(realpath -m "$out")
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$out" || exit 1
  : >"$out/suite.log"
fi

# step NAME SECONDS COMMAND...: runs it within its time and what is left of all, keeps its output and notes how it ended. What
# it writes to $work/NAME.json is its result.
step() {
  local name=$1 limit=$2 begin=$SECONDS rc
  shift 2
  [[ $wanted == all || ,$wanted, == *,$name,* ]] || return 0
  if [[ $mode == list ]]; then
    printf '%-18s%4d\n' "$name" "$limit"
    return 0
  fi
  ((limit > total - SECONDS)) && limit=$((total - SECONDS))
  if ((limit < 5)); then
    echo "no time was left" >"$work/log" && rc=124
  else
    timeout -k 5 "$limit" "$@" >"$work/log" 2>&1
    rc=$?
  fi
  ((rc)) && failed=1
  printf '%-18sexit %d, %d s\n' "$name" "$rc" $((SECONDS - begin)) | tee -a "$out/suite.log"
  tail -c 1000000 "$work/log" >>"$out/suite.log"
  ((rc)) && tail -n 15 "$work/log"
  "$python" benchmarks/gpu_json.py add "$out/gpu.json" "$name" "$rc" $((SECONDS - begin)) "$work/log" "$work/$name.json"
}

# measure NAME SECONDS SCRIPT...: a step of benchmarks/ that has --json.
measure() {
  local name=$1 limit=$2 script=$3
  shift 3
  step "$name" "$limit" "$python" "benchmarks/$script.py" --json "$work/$name.json" "$@"
}

on_gpu() { [[ $mode != dry ]]; } # list and run name the same steps
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 QDENGINE_CUDA=ON
work=${work:-}
test_ops=(-m pytest -q -x -p no:cacheprovider tests/ops/test_ops.py)
sanitizer=(compute-sanitizer --kernel-name kns=qdengine --error-exitcode 9)
engine=(--device cuda --engine max_sequences=256 --engine max_step_tokens=8192 --engine kv_bytes=17179869184)
ops=(--backend cuda --backend triton --seconds 0.1) steps=("${ops[@]}") attention=("${ops[@]}")
bench=(--rows 1024 --latency-rows 64 --load-seconds 5 --load 0.25 --load 0.5 --load 0.7 --load 0.8 --load 0.9 --load 1.0)
compare=(--rows 512 --slice 512 --latency-rows 16) lossless=(--device cuda --rows 500) length=()
if ! on_gpu; then
  engine=(--device cpu) tiny=(--backend cpu --seconds 0.001)
  ops=("${tiny[@]}" --size token) steps=("${tiny[@]}" --step 1x2 --precision bfloat16)
  attention=("${tiny[@]}" --documents 2 --batch 2 --case "2 x 620" --without flex)
  bench=(--rows 6 --latency-rows 2 --max-new-tokens 8 --load 0.5 --load-seconds 0.5)
  compare=(--rows 4 --slice 4 --latency-rows 1 --max-new-tokens 8 --peer transformers_plain --peer transformers_batch8)
  lossless=(--rows 4 --max-new-tokens 8) length=(--tokens 64 --max-new-tokens 8)
fi

if on_gpu; then
  QDENGINE_CUDA_ARCHS=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null)
  export QDENGINE_CUDA_ARCHS
  step build 150 "$python" -m pip install -q --no-build-isolation --no-deps --no-index .
fi
step facts 30 "$python" benchmarks/common.py "$work/facts.json"
if on_gpu; then
  step tests-ops 100 "$python" -m pytest -q -m gpu tests/ops
  step tests-engine 150 "$python" -m pytest -q -m gpu tests/engine
  step tests-train 120 "$python" -m pytest -q -m gpu tests/train
  # Memory of torch's own allocator would hide what is read or written beside a tensor.
  step memcheck 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer[@]}" "$python" "${test_ops[@]}" -k "float64 and cuda"
  step racecheck 45 "${sanitizer[@]}" --tool racecheck "$python" "${test_ops[@]}" -k "float64 and cuda and bfloat16"
fi
measure ops 60 bench_ops "${ops[@]}"
measure steps 60 bench_step "${steps[@]}"
measure attention 90 bench_attention "${attention[@]}"
if [[ $mode == list || -n $bundle && -n $data ]]; then
  step bundle 30 bash -c '[[ -f $0/model.safetensors ]] || cat "$0"/model.safetensors.part-* >"$0/model.safetensors"' "$bundle"
  main=bfloat16 precisions=bfloat16
  if on_gpu; then precisions=$("$python" -c 'from qdengine.config import PRECISIONS as p; print(*p[1:])' 2>/dev/null); fi
  if [[ $mode == dry ]]; then main=float32 precisions=float32; fi
  for precision in ${precisions:-$main}; do
    step "engine-$precision" 75 "$python" -m qdengine bench --model "$bundle" --data "$data" --precision "$precision" \
      "${engine[@]}" "${bench[@]}" --json "$work/engine-$precision.json"
  done
  student=(--model "$bundle" --data "$data" --precision "$main")
  peers=("$python" benchmarks/peers "${student[@]}" "${engine[@]}")
  step compare 240 "${peers[@]}" --section cold "${compare[@]}" --json "$work/compare.json"
  measure lossless 60 lossless "${student[@]}" "${lossless[@]}"
  step length 60 "${peers[@]}" --section lengths --peer qdengine "${length[@]}" --json "$work/length.json"
fi
exit $failed
