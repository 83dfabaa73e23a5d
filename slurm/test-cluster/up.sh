#!/bin/bash
# A private one-node Slurm for tests:  slurm/test-cluster/up.sh DIRECTORY
# As root, without systemd and without touching a Slurm that runs already: own munge key and socket, own ports, everything in DIRECTORY.
# Then `export SLURM_CONF=DIRECTORY/slurm.conf`, sbatch, …, and slurm/test-cluster/down.sh DIRECTORY.
set -euo pipefail
PATH=$PATH:/usr/sbin:/usr/local/sbin

die() { echo "test-cluster: $*" >&2; exit 1; }

[ $# = 1 ] || die "usage: up.sh DIRECTORY"
[ "$(id -u)" = 0 ] || die "must be root (slurmd starts the jobs of other users)"
for program in munged slurmctld slurmd sinfo; do
  command -v $program >/dev/null || die "$program is not installed (Debian: slurmctld slurmd slurm-client munge)"
done
mkdir -p "$1"
directory=$(realpath "$1")
[ ${#directory} -le 80 ] || die "the directory's name is too long for a socket: $directory"
[ ! -e "$directory/slurm.conf" ] || die "$directory holds a cluster already (down.sh first)"
mkdir -p "$directory"/{state,spool,log,munge}
chmod 711 "$directory" "$directory/munge" # jobs of all users must reach the munge socket

host=$(hostname -s)
cores=$(nproc)
[ "$cores" -ge 4 ] || cores=4 # more tasks than cores are fine in a test
memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)

# two free ports, from a start that differs between directories
free_ports=()
port=$((20000 + $(cksum <<<"$directory" | cut -d' ' -f1) % 10000))
while [ ${#free_ports[@]} -lt 2 ]; do
  (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || free_ports+=("$port")
  port=$((port + 1))
done

(umask 077; head -c 1024 /dev/urandom >"$directory/munge/key")
munged --force --num-threads=2 --key-file="$directory/munge/key" --socket="$directory/munge/socket" \
  --pid-file="$directory/munged.pid" --log-file="$directory/log/munged.log" --seed-file="$directory/munge/seed"

cat >"$directory/slurm.conf" <<CONF
ClusterName=hpchess
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$directory/munge/socket
CredType=cred/munge
SlurmctldPort=${free_ports[0]}
SlurmdPort=${free_ports[1]}
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmctldLogFile=$directory/log/slurmctld.log
SlurmdLogFile=$directory/log/slurmd.log
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
MpiDefault=none
KillWait=10
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores Sockets=1 CoresPerSocket=$cores ThreadsPerCore=1 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=01:00:00 State=UP
CONF

# slurmd wants a cgroup file system, which containers may lack; it can be told not to from 23.11 on
version=$(slurmctld -V | sed 's/[^0-9]*//')
if [ "$(printf '%s\n' 23.11 "$version" | sort -V | head -n 1)" = 23.11 ]; then echo 'CgroupPlugin=disabled' >"$directory/cgroup.conf"; fi

export SLURM_CONF=$directory/slurm.conf
slurmctld -c -f "$SLURM_CONF" || true # what went wrong is in the log, shown below
slurmd -c -f "$SLURM_CONF" || true
for _ in $(seq 100); do
  if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
    echo "export SLURM_CONF=$SLURM_CONF"
    exit 0
  fi
  sleep 0.1
done
tail -n 20 "$directory"/log/*.log >&2
"$(dirname "${BASH_SOURCE[0]}")/down.sh" "$directory"
die "the node did not come up within 10 s"
