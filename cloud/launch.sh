#!/usr/bin/env bash
# One node of a run on several, each of which calls this: NODES, NODE_RANK, MAIN_ADDRESS and PROCESSES_PER_NODE say
# which one it is.
#
#   cloud/launch.sh RUN_FOLDER --config configs/coco.yaml ...
#
# From the repository; RUN_FOLDER lies on a volume that all nodes see. A call goes on from the newest checkpoint there.
# At SIGTERM the training is asked to save and stop; the exit status is 0 only when the run has ended.

set -euo pipefail

if [[ $# -eq 0 || $1 == -* || ! -f train_accelerate.py ]]; then
    echo "usage, from the repository: cloud/launch.sh RUN_FOLDER [--section.key value ...]" >&2
    exit 2
fi
run=$1
shift
nodes=${NODES:?} rank=${NODE_RANK:?} per_node=${PROCESSES_PER_NODE:?}
cpus=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > per_node ? cpus / per_node : 1))}
export PET_SHUTDOWN_TIMEOUT=${PET_SHUTDOWN_TIMEOUT:-25} # workers that wait for a dead one can be deaf to SIGTERM
[[ ! -d .venv/bin ]] || export PATH="$PWD/.venv/bin:$PATH"

mkdir -p "$run"
((rank)) || rm -f "$run/STOP" "$run/DONE"

# Rank 0 looks for the file at each step; then all ranks save and leave. Not a signal, which launchers pass on badly.
# shellcheck disable=SC2317,SC2329 # called by the trap
stop() {
    echo "launch.sh, node $rank: asking the training to save and stop"
    touch "$run/STOP" || true # a full disk is no reason to end at once
}
trap stop TERM INT

accelerate launch --config_file accelerate_configs/multi_node.yaml \
    --num_machines "$nodes" --machine_rank "$rank" --num_processes "$((nodes * per_node))" \
    --main_process_ip "${MAIN_ADDRESS:?}" --main_process_port "${MAIN_PORT:-29500}" \
    train_accelerate.py "$@" --run.output_dir "$run" --run.resume auto &
training=$!
status=0
while kill -0 "$training" 2>/dev/null; do
    wait "$training" && status=0 || status=$? # a trapped signal ends it early
done
exit "$status"
