#!/usr/bin/env bash
# Heads for the embedded target on one GPU: the target writes the data, then five methods learn from it, all with the
# same texts and the same number of tokens.
#
#   bash dev/heads.sh synthesize [SECONDS]   several processes write side by side; the same command goes on
#   bash dev/heads.sh train [TOKENS]         all five at once; a run that exists is resumed
#   bash dev/heads.sh look                   how far they are
#   bash dev/heads.sh slice                  the same five, trained on the benchmark's own prompts (dev/slice.py)
#
# DATA, RUNS, PARTS, BATCH (texts of each process at a time) and OUTRIDER (the command) may be set. Processes belong to
# no terminal's session, so they survive the shell that began them; stop them with SIGTERM: finished shards are kept,
# and training writes a checkpoint first.
set -euo pipefail
DATA=${DATA:-data/heads} RUNS=${RUNS:-runs/heads} PARTS=${PARTS:-8} BATCH=${BATCH:-320} OUTRIDER=${OUTRIDER:-outrider}
ROWS=8 LENGTH=1024 PASSES=2
METHODS="eagle3 medusa mtp pard draft"
export TOKENIZERS_PARALLELISM=false

synthesize() {  # temperatures and turns have no common factor: every mixture occurs
    mkdir -p "$DATA"
    for part in $(seq 0 $((PARTS - 1))); do
        OMP_NUM_THREADS=1 setsid timeout -s TERM "$1" $OUTRIDER synthesize --output "$DATA/$part" --seed "$part" \
            --num-prompts 1000000 --turns 2 --max-batch "$BATCH" --shard-size 640 \
            --max-turn-tokens 256 --max-prompt-tokens 640 --max-new-tokens 384 \
            --prompt-top-p 1.0 --prompt-temperatures 0.5 0.7 0.8 --temperatures 0 0 0.7 0 1.0 \
            > "$DATA/$part.log" 2>&1 < /dev/null &
    done
    wait
}

train_one() {  # method, and its own settings
    local run="$RUNS/$1" given=()
    if [ -f "$run/config.json" ]; then
        given=(--resume "$run")
    else
        given=(--run-dir "$run" --data "$DATA"/*/ --max-tokens "$TOKENS" --row-length "$LENGTH" --rows "$ROWS"
            --accumulation "$PASSES" --eval-every 100 --eval-texts 384 --real-tau-every 0
            --checkpoint-every 100000 --draft-vocab 8192 --optimizer adamw "${@:2}")
    fi
    OMP_NUM_THREADS=2 setsid $OUTRIDER train "$1" "${given[@]}" > "$run.log" 2>&1 < /dev/null &
}

train() {
    TOKENS=$1
    mkdir -p "$RUNS"
    train_one eagle3 --num-depths 4 --start-layer -1 --learning-rate 8e-4
    train_one medusa --num-layers 2 --output shared --loss kl --learning-rate 1e-3
    train_one mtp --num-depths 4 --loss kl --beta 0.8 --learning-rate 8e-4
    train_one pard --layers 0,29 --num-depths 5 --loss kl --learning-rate 6e-4
    train_one draft --layers 0,29 --learning-rate 6e-4
    wait
}

slice() {  # 129 texts, read 34 times: into runs/slice
    python dev/slice.py synthesize
    OUTRIDER="python dev/slice.py" DATA=data/slice RUNS=runs/slice ROWS=4 LENGTH=2048 PASSES=1
    train 2400000
}

look() {
    for method in $METHODS; do
        printf '%s  ' "$method"
        tail -n 1 "$RUNS/$method.log" | cut -c 1-160
    done
}

case ${1:-} in
    synthesize) synthesize "${2:-1200}" ;;
    train) train "${2:-16000000}" ;;
    look) look ;;
    slice) slice ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
