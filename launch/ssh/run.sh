#!/usr/bin/env bash
# One process of a run on each host of a file:   launch/ssh/run.sh [--shards] HOSTS_FILE COMMAND...
# A line is what ssh takes ([user@]host); # begins a comment. The first host's name must lead to it from all of them.
# With --shards they do not join: each finds its part in FIAT_PROCESS_ID of FIAT_NUM_PROCESSES.
#
#   FIAT_DIRECTORY   where the command runs, the same on all hosts (the directory that you are in)
#   FIAT_PORT        the port of process 0 that the others must reach (8476)
#   FIAT_SSH         ssh with options of your own (ssh)
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
joined=1
if [[ ${1:-} == --shards ]]; then joined=0 && shift; fi
if (($# < 2)) || [[ ! -r $1 ]]; then
  echo "usage: $0 [--shards] HOSTS_FILE COMMAND..." >&2
  exit 2
fi
mapfile -t hosts < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$1")
if ((${#hosts[@]} == 0)); then
  echo "$1 names no host" >&2
  exit 2
fi
shift
coordinator=${hosts[0]#*@}:${FIAT_PORT:-8476}
directory=${FIAT_DIRECTORY:-$PWD}
child=$(<"$here/child.sh")
read -ra ssh <<<"${FIAT_SSH:-ssh}"
reach() {
  "${ssh[@]}" -T -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15 -o ServerAliveCountMax=4 "$1" "bash -c $(quoted "$2")"
}
# shellcheck source=launch/processes.sh
source "$here/processes.sh"
run_all "$@"
