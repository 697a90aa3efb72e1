#!/bin/sh
# The embedded default from start to end: train, evaluate, export, predict, and say where to look.
set -eu
python=.venv/bin/python
run=runs/demo
n=2
while [ -e "$run" ]; do run=runs/demo-$n; n=$((n + 1)); done

export HF_HUB_OFFLINE=1 # nothing here needs the network
$python train_accelerate.py --config configs/synthetic.yaml --run.output_dir "$run"
echo
echo "The exported model, evaluated on its own:"
$python -m tools.evaluate --model "$run/export" --config "$run/config.yaml" --out "$run/evaluation"
echo
echo "Boxes for scenes the model has not seen:"
$python -m street.rendering --seed 99 --num 6 --out "$run/new_scenes"
$python -m tools.predict --model "$run/export" "$run/new_scenes" --out "$run/predictions"
cat <<TEXT

Look at
  $run/samples/          the first batch, as the model got it
  $run/eval/             AP, a table per class and drawn predictions after each evaluation
  $run/predictions/      boxes drawn on new scenes, and predictions.json
  $run/export/           the model: transformers.pipeline("object-detection", model="$run/export")
  $run/metrics.jsonl     every number; the same in .venv/bin/trackio show --project permafrost
TEXT
