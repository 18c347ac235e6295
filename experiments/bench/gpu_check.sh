#!/usr/bin/env bash
# Everything that a GPU has to say about cupy_kernels, in one call of at most ten minutes, without a network:
#   1  compile every kernel for sm_80, sm_90, sm_90a        (also without a GPU, where the rest is skipped)
#   2  the kernels, operators and models on the device against float64 and the torch backend; side streams, CUDA graphs
#   3  compute-sanitizer: memcheck and racecheck
#   4  what a call costs the host; ceilings, the table of operators, the 2B models: experiments/results/kernels_DEVICE.json, its plots, and
#      cupy_kernels/measured.json, by which `auto` chooses
#
#   experiments/bench/gpu_check.sh [folder for logs, default runs/gpu_check]
#
# PYTHON chooses the interpreter; it needs torch, cupy, matplotlib, lightning, torchdata and gguf.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${1:-runs/gpu_check}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mkdir -p "$OUT"
status=0
step() {  # name, seconds, command...: runs it, keeps its log, goes on when it fails
    local name=$1 limit=$2 begun=$SECONDS
    shift 2
    echo "== $name"
    if timeout "$limit" "$@" >"$OUT/$name.log" 2>&1; then
        tail -n 3 "$OUT/$name.log"
        echo "   ok, $((SECONDS - begun)) s"
    else
        tail -n 20 "$OUT/$name.log"
        echo "   FAILED (log: $OUT/$name.log), $((SECONDS - begun)) s"
        status=1
        return 1
    fi
}

step compile 120 "$PYTHON" -m cupy_kernels.compiler
if ! "$PYTHON" -c 'import cupy_kernels, sys; why = cupy_kernels.why_not(); print(why or "a GPU"); sys.exit(bool(why))'; then
    echo "no measurement without a CUDA device; everything else was done"
    exit $status
fi

step device_checks 180 "$PYTHON" -m tests.cupy_kernels.on_device --json "$OUT/checks.json"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
# cuda-bindings asks the driver for functions that an older one lacks: an answer of the API, no error of memory
for tool in "memcheck --report-api-errors no" racecheck; do
    check=${tool%% *}
    if [ -n "$sanitizer" ]; then
        step "$check" 100 "$sanitizer" --tool $tool --error-exitcode 9 \
            "$PYTHON" -m tests.cupy_kernels.on_device --only kernels --shapes sorted_ragged deep
        result=$([ $? = 0 ] && echo passed || echo FAILED)
    else
        result="not run: no compute-sanitizer here"
        echo "== $check: $result"
    fi
    echo "$check: $result" >>"$OUT/sanitizer.txt"
done

step launch_cost 60 "$PYTHON" -m experiments.bench.launch_cost && cat "$OUT/launch_cost.log"
[ -f "$OUT/checks.json" ] || echo '{}' >"$OUT/checks.json"
step benchmark 300 "$PYTHON" -m experiments.bench.kernels --checks "$OUT/checks.json" --sanitizer "$OUT/sanitizer.txt" \
    --keep "$OUT/so_far.json"
exit $status
