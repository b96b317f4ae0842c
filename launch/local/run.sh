#!/usr/bin/env bash
# Several processes of one run on this machine:   launch/local/run.sh [--shards] COUNT COMMAND...
# With --shards they do not join: each finds its part in FIAT_PROCESS_ID of FIAT_NUM_PROCESSES.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
joined=1
if [[ ${1:-} == --shards ]]; then joined=0 && shift; fi
if (($# < 2)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 [--shards] COUNT COMMAND..." >&2
  exit 2
fi
mapfile -t hosts < <(yes localhost | head -n "$1")
shift
coordinator=127.0.0.1:${FIAT_PORT:-8476}
directory=$PWD
child=$(<"$here/child.sh")
reach() { bash -c "$2"; }
# shellcheck source=launch/processes.sh
source "$here/processes.sh"
run_all "$@"
