#!/usr/bin/env bash
# All claims with larger budgets and five seeds on one GPU (written for an H100 of 80 GB: eight runs share it). Nothing of
# it has run on a GPU yet; from the operations counted, runs of one to three minutes, eight at a time: under an hour
# (`python -m experiments.claims --preset h100 --dry-run` lists them).
#
#   bash experiments/claims/h100.sh [PYTHON]
#
# Before, on a machine with the registries: python -m mmframe.data.demo; mmframe data offline DIR. Where the folders lie
# elsewhere: export MMFRAME_DEMO_DATA=... MMFRAME_OFFLINE_DATA=DIR. A second call goes on where the first was stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${1:-python}
export TOKENIZERS_PARALLELISM=false
"$python" -m experiments.claims --preset h100 --jobs 8
"$python" -m experiments.modular_vs_monolithic --preset h100 --jobs 8
