#!/usr/bin/env bash
# A run that survives, with curl and awk: killed and started again, it goes on where it was; it logs its loss, and stops
# by a rule.
#
# examples/resume.sh http://127.0.0.1:8000 run-7
set -euo pipefail
export LC_ALL=C # a decimal point, whatever the language
sessions=$1/v1/sessions name=$2
call() { curl --silent --show-error --fail-with-body --retry 100 --retry-delay 1 --retry-max-time 60 --retry-connrefused "$@"; }

# Prints step, chain, rule (or -), x and y of an answer {"step": 1, "parameters": [-1.15, 1.05]}.
standing() {
  call --write-out '\n%header{adamd-step} %header{etag} %header{adamd-stop} ' "$@" |
    awk -F '[][,]' 'NR == 1 { x = $3; y = $4 } NR == 2 { split($0, told, " "); print told[1], told[2], (told[3] ? told[3] : "-"), x, y }'
}

start='{"name": "'$name'", "parameters": [-1.2, 1.0],
  "optimizer": {"name": "adam", "lr": 0.3, "stop": {"target_loss": 0.1, "max_steps": 1000}}}'
if ! made=$(call --json "$start" -H "Idempotency-Key: $name-$$-$RANDOM" "$sessions") && [[ $made != *'"session_exists"'* ]]; then
  echo "$made" >&2 # but for session_exists: this run has begun already
  exit 1
fi 2>/dev/null

read -r step chain stop x y < <(standing "$sessions/$name/parameters")
while [ "$stop" = - ]; do
  # 17 significant digits are enough to say every float64 exactly.
  read -r loss gradient < <(awk -v x="$x" -v y="$y" 'BEGIN {
    a = 1 - x; t = y - x*x
    printf "%.17g [%.17g,%.17g]\n", a*a + 100*(t*t), -2*a - 400*x*t, 200*t }')
  read -r step chain stop x y < <(standing -X PUT -H "If-Match: $chain" "$sessions/$name/steps/$((step + 1))" \
    --json "{\"gradient\": $gradient, \"metrics\": {\"loss\": $loss}}")
  echo "$step $loss $x $y"
done
echo "stop $stop"
