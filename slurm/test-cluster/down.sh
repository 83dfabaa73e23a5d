#!/bin/bash
# Stop the private Slurm of up.sh and its jobs:  slurm/test-cluster/down.sh DIRECTORY
# The logs stay in DIRECTORY/log; slurm.conf goes, so up.sh can start again there.
set -uo pipefail
PATH=$PATH:/usr/sbin:/usr/local/sbin

[ $# = 1 ] || { echo "usage: down.sh DIRECTORY" >&2; exit 1; }
directory=$(realpath "$1")
export SLURM_CONF=$directory/slurm.conf
if [ -e "$SLURM_CONF" ] && [ -s "$directory/slurmctld.pid" ]; then
  timeout 10 scancel --quiet --user="$(id -un)"
  for _ in $(seq 100); do
    [ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ] || break
    sleep 0.1
  done
fi

# runs PID DAEMON: whether that process is such a daemon (a zombie has no executable)
runs() { [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "$2" ] && readlink "/proc/$1/exe" >/dev/null; }

# end DAEMON: by its pid file; SIGKILL after 5 s
end() {
  local pid signal
  pid=$(cat "$directory/$1.pid" 2>/dev/null) || return 0
  for signal in TERM KILL; do
    runs "$pid" "$1" || return 0
    kill -"$signal" "$pid"
    for _ in $(seq 100); do
      runs "$pid" "$1" || return 0
      sleep 0.05
    done
  done
}
for daemon in slurmd slurmctld munged; do end $daemon; done
rm -rf "$directory"/slurm.conf "$directory"/state "$directory"/spool "$directory"/munge "$directory"/*.pid
