#!/usr/bin/env bash
# A Slurm of one node, this machine, for tests and for trying things out: all it writes lies in one folder.
#   tests/engines/slurm.sh start FOLDER      then: export SLURM_CONF=FOLDER/slurm.conf; sinfo
#   tests/engines/slurm.sh stop FOLDER
# Needs Debian's packages slurm-wlm and munge (apt-get install --no-install-recommends slurm-wlm munge).
set -euo pipefail
PATH=$PATH:/usr/sbin
folder=$(mkdir -p "$2" && cd "$2" && pwd)

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start() {
    local host user cores memory
    host=$(hostname -s) user=$(id -un) cores=$(getconf _NPROCESSORS_ONLN) memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    mkdir -p "$folder"/{state,spool,log}
    # Its own authentication, so that no system service need run.
    (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed"
    cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=5
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    slurmd
    for _ in $(seq 100); do
        sinfo --noheader --format=%t 2> /dev/null | grep -q idle && return
        sleep 0.2
    done
    echo "the node did not come up; see $folder/log" >&2
    stop
    exit 1
}

stop() {
    export SLURM_CONF=$folder/slurm.conf
    scancel --quiet --user="$(id -un)" 2> /dev/null || true
    for name in slurmd slurmctld munged; do
        [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2> /dev/null || true
    done
}

"$1"
