#!/bin/sh
# An embedded default from start to end: train, evaluate, export, predict, and say where to look.
# sh tools/demo.sh [CONFIG [NAME]]
set -eu
python=.venv/bin/python
config=${1:-configs/synthetic.yaml}
name=runs/${2:-demo}
run=$name
n=2
resume=never
while [ -e "$run" ]; do
    if [ -d "$run/checkpoints" ] && [ ! -e "$run/DONE" ]; then # it was stopped, and goes on
        resume=auto
        break
    fi
    run=$name-$n
    n=$((n + 1))
done
if grep -q "task: instance_segmentation" "$config"; then
    what=masks
    use="transformers.pipeline(\"image-segmentation\", model=\"$run/export\"), with subtask=\"instance\""
elif grep -q "task: semantic_segmentation" "$config"; then
    what="regions and their label maps"
    use="transformers.pipeline(\"image-segmentation\", model=\"$run/export\", trust_remote_code=True), with subtask=\"semantic\""
else
    what=boxes
    use="transformers.pipeline(\"object-detection\", model=\"$run/export\")"
fi

export HF_HUB_OFFLINE=1 # nothing here needs the network
trap : INT # the training saves what it has; then the word is ours
status=0
$python train_accelerate.py --config "$config" --run.output_dir "$run" --run.resume $resume || status=$?
if [ "$status" -eq 75 ] && [ -d "$run/checkpoints" ]; then
    echo "The same command again goes on with $run; without that folder it begins anew." >&2
elif [ "$status" -ne 0 ] && [ $resume = auto ]; then
    echo "It was to go on with $run; without that folder it begins anew." >&2
fi
[ "$status" -eq 0 ] || exit "$status"
trap - INT
echo
echo "The exported model, evaluated on its own:"
$python -m tools.evaluate --model "$run/export" --config "$run/config.yaml" --out "$run/evaluation"
echo
echo "What it finds in scenes that it has not seen:"
$python -m street.rendering --seed 99 --num 6 --out "$run/new_scenes"
$python -m tools.predict --model "$run/export" "$run/new_scenes" --out "$run/predictions"
cat <<TEXT

Look at
  $run/report.html       the run on one page: curves, mistakes, predictions (open it in a browser)
  $run/samples/          the first batch, as the model got it
  $run/eval/             metrics, a table per class and drawn predictions after each evaluation
  $run/predictions/      $what drawn on new scenes, and predictions.json
  $run/export/           the model: $use
  $run/metrics.jsonl     every number; the same in .venv/bin/trackio show --project synthetic
TEXT
