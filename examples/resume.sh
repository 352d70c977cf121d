#!/usr/bin/env bash
# A run that survives, with curl and awk: killed and started again, it goes on where it was; it logs its loss, and stops
# by a rule.
#
# examples/resume.sh http://127.0.0.1:8000 run-7
set -euo pipefail
export LC_ALL=C # a decimal point, whatever the language
sessions=$1/v1/sessions name=$2

# One call. What got no answer, 408, 429 or 503 is sent again for a minute: a step has a number, the creation a key.
# (curl's own --retry does not repeat what broke in the middle, and its --retry-all-errors repeats every refusal.)
call() {
  local until=$((SECONDS + 60)) told told_all
  while :; do
    told_all=yes
    told=$(curl --silent --max-time 30 --write-out '\n%{http_code} %header{adamd-step} %header{etag} %header{adamd-stop}' "$@") || told_all=no
    body=${told%$'\n'*}
    read -r code step chain stop <<<"${told##*$'\n'}"
    case $told_all$code in yes408 | yes429 | yes503 | no*) ((SECONDS < until)) || return 0 ;; *) return 0 ;; esac
    sleep "0.$((RANDOM % 9 + 1))"
  done
}

# Ends the program where the last call was refused; else sets x and y from {"step": 1, "parameters": [-1.15, 1.05]}.
parameters() {
  if [ "$code" != 200 ]; then
    echo "status $code: $body" >&2
    exit 1
  fi
  read -r x y < <(awk -F '[][,]' '{ print $3, $4 }' <<<"$body")
}

call --json '{"name": "'"$name"'", "parameters": [-1.2, 1.0],
  "optimizer": {"name": "adam", "lr": 0.3, "stop": {"target_loss": 0.1, "max_steps": 1000}}}' \
  -H "Idempotency-Key: $name-$$-$RANDOM" "$sessions" # a 409 session_exists: this run has begun already
call "$sessions/$name/parameters"
parameters
while [ -z "$stop" ]; do
  # 17 significant digits are enough to say every float64 exactly.
  read -r loss gradient < <(awk -v x="$x" -v y="$y" 'BEGIN {
    a = 1 - x; t = y - x*x
    printf "%.17g [%.17g,%.17g]\n", a*a + 100*(t*t), -2*a - 400*x*t, 200*t }')
  call -X PUT -H "If-Match: $chain" --json "{\"gradient\": $gradient, \"metrics\": {\"loss\": $loss}}" \
    "$sessions/$name/steps/$((step + 1))"
  parameters
  echo "$step $loss $x $y"
done
echo "stop $stop"
