#!/usr/bin/env bash
# LA 2018 at full resolution with 8 labelled scans on one GPU, in ten minutes: `supervised` and `self_training` side by
# side with as many steps as fit, scored on the 20 test scans; then the time of a step of our loop, and how long it waits
# for its batches.
#
#   benchmarks/gpu.sh LA2018_FOLDER OUTPUT
#
# MINUTES (9.5)     for everything, from the import to the scores
# DEVICE (cuda)     cpu tests the script: DEVICE=cpu SCANS=3 LABELLED=2 TRAIN_SECONDS=30 benchmarks/gpu.sh ...
# TRAIN_SECONDS     of both trainings; default: what is left, less PREDICT_SECONDS (100) for predictions and times
# PYTHON (python3)  with the dependencies of this package; the package itself is taken from this checkout
# WHEELS            folder of wheels to install the dependencies from, where there is no network
# SCANS             only so many training and test scans, for a test
# SETTINGS          more settings of both trainings, separated by spaces: key=value
#
# OUTPUT gets gpu_la2018.json (scores, steps, forecast and truth, time of a step, hardware), the plans and the logs.
# Repeated, it continues trainings that were stopped.
set -euo pipefail

source_folder=$(realpath "${1:?the folder of LA 2018: train.list, test.list and the scans}")
mkdir -p "${2:?the folder for the results}"
output=$(realpath "$2")
minutes=${MINUTES:-9.5} device=${DEVICE:-cuda} python=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here/../src:$here${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
work=$output/work
mkdir -p "$work"

if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --find-links "$WHEELS" "$here/.."
fi
labelwise() { "$python" -c "from labelwise.cli.main import main; main()" "$@"; }
# Seconds that are left of the whole, less what is kept back for what comes later.
left() { "$python" -c "print(max(0, int(60 * $minutes - $SECONDS - $1)))"; }

settings=()
for setting in ${SETTINGS:-}; do settings+=(--set "$setting"); done

if [ ! -f "$work/la/manifest.csv" ]; then
    labelwise import "$source_folder" -o "$work/la"
    if [ -n "${SCANS:-}" ]; then "$python" "$here/gpu_la2018.py" shorten "$work/la" "$SCANS"; fi
    labelwise simulate "$work/la" -o "$work/la8" --mode keep_labelled --set "n=${LABELLED:-8}"
fi

# One plan for both: that of the method with unlabelled scans, so that nothing but the method differs.
if [ ! -f "$work/recipe.toml" ]; then
    labelwise train --data "$work/la8" --method self_training --device "$device" -q --dry-run \
        --set prepare.spacing_mm=[0.625,0.625,0.625] --set train.schedule.warmup_steps=50 "${settings[@]}" \
        > "$work/recipe.toml"
fi
if [ ! -f "$work/prepared" ]; then
    labelwise prepare "$work/la8" --recipe "$work/recipe.toml" -q
    touch "$work/prepared"
fi

# Both measure their steps at the same time, so what they get from the device is what they will get in the training.
predicting=${PREDICT_SECONDS:-100}
budget=${TRAIN_SECONDS:-$(left "$predicting")}
if [ "$budget" -lt 20 ]; then
    echo "no time is left for the trainings: allow more MINUTES, or repeat the command; what is prepared is kept" >&2
    exit 1
fi
echo "$budget s for both trainings side by side"
run() {
    labelwise train "$work/recipe.toml" --data "$work/la8" --method "$1" --device "$device" --budget "${budget}s" \
        -o "$work/$1" -q > "$output/$1.log" 2>&1
}
run supervised & first=$!
run self_training & second=$!
wait "$first"
wait "$second"

labelwise predict "$work/supervised" "$work/la8" --device "$device" -q & first=$!
labelwise predict "$work/self_training" "$work/la8" --device "$device" -q & second=$!
wait "$first"
wait "$second"
for method in supervised self_training; do
    labelwise evaluate "$work/$method" "$work/la8" -q
    cp "$work/$method/plan.json" "$output/$method.plan.json"
    cp "$work/$method/log.jsonl" "$output/$method.jsonl"
done

"$python" "$here/gpu_la2018.py" collect "$work" "$device" "$output/gpu_la2018.json"
echo "$SECONDS s in all; $output/gpu_la2018.json"
