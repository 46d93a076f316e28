#!/bin/sh
# A gate for CI: ends with 0 where an artifact keeps what it promises on this machine, and with 1 where it does not.
#
#   sh gate.sh ARTIFACT [TOLERANCE] [MODULE:DATA]
#
# TOLERANCE is how much slower than promised still counts as kept (0.25), beyond what the whole machine is slower. A machine
# that is too unquiet for a verdict (4) is asked three times, GATE_PAUSE_S seconds apart; bad input ends with 2.
set -eu

artifact=$1
tolerance=${2:-0.25}
data=${3:-}

for attempt in 1 2 3; do
    status=0
    trimtab verify "$artifact" --tolerance "$tolerance" ${data:+--data "$data"} || status=$?
    [ "$status" -eq 4 ] || exit "$status"
    echo "no verdict in attempt $attempt: the machine is too unquiet" >&2
    sleep "${GATE_PAUSE_S:-30}"
done
exit 4
