#!/usr/bin/env bash
# Rosenbrock's valley with curl and awk, in JSON. Every call may be repeated, so --retry is safe.
set -euo pipefail
export LC_ALL=C # a decimal point, whatever the language
sessions=${1:-${ADAMD_URL:-http://127.0.0.1:8000}}/v1/sessions
name=rosenbrock-curl-$$-$RANDOM
call() { curl --silent --show-error --fail-with-body --retry 10 --retry-max-time 60 --retry-connrefused "$@"; }
numbers() { awk -F '[][,]' '{ print $3, $4 }'; } # of {"step": 1, "parameters": [-1.15, 1.05]}

call --json "{\"name\": \"$name\", \"parameters\": [-1.2, 1.0], \"optimizer\": {\"name\": \"adam\", \"lr\": 0.05}}" \
  -H "Idempotency-Key: $name" "$sessions" >/dev/null
read -r x y < <(call "$sessions/$name/parameters" | numbers)
for step in $(seq 20); do
  # 17 significant digits are enough to say every float64 exactly.
  gradient=$(awk -v x="$x" -v y="$y" 'BEGIN { t = y - x*x; printf "[%.17g, %.17g]", -2*(1 - x) - 400*x*t, 200*t }')
  read -r x y < <(call -X PUT --json "{\"gradient\": $gradient}" "$sessions/$name/steps/$step" | numbers)
  echo "$step $x $y"
done
call -X DELETE "$sessions/$name"
