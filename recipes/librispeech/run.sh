#!/usr/bin/env bash
# From an archive of speech to a word error rate, stage by stage. Each stage echoes and runs verbs of `speechssl`.
# Run it again and finished work is not done twice; kill it anywhere and run it again to go on.
#
#   recipes/librispeech/run.sh --preset demo
#   recipes/librispeech/run.sh --preset base-960h --data /corpora --labels 10min --fold 0 --stage 3 --stop-stage 6
#
#   --preset NAME      a file of conf/: demo, demo-two, demo-raw (no download, no GPU), mini, base-960h, large-60k, real
#                      (speech that you have), or your own .conf
#   --data DIR         where corpora and manifests lie          (default: data)
#   --exp DIR          where runs and results go                (default: exp/NAME)
#   --labels SPLIT     10min, 1h, 10h, 100h, or any as 3min     (default: 10min)
#   --fold K           which of the six 10-minute sets          (default: 0)
#   --folds all        all six, one after the other, then one table of them with means and intervals
#   --seeds 1,2,3      seeds of fine-tuning: each system once with each, then means and intervals (default: the preset's)
#   --stage N, --stop-stage M   from and to which stage         (default: 1 to 10)
#   --systems A,B      some of the preset's systems, with -seedK at the end where it has seeds       (default: all)
#   --jobs N           so many systems are fine-tuned, decoded and scored at a time, each with its share of the cores
#                      (default: 1; demo and demo-raw: 2)
#   --launch CMD       how training starts; several GPUs: "accelerate launch -m"       (default: "python -m")
# Stages: 1 data, 2 manifests, 3 labelled split, 4 vocabulary, 5 pretrain, 6 fine-tune, 7 decode, 8 score, 9 table,
# 10 page: curves, scores, utterances to listen to, masks, embeddings; one HTML file
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=$here/../../tools
preset= data=data exp= labels=10min fold=0 folds= seeds= only= jobs= stage=1 stop_stage=10 launch=
given=("$@")
while [ $# -gt 0 ]; do
  case $1 in
    --preset|--data|--exp|--labels|--fold|--folds|--seeds|--systems|--jobs|--stage|--stop-stage|--launch)
      [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
      name=${1#--}; [ "$name" != systems ] || name=only
      printf -v "${name//-/_}" %s "$2"; shift 2;;
    -h|--help) sed -n '2,26s/^# \{0,1\}//p' "$0"; exit 0;;
    *) echo "error: unknown option '$1'; see --help" >&2; exit 2;;
  esac
done
conf=$here/conf/$preset.conf
[[ $preset != *.conf ]] || conf=$preset
[ -f "$conf" ] || {
  echo "error: no preset '$preset'; choose one of: $(cd "$here/conf" && ls ./*.conf | sed 's|./||; s|.conf||' | xargs)" >&2; exit 2; }
exp=${exp:-exp/$(basename "$conf" .conf)}
split=$labels
[ "$labels" != 10min ] || split=10min-$fold
tuned=$exp/$split   # where fine-tuned systems go

run() { echo "+ $*"; "$@"; }
stage_is_due() { [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ] && echo "== stage $1: $2 (after $SECONDS s)"; }
if [ -n "$folds" ]; then   # this very script for each fold; what they share is done once
  [ "$folds" = all ] && [ "$labels" = 10min ] || { echo "error: --folds all, and only with --labels 10min" >&2; exit 2; }
  for fold in 0 1 2 3 4 5; do "$0" "${given[@]}" --folds "" --fold "$fold"; done
  if stage_is_due 9 "table of all folds"; then
    run python "$tools/wer_table.py" "$exp"/10min-{0..5} --pretrain "$exp/pretrain"
  fi
  if stage_is_due 10 "page of all folds"; then
    run speechssl report "$exp/pretrain" "$exp"/10min-{0..5} -o "$exp/report.html"
  fi
  exit 0
fi
validate=()   # what training validates on
tune() {   # PRESET --init RUN | --like RUN [KEY=VALUE ...]
  local seed=()
  [[ $system != *-seed* ]] || seed=("train.seed=${system##*-seed}")
  run $launch speechssl finetune --preset "$1" "$2" "$3" --train "$train_manifest" "${validate[@]}" \
    --vocabulary "$tuned/vocabulary.json" -o "$tuned/$system" "${tune_numbers[@]}" "${@:4}" "${seed[@]}"
}
make_units() {   # of what is pretrained on and, where training validates, of what it validates on
  run speechssl features "$pretrain_manifest" "${unit_features[@]}" -o "$exp/features/train"
  [ -z "$dev_manifest" ] || run speechssl features "$dev_manifest" "${unit_features[@]}" -o "$exp/features/dev"
  run speechssl kmeans "$exp/features/train" -k "$num_units" -o "$exp/kmeans.safetensors"
  run speechssl units "$exp/features/train" ${dev_manifest:+"$exp/features/dev"} --kmeans "$exp/kmeans.safetensors" \
    -o "$exp/units"
  pretrain_numbers+=("data.units=$exp/units" "objective.num_units=$num_units")
}
warm_preset= warm=()   # a preset pretrained first
unit_features=() num_units=100   # for HuBERT and WavLM: what `speechssl features` makes units from, and how many
warm_numbers=() pretrain_numbers=() tune_numbers=()   # KEY=VALUE ... of the three
source "$conf"   # which corpora, presets and systems: variables and functions for the stages below
if [ -n "$seeds" ]; then   # a folder for each system and seed
  seeded=()
  for seed in ${seeds//,/ }; do seeded+=("${systems[@]/%/-seed$seed}"); done
  systems=("${seeded[@]}")
fi
if [ -n "$only" ]; then
  for system in ${only//,/ }; do
    [[ " ${systems[*]} " = *" $system "* ]] || {
      echo "error: no system '$system'; choose from: ${systems[*]}" >&2; exit 2; }
  done
  IFS=, read -ra systems <<< "$only"
fi
jobs=${jobs:-1}
[[ $jobs =~ ^[1-9][0-9]*$ ]] || { echo "error: --jobs needs a number of 1 or more, not '$jobs'" >&2; exit 2; }
[ -z "$dev_manifest" ] || validate=(--valid "$dev_manifest")

if stage_is_due 1 "data"; then prepare_data; fi
if stage_is_due 2 "manifests"; then make_manifests; fi
if stage_is_due 3 "labelled split $split"; then make_split; fi
if stage_is_due 4 "vocabulary"; then
  run speechssl vocab "$train_manifest" -o "$tuned/vocabulary.json"
fi
if stage_is_due 5 "pretrain"; then
  if [ -n "$warm_preset" ]; then   # its convolutions are where the encoder starts
    run $launch speechssl pretrain --preset "$warm_preset" --train "$pretrain_manifest" "${validate[@]}" -o "$exp/warm" \
      "${warm_numbers[@]}"
    warm=(--init "$exp/warm")
  fi
  [ ${#unit_features[@]} -eq 0 ] || make_units
  run $launch speechssl pretrain --preset "$pretrain_preset" --train "$pretrain_manifest" "${validate[@]}" \
    -o "$exp/pretrain" "${warm[@]}" "${pretrain_numbers[@]}"
fi
if [ "$jobs" -gt 1 ] && [ "$stage" -le 8 ] && [ "$stop_stage" -ge 6 ]; then   # stages 6 to 8, by this script for each system
  cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  threads=${OMP_NUM_THREADS:-$(( (cores + jobs - 1) / jobs ))}
  # The prefix comes from a sed that outlives a signal to all, so that a run can say its last words.
  printf '%s\n' "${systems[@]}" | OMP_NUM_THREADS=$threads xargs -P "$jobs" -I{} bash -o pipefail -c \
    '"$@" 2>&1 | (trap "" INT TERM; sed -u "s/^/{}: /")' _ "$0" "${given[@]}" --folds "" --systems {} --jobs 1 \
    --stage "$((stage > 6 ? stage : 6))" --stop-stage "$((stop_stage < 8 ? stop_stage : 8))" || {
      echo "error: not every system is done, see above; what is done stays, and the same command goes on" >&2; exit 1; }
  stage=9
fi
if stage_is_due 6 "fine-tune"; then
  for system in "${systems[@]}"; do fine_tune "${system%-seed*}"; done
fi
if stage_is_due 7 "decode"; then
  for system in "${systems[@]}"; do
    for set in "${test_sets[@]}"; do
      run speechssl decode "$tuned/$system" "$manifests/$set.jsonl" -o "$tuned/$system/decode/$set.jsonl"
    done
  done
fi
if stage_is_due 8 "score"; then
  for system in "${systems[@]}"; do
    for set in "${test_sets[@]}"; do
      run speechssl score "$tuned/$system/decode/$set.jsonl" -o "$tuned/$system/score/$set"
    done
  done
fi
if stage_is_due 9 "table"; then
  run python "$tools/wer_table.py" "$tuned" --pretrain "$exp/pretrain"
fi
if stage_is_due 10 "page"; then
  run speechssl report "$exp/pretrain" "$tuned" -o "$tuned/report.html"
fi
