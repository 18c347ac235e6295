#!/usr/bin/env bash
# Two "nodes" on one machine: network namespaces that see one another over a virtual cable, and nothing else. Trains a
# stage of a toy recipe over both with torchrun, as two real machines would, and says whether weights came out.
#
#   sudo experiments/cluster/two_nodes.sh [RUN_DIR] [words for `mmframe fit`, default: toy/evip_pp with strategies/fsdp2]
#
# Needs root and iproute2. Makes namespaces mmnode0 and mmnode1 and takes them away again, also when it fails.
set -euo pipefail
run=${1:-runs/two_nodes}
shift || true
[ $# -gt 0 ] || set -- --config toy/evip_pp --config strategies/fsdp2 --stage s1_1_concept --trainer.max_steps=6
[ "$(id -u)" = 0 ] || { echo "two_nodes.sh: making network namespaces needs root; run it with sudo" >&2; exit 2; }
command -v ip >/dev/null || { echo "two_nodes.sh: no ip command; install iproute2" >&2; exit 2; }
python=${PYTHON:-python}

running=()
clean() {
    for pid in "${running[@]}"; do kill "$pid" 2>/dev/null || true; done
    for node in 0 1; do ip netns del "mmnode$node" 2>/dev/null || true; done
}
trap clean EXIT
clean

for node in 0 1; do
    ip netns add "mmnode$node"
    ip -n "mmnode$node" link set lo up
done
ip link add mmcable0 netns mmnode0 type veth peer name mmcable1 netns mmnode1
for node in 0 1; do
    ip -n "mmnode$node" addr add "10.77.0.$((node + 1))/24" dev "mmcable$node"
    ip -n "mmnode$node" link set "mmcable$node" up
done

# gloo must be told the cable: it would look for an address of the host's name
for node in 0 1; do
    GLOO_SOCKET_IFNAME="mmcable$node" OMP_NUM_THREADS=1 ip netns exec "mmnode$node" \
        "$python" -m torch.distributed.run --nnodes 2 --node-rank "$node" --nproc-per-node 1 \
        --master-addr 10.77.0.1 --master-port 29577 \
        -m mmframe fit "$@" --run-dir="$run" --trainer.num_nodes=2 --trainer.devices=1 \
        --trainer.enable_progress_bar=false &
    running+=($!)
done
code=0
for pid in "${running[@]}"; do wait "$pid" || code=$?; done
running=()
[ "$code" = 0 ] || { echo "two_nodes.sh: a node ended with exit code $code" >&2; exit "$code"; }
find "$run" -name done.json | grep -q . && echo "two_nodes.sh: two nodes trained; $(find "$run" -name weights.safetensors)"
