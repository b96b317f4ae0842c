#!/usr/bin/env bash
# One process of a run. When standard input ends, which it does when the launcher stops or is gone, the process gets
# SIGTERM, saves and ends; after FIAT_GRACE seconds it is killed.
exec 3<&0
"$@" </dev/null 3<&- &
process=$!
trap 'kill -TERM "$process" 2>/dev/null' TERM HUP
{
  cat <&3
  kill -TERM "$process"
  for ((second = 0; second < ${FIAT_GRACE:-90}; second++)); do sleep 1 && kill -0 "$process" || exit; done
  kill -KILL "$process"
} >/dev/null 2>&1 &
watcher=$!
exec 3<&-
while
  wait "$process"
  code=$?
  kill -0 "$process" 2>/dev/null # a signal to this shell ends `wait`, not the process
do :; done
kill "$watcher" 2>/dev/null
exit "$code"
