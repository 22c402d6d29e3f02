#!/usr/bin/env bash
# Plans every preset of the large configs in full and writes the tables of docs/pods.md.
# Needs libtpu, no TPU. A plan of stage two takes half an hour of one core and 3 GB of memory: all
# of them take a night. Run again, it goes on where it was: remove the folder when a config changes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-workdir/plans}
mkdir -p "$out"

plan() { # NAME CONFIG TOPOLOGY SLICES [MORE...]
  local name=$1 config=$2 topology=$3 slices=$4
  shift 4
  [[ -s $out/$name.json ]] && return # done before
  python -m lavit_jax plan --config "$config" --topology "$topology" --slices "$slices" \
    --json "$out/$name.json" "$@" | tee "$out/$name.txt" || echo "$name: does not fit" >&2
}

for topology in v5p-128 v5e-256 v6e-256 v4-128; do
  plan "unified-$topology" "configs/unified_7b.py:$topology" "$topology" 1 --phase unified
done
for topology in v5p-128 v5e-256 v6e-256; do
  whole=$out/unified-$topology.json parts=$out/parts-$topology.txt
  if [[ -s $whole && ! -s $parts ]]; then
    if python -m benchmarks.plan_parts --config "configs/unified_7b.py:$topology" \
      --topology "$topology" --whole "$whole" | tee "$parts.unfinished"; then
      mv "$parts.unfinished" "$parts"
    else
      echo "parts-$topology: failed" >&2
    fi
  fi
done
for topology in v5p-128 v5e-256 v6e-256 v4-128; do
  plan "generation-$topology" "configs/unified_7b.py:$topology" "$topology" 1 \
    --phase prefill --phase decode
  plan "tokenizer-$topology" "configs/tokenizer_vitg.py:$topology" "$topology" 1
done
plan pixels-v5p-128 configs/pixel_decoder.py:v5p-128 v5p-128 1
plan pixels-sdxl-v5p-128 configs/pixel_decoder.py:v5p-128,sdxl v5p-128 1
plan unified-v5p-128x2 configs/unified_7b.py:v5p-128x2 v5p-128 2 --phase unified

# Weak scaling: 4 rows a chip on 64 to 4,096 chips.
for chips in 64 256 1024 4096; do
  plan "scaling-$chips" configs/unified_7b.py:v5p-128 "v5p-$((2 * chips))" 1 --phase unified \
    "--config.phases.unified.batch_size=$((4 * chips))" \
    "--config.mesh.fsdp=64" "--config.mesh.data=-1"
done

python benchmarks/plan_table.py "$out" >"$out/tables.md"
echo "wrote $out/tables.md"
