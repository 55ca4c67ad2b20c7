#!/bin/bash
# The 3 x 3 demo once by each launcher, for real, and whether all left the same cells, metrics, curves, scores and weights.
#   bash tests/launchers.sh FOLDER [LAUNCHER...]        PYTHON=... for another interpreter
# DEMO_WORDS: further words of every sweep, such as train.epochs=5. What FOLDER has already is not run again. Each launcher that is not installed is named and skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
into=${1:?a folder for the results}; shift
python=${PYTHON:-python}
launchers=("$@"); [ ${#launchers[@]} -gt 0 ] || launchers=(joblib submitit_local ray)
declare -A package=([joblib]=hydra_plugins.hydra_joblib_launcher [submitit_local]=hydra_plugins.hydra_submitit_launcher
  [submitit_slurm]=hydra_plugins.hydra_submitit_launcher [ray]=hydra_plugins.hydra_ray_launcher)

demo=(attack=badnets,blend,wanet defense=anp,rnp,clp seed=2 threads=1)
sweep() { # NAME, further words
  local began=$SECONDS
  "$python" bench/run.py -m "${demo[@]}" ${DEMO_WORDS:-} "runs=$into/$1" "${@:2}" > "$into/$1.log" 2>&1 || { tail -n 20 "$into/$1.log"; exit 1; }
  echo "$1: $((SECONDS - began)) s"
}
mkdir -p "$into"
sweep basic
for launcher in "${launchers[@]}"; do
  if ! "$python" -c "import ${package[$launcher]}" 2> /dev/null; then echo "$launcher: skipped, it is not installed"; continue; fi
  sweep "$launcher" "launcher=$launcher" ${LAUNCHER_WORDS:-}
  "$python" tests/same_runs.py "$into/basic" "$into/$launcher"
done
