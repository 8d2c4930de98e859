#!/usr/bin/env bash
# Every run of docs/students.md, one after the other, each gone on with where it was interrupted:
#
#     bash examples/training/all.sh         # from a folder in which data/ has the rows; makes runs/
#
# Then benchmarks/students.py measures what they made. Give QDENGINE, if it is not on the path.
set -euo pipefail
here=$(dirname "$0")
train() { "${QDENGINE:-qdengine}" train "$@"; }

# A and B: fine-tuning, then preferences.
train sft "$here/sft.yaml"
[[ -e runs/pairs.jsonl ]] || train pairs "$here/pairs.yaml"
train dpo "$here/dpo.yaml"

# As the default student was made: B trained on, packed, and repaired by adapters that the small file keeps. Its B is that
# of cpu.sh, of a packed A.
train sft "$here/sft.yaml" output=runs/more student.init=runs/dpo/bundle training.steps=1350
train export "$here/export.yaml" output=runs/packed student=runs/more/bundle evaluate=[]
train distill "$here/distill.yaml" output=runs/repaired student.init=runs/packed/bundle student.layers=null \
  teacher=runs/more/bundle lora.rank=3 lora.scale=2 training.steps=160 training.learning_rate=1e-3 training.warmup=10
train export "$here/export.yaml" output=runs/export student=runs/repaired/bundle rank=3

# C: twelve layers of A, by labels and distribution, and by labels alone.
train distill "$here/distill.yaml"
train distill "$here/distill.yaml" output=runs/shallow-labels teacher=null
train distill "$here/distill.yaml" output=runs/shallow-long student.init=runs/more/bundle teacher=null training.steps=1500

# D: the paper's shape from scratch.
train sft "$here/gpt2.yaml"

# E: with sentences, the document first without them, and the query first; on as many tokens: a row alone is a pack there.
for prompt in sentences document_first query_first; do
  queries=12
  [[ $prompt == query_first ]] && queries=1
  train sft "$here/sft.yaml" output="runs/$prompt" student.prompt=$prompt data.queries=$queries training.steps=320
done

# F: fewer rows, each as often as in A.
for rows in 1000 3000 10000; do
  train sft "$here/sft.yaml" output="runs/rows-$rows" data.rows="$rows" training.steps=null training.epochs=1.65
done
