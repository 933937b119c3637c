#!/usr/bin/env bash
# A real SLURM of one node on this machine, in a folder of its own: slurm.sh start|stop DIR      (root; Debian, Ubuntu)
# Its commands find it by SLURM_CONF=DIR/slurm.conf.
set -euo pipefail
dir=$(mkdir -p "$2" && realpath "$2") host=$(hostname -s)
start() {
  command -v slurmctld >/dev/null || { apt-get update -q && apt-get install -y -q slurm-wlm munge; } >/dev/null
  mkdir -p "$dir"/{state,spool,log,munge}
  cat >"$dir/slurm.conf" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
KillWait=60
MinJobAge=3600
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  chmod 711 "$dir" && chown -R munge "$dir/munge" && chmod 755 "$dir/munge"
  su -s /bin/bash munge -c "mungekey -c -k $dir/munge/key; munged --key-file=$dir/munge/key --socket=$dir/munge/socket \
    --pid-file=$dir/munge/pid --log-file=$dir/munge/log --seed-file=$dir/munge/seed"
  export SLURM_CONF=$dir/slurm.conf
  slurmctld && slurmd
  for _ in $(seq 60); do
    [ "$(sinfo --noheader --format=%t)" = idle ] && exit 0
    sleep 1
  done
  echo "no node became idle: $(tail -1 "$dir/log/slurmd.log")" >&2
  exit 1
}
stop() {
  for pid in "$dir"/slurmd.pid "$dir"/slurmctld.pid "$dir"/munge/pid; do
    [ ! -f "$pid" ] || kill "$(cat "$pid")" || true
  done
}
"$1"
