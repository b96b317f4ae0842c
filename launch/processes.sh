# shellcheck shell=bash disable=SC2154 # the caller sets what is not set here
# Sourced by local/run.sh and ssh/run.sh: the processes of one run, begun, waited for, and begun again, together.
#
# The caller has set `hosts` (one entry a process) and `coordinator`, and defines `reach HOST SCRIPT`, which runs a
# script there and ends with its status. The rest is settings from the environment:
#
#   FIAT_LOGS       where each process's output goes, INDEX.log (logs)
#   FIAT_RESTARTS   how often all are begun again after one was interrupted, lost or killed (20)
#   FIAT_GRACE      seconds that the others are given after one has failed, and all after SIGTERM (90)
#   FIAT_SETUP      what a shell does before the command, such as `source .venv/bin/activate`

logs=${FIAT_LOGS:-logs}
restarts=${FIAT_RESTARTS:-20}
export FIAT_GRACE=${FIAT_GRACE:-90}
stopped=0

# 75: interrupted, all is saved; 69: another process was lost; 128 + n: ended by signal n; 255: ssh lost the host.
restartable() { (($1 == 75 || $1 == 69 || $1 >= 128)); }

# quoted WORD...: the words as a shell reads them
quoted() { printf '%q ' "$@"; }

# script INDEX COMMAND...: what a shell on the process's host runs
script() {
  local who="FIAT_NUM_PROCESSES=${#hosts[@]} FIAT_PROCESS_ID=$1 FIAT_GRACE=$FIAT_GRACE"
  if ((joined)); then who+=" FIAT_COORDINATOR=$coordinator"; else who+=" FIAT_DISTRIBUTED=off"; fi
  echo "cd $(quoted "$directory") && { ${FIAT_SETUP:-:}; } && exec env $who bash -c $(quoted "$child" child "${@:2}")"
}

# begin INDEX COMMAND...: one process, whose output goes to its log, and for process 0 here as well
begin() {
  local log=$logs/$1.log
  if (($1 == 0)); then
    reach "${hosts[0]}" "$(script "$@")" > >(tee -a "$log") 2>&1
  else
    reach "${hosts[$1]}" "$(script "$@")" >>"$log" 2>&1
  fi
}

# keep: stays for as long as the launcher is there; what reads its output sees the end of it when it is killed
keep() { while kill -0 $$ 2>/dev/null; do sleep 0.5 >/dev/null; done; }

# release: end the standard input of all processes, which stops them
release() { kill "$keeper" 2>/dev/null || true; }

# attempt COMMAND...: all processes once; `status` is 0, or that of the first that failed, where one that starting again
# does not mend comes before those that it does
attempt() {
  local -A running=()
  local index pid code timer=0
  status=0
  exec {line}< <(keep)
  keeper=$!
  for index in "${!hosts[@]}"; do
    begin "$index" "$@" <&"$line" {line}<&- &
    running[$!]=$index
  done
  exec {line}<&-
  while ((${#running[@]})); do
    unset pid
    code=0
    if ((timer)); then wait -n -p pid "${!running[@]}" "$timer" || code=$?; else wait -n -p pid "${!running[@]}" || code=$?; fi
    [[ -n ${pid:-} ]] || continue # a signal to this shell
    if ((pid == timer)); then
      timer=0
      release
      continue
    fi
    index=${running[$pid]}
    unset "running[$pid]"
    ((code)) || continue
    echo "process $index on ${hosts[$index]} ended with status $code; the end of $logs/$index.log:" >&2
    tail -n 5 "$logs/$index.log" >&2
    if ((status == 0)) || { restartable "$status" && ! restartable "$code"; }; then status=$code; fi
    if ((joined && timer == 0)); then
      sleep "$FIAT_GRACE" &
      timer=$!
    fi
  done
  if ((timer)); then kill "$timer" 2>/dev/null; fi
  release
}

# run_all COMMAND...: attempts until one ends well, and the exit status
run_all() {
  local try
  mkdir -p "$logs"
  trap 'stopped=1; release' TERM INT
  for ((try = 0; ; try++)); do
    attempt "$@"
    if ((status == 0 || stopped || try >= restarts)) || ! restartable "$status"; then return "$status"; fi
    echo "all processes begin again ($((try + 1)) of at most $restarts times)" >&2
    sleep 2 &
    wait $! || true
    if ((stopped)); then return "$status"; fi
  done
}
