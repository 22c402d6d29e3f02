#!/usr/bin/env bash
# Submits training to a GKE cluster with XPK, from an image made with launch/Dockerfile.
#
#   bash launch/gke/xpk.sh --cluster CLUSTER --name NAME --zone ZONE --type TYPE [--slices N] \
#       --image IMAGE --config FILE.py[:ARG] --workdir gs://BUCKET/FOLDER [OPTIONS] \
#       [-- --config.FIELD=VALUE ...]
#
# Kubernetes starts it again when machines are taken away or fail, and not after status 2, a mistake in
# arguments or config; it goes on from the newest checkpoint in the work directory. `xpk workload list`
# and `xpk workload delete` do the rest.
#
# --cluster CLUSTER  made with `xpk cluster create`
# --name NAME        name of the workload, at most 40 characters (LAVIT_TPU_NAME)
# --zone ZONE        zone of the cluster, e.g. us-east5-a (LAVIT_TPU_ZONE)
# --project PROJECT  its Google Cloud project (LAVIT_TPU_PROJECT; default: of gcloud)
# --type TYPE        v4-N, v5e-N, v5p-N or v6e-N, e.g. v5p-128 (LAVIT_TPU_TYPE)
# --slices N         several slices of that type (LAVIT_TPU_SLICES; default: 1)
# --image IMAGE      e.g. us-docker.pkg.dev/PROJECT/REPOSITORY/lavit_jax:TAG
# --config FILE.py[:ARG]   the experiment, in configs/; the image has its own copy
# --workdir gs://BUCKET/FOLDER   gets everything; a run goes on from the checkpoints in it
# --max-restarts N   how often to start it again (default: 100)
# --dry-run          print every command, run none
# -- ARGUMENTS       handed to `lavit train`
set -euo pipefail

# shellcheck source=launch/tpu/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tpu/common.sh"

opt_cluster='' opt_image='' opt_max_restarts=100
parse "cluster name zone project type slices image config workdir max-restarts --" "$@"
check_place xpk "pip install xpk"
check_type
check_training
check_count max-restarts "$opt_max_restarts"
[ -n "$opt_cluster" ] || fail "--cluster CLUSTER is needed"
[ -n "$opt_image" ] || fail "--image IMAGE is needed"
matches "$opt_name" '.{1,40}' || fail "--name: expected at most 40 characters, got '$opt_name'"

# XPK by itself takes every status but 42 and 127 to 255 for final; a crash is 1, and a process that has
# lost another one ends with 75.
run xpk workload create "--workload=$opt_name" "--cluster=$opt_cluster" "--zone=$opt_zone" \
  ${opt_project:+"--project=$opt_project"} "--tpu-type=$opt_type" "--num-slices=$opt_slices" \
  "--docker-image=$opt_image" "--max-restarts=$opt_max_restarts" \
  "--restart-on-exit-codes=1,75" \
  "--command=bash /opt/lavit_jax/launch/tpu/entrypoint.sh $(quote "${train[@]}")"
