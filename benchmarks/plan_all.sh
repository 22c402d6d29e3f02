#!/usr/bin/env bash
# Plans every preset of the large configs in full and writes the page docs/plans.md.
# Needs libtpu, no TPU. A plan of stage two takes some ten minutes of one core and 3 GB of memory.
# Run again, it goes on where it was: remove the folder when a config changes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-workdir/plans}
mkdir -p "$out"

plan() { # NAME CONFIG TOPOLOGY SLICES [MORE...]
  local name=$1 config=$2 topology=$3 slices=$4
  shift 4
  [[ -s $out/$name.json ]] && return # done before
  python -m lavit_jax plan --quick --config "$config" --topology "$topology" --slices "$slices" \
    --json "$out/$name.json" "$@" | tee "$out/$name.txt" || echo "$name: does not fit" >&2
}

presets=(v5p-128 v5e-256 v6e-256 v4-128 v5p-128x2)

of_preset() { # NAME CONFIG[,ARG] PRESET [MORE...]
  local name=$1 config=$2 preset=$3 slices=1
  shift 3
  [[ $preset == *x2 ]] && slices=2
  plan "$name-$preset" "${config/PRESET/$preset}" "${preset%x2}" "$slices" "$@"
}

# The bars first: the whole step against its parts, then weak scaling.
for topology in v5p-128 v5e-256 v6e-256; do
  of_preset unified configs/unified_7b.py:PRESET "$topology" --phase unified
  whole=$out/unified-$topology.json parts=$out/parts-$topology.txt
  if [[ -s $whole && ! -s $parts ]]; then
    if python -m benchmarks.plan_parts --quick --config "configs/unified_7b.py:$topology" \
      --topology "$topology" --whole "$whole" | tee "$parts.unfinished"; then
      mv "$parts.unfinished" "$parts"
    else
      echo "parts-$topology: failed" >&2
    fi
  fi
done

# 4 rows a chip as on v5p-128's 64.
for chips in 4096 1024 256; do
  plan "scaling-$chips" configs/unified_7b.py:v5p-128 "v5p-$((2 * chips))" 1 --phase unified \
    "--config.phases.unified.batch_size=$((4 * chips))" \
    "--config.mesh.fsdp=16" "--config.mesh.data=-1"
done

for preset in "${presets[@]}"; do
  of_preset unified configs/unified_7b.py:PRESET "$preset" --phase unified
  # Its first phase is the same step but for the codes.
  of_preset tokenizer configs/tokenizer_vitg.py:PRESET "$preset" --phase quantize
  of_preset pixels configs/pixel_decoder.py:PRESET "$preset"
  of_preset generation configs/unified_7b.py:PRESET "$preset" --phase prefill --phase decode
done
# An hour or two.
plan search-v5p-128 configs/unified_7b.py:v5p-128 v5p-128 1 --phase unified --search
of_preset pixels-sdxl configs/pixel_decoder.py:PRESET,sdxl v5p-128

python benchmarks/plan_table.py "$out" >"$out/plans.md"
echo "wrote $out/plans.md: the page docs/plans.md"
