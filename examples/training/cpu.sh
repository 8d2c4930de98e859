#!/usr/bin/env bash
# The runs of docs/students.md that two cores can do, one after the other, in about three hours:
#
#     bash examples/training/cpu.sh         # from a folder in which data/ has the rows; makes runs/
#
# They start from a student that is tuned already (STUDENT, qd-135m where it is not given; in docs/students.md it was A
# as it is packed). Give QDENGINE, if it is not
# on the path.
set -euo pipefail
here=$(dirname "$0")
student=${STUDENT:-qd-135m}
train() { "${QDENGINE:-qdengine}" train "$@"; }

# B: its own samples, and preferences by adapters of a rank that the small file keeps.
[[ -e runs/pairs.jsonl ]] || train pairs "$here/pairs.yaml" student="$student" rows=300 samples=4
held_out=$(($(wc -l < runs/pairs.jsonl) / 4))
head -n -$held_out runs/pairs.jsonl > runs/pairs.train.jsonl
tail -n $held_out runs/pairs.jsonl > runs/pairs.validation.jsonl
train dpo "$here/dpo.yaml" output=runs/dpo-lora student.init="$student" lora.rank=3 lora.scale=2 sft_share=0.5 \
  data.train='[runs/pairs.train.jsonl]' data.validation='[runs/pairs.validation.jsonl]' \
  training.tokens=null training.precision=float32 training.batch=4 training.learning_rate=1e-3 training.warmup=3
train export "$here/export.yaml" output=runs/export-lora student=runs/dpo-lora/bundle rank=3 rows=200

# D and E: 30 steps on as many tokens, a row alone where the query comes first.
short() {
  train sft "$here/sft.yaml" data.max_tokens=512 data.validation_rows=64 training.tokens=null training.precision=float32 \
    training.steps=30 training.warmup=4 training.decay=1 training.evaluate_every=30 training.save_every=30 "$@"
}
frozen="[embed, $(printf 'layers.%d., ' {0..11})]"
short output=runs/short-document student.prompt=document_first student.frozen="$frozen" \
  data.packs=600 training.batch=2 training.learning_rate=2e-4
short output=runs/short-query student.prompt=query_first student.frozen="$frozen" \
  data.packs=600 data.queries=1 training.batch=4 training.learning_rate=2e-4
short output=runs/short-gpt2 student.prompt=document_first student.frozen='[]' \
  student.scratch='{layers: 12, width: 768, heads: 12}' data.packs=600 training.batch=2 training.learning_rate=6e-4
