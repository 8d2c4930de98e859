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

# C: twelve layers of A, by labels and distribution, and by labels alone.
train distill "$here/distill.yaml"
train distill "$here/distill.yaml" output=runs/shallow-labels teacher=null

# D: the paper's shape from scratch.
train sft "$here/gpt2.yaml"

# E: the document first without sentences; and the query first, on as many tokens: a row alone is a pack.
train sft "$here/sft.yaml" output=runs/document-first student.prompt=document_first
train sft "$here/sft.yaml" output=runs/query-first student.prompt=query_first data.queries=1 data.packs=null \
  training.batch=4

# F: fewer rows, each once.
for rows in 1000 3000 10000; do
  train sft "$here/sft.yaml" output="runs/rows-$rows" data.rows="$rows" training.steps=null training.epochs=1
done
