#!/usr/bin/env bash
# A TPU slice by queued resources:   launch/tpu_pod/tpu.sh up | setup | run COMMAND... | stop | down
#
#   FIAT_TPU           its name (fiat)
#   FIAT_ZONE          where (us-west4-a)
#   FIAT_ACCELERATOR   what (v5litepod-16)
#   FIAT_RUNTIME       the image of its hosts (v2-alpha-tpuv5-lite)
#   FIAT_SPOT          1: spot capacity, which may be taken away (0)
#   FIAT_SHARE         HOST:/NAME of the NFS share that becomes /mnt/fiat on all hosts
#   FIAT_RESTARTS      how often a run is begun again after an interruption (20)
set -euo pipefail
tpu=${FIAT_TPU:-fiat}
zone=--zone=${FIAT_ZONE:-us-west4-a}
restarts=${FIAT_RESTARTS:-20}
stopped=0

on_all() { gcloud compute tpus tpu-vm ssh "$tpu" "$zone" --worker=all --command="$1"; }

state() { gcloud compute tpus queued-resources describe "$tpu" "$zone" --format='value(state.state)'; }

up() {
  local spot=() now
  if [[ ${FIAT_SPOT:-0} == 1 ]]; then spot=(--spot); fi
  gcloud compute tpus queued-resources create "$tpu" "$zone" --node-id="$tpu" \
    --accelerator-type="${FIAT_ACCELERATOR:-v5litepod-16}" --runtime-version="${FIAT_RUNTIME:-v2-alpha-tpuv5-lite}" "${spot[@]}"
  until now=$(state) && [[ $now == ACTIVE ]]; do
    if [[ $now == FAILED || $now == SUSPEND* ]]; then
      echo "$tpu is $now; see: gcloud compute tpus queued-resources describe $tpu $zone" >&2
      exit 1
    fi
    echo "$tpu is $now" >&2
    sleep "${FIAT_POLL:-30}"
  done
}

# setup: this checkout's last commit, its environment, and the share, on every host
setup() {
  local archive
  : "${FIAT_SHARE:?is HOST:/NAME of the NFS share}"
  archive=$(mktemp --suffix=.tgz)
  git -C "$(dirname "${BASH_SOURCE[0]}")/../.." archive --format=tgz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$tpu:fiat.tgz" "$zone" --worker=all
  rm "$archive"
  on_all "set -e
    mkdir -p fiat && tar -xzf fiat.tgz -C fiat && cd fiat
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
    python3 -m uv pip install --quiet -c requirements.lock -e '.[tpu]'
    sudo apt-get install -qq -y nfs-common >/dev/null
    sudo mkdir -p /mnt/fiat
    mountpoint -q /mnt/fiat || sudo mount '$FIAT_SHARE' /mnt/fiat
    sudo chmod 1777 /mnt/fiat && mkdir -p /mnt/fiat/logs"
}

# run COMMAND...: one process a host, in /mnt/fiat; each host's output also goes to /mnt/fiat/logs/HOST.log
run() {
  local command try status session
  command="set -o pipefail; source fiat/.venv/bin/activate && cd /mnt/fiat &&
    { FIAT_DISTRIBUTED=auto $(printf '%q ' "$@")2>&1 | tee -a logs/\$(hostname).log; }"
  trap 'stopped=1; stop' TERM INT
  for ((try = 0; ; try++)); do
    on_all "$command" &
    session=$!
    # a signal to this script ends `wait`, and not the session, which ends when the run has saved
    until
      status=0
      wait "$session" || status=$?
      ! kill -0 "$session" 2>/dev/null
    do :; done
    if ((status == 0 || stopped || try >= restarts)); then exit "$status"; fi
    if [[ $(state) != ACTIVE ]]; then # preempted: gcloud's own status tells nothing of the run
      down
      up
      setup
    elif ((status != 75 && status != 69 && status < 128)); then
      exit "$status"
    else
      stop # where the connection was lost, or one host failed, there may be some left
    fi
    echo "the run begins again ($((try + 1)) of at most $restarts times)" >&2
  done
}

# stop: SIGTERM to the run's processes on all hosts, which save and end with 75; waits until they have
stop() { on_all "pkill -TERM -f '[.]venv/bin/fiat'; while pgrep -f '[.]venv/bin/fiat' >/dev/null; do sleep 1; done"; }

down() { gcloud compute tpus queued-resources delete "$tpu" "$zone" --force --quiet; }

case ${1:-} in
  up | setup | run | stop | down) "$@" ;;
  *) sed -n '2s/^# //p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
