#!/bin/bash
# A real Slurm, with accounting, on this machine for as long as the test runs: the 3 x 3 demo by launcher=submitit_slurm,
# held against a plain run; a training that is told to stop and queued again, to the same bits; and a job that is cancelled under
# a sweep, which has to say so. Ten minutes on two cores.
#   bash tests/slurm/run.sh [FOLDER]       PYTHON=... for another interpreter; FOLDER keeps the results; ONLY=demo, cancel or
#   requeue for one of the three
# Needs root on Debian or Ubuntu (it installs Slurm's own packages where they are missing); else it is skipped, with the reason.
set -euo pipefail
cd "$(dirname "$0")/../.."
repo=$PWD
python=${PYTHON:-python}
skip() { echo "skipped: $1"; exit 0; }

[ "$(id -u)" = 0 ] || skip "starting Slurm's daemons needs root"
"$python" -c "import hydra_plugins.hydra_submitit_launcher" 2> /dev/null || skip "pip install 'backprune[slurm]' first"
packages=(munge slurmctld slurmd slurm-client slurmdbd slurm-wlm-mysql-plugin mariadb-server)
if ! command -v slurmctld slurmd slurmdbd sbatch munged mariadbd > /dev/null; then
  command -v apt-get > /dev/null || skip "there is no Slurm, and no apt-get to install it with"
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" > /dev/null 2>&1 \
    || skip "apt-get could not install ${packages[*]} (apt-get update first?)"
fi

place=$(mktemp -d -t backprune-slurm-XXXXXX)
into=${1:-$place/runs}
export SLURM_CONF=$place/slurm.conf
free() { "$python" -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])"; }
controller=$(free) node=$(free) accounting=$(free) database=$(free)
host=$(hostname -s)

stop() { # what was started here and nothing else, the last first
  if [ -s "$place/slurmctld.pid" ]; then   # a job outlives the daemons
    scancel --quiet --user=root 2> /dev/null || true
    for _ in $(seq 120); do [ -z "$(squeue -h 2> /dev/null)" ] && break; sleep 0.5; done
  fi
  for name in slurmd slurmctld slurmdbd mariadb munged; do
    local pid; pid=$(cat "$place/$name.pid" 2> /dev/null) || continue
    kill "$pid" 2> /dev/null || true
    for _ in $(seq 40); do kill -0 "$pid" 2> /dev/null || break; sleep 0.25; done
  done
  rm -rf "$place"
}
trap stop EXIT
until_ready() { # DESCRIPTION, COMMAND...
  for _ in $(seq 120); do "${@:2}" > /dev/null 2>&1 && return; sleep 0.25; done
  echo "$1 did not start:"; tail -n 5 "$place"/*.log; exit 1
}

cat > "$SLURM_CONF" <<END
ClusterName=backprune
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge.socket
SlurmctldPort=$controller
SlurmdPort=$node
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$accounting
AccountingStoragePass=$place/munge.socket
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SwitchType=switch/none
ReturnToService=2
SchedulerParameters=sched_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) Boards=1 SocketsPerBoard=1 CoresPerSocket=$(nproc) ThreadsPerCore=1 RealMemory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
echo "Name=gpu Count=2 File=$place/gpu[0-1]" > "$place/gres.conf"   # files that stand for two GPUs
touch "$place/gpu0" "$place/gpu1"
mkdir -p "$place/state" "$place/spool"
chmod 755 "$place"
install -m 0600 /dev/stdin "$place/slurmdbd.conf" <<END
AuthType=auth/munge
AuthInfo=socket=$place/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$accounting
SlurmUser=root
LogFile=$place/slurmdbd.log
PidFile=$place/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$database
StorageUser=root
StorageLoc=backprune
END

head -c 1024 /dev/urandom > "$place/munge.key"; chmod 400 "$place/munge.key"
munged --force --key-file="$place/munge.key" --socket="$place/munge.socket" --pid-file="$place/munged.pid" \
  --log-file="$place/munged.log" --seed-file="$place/munge.seed" 2> /dev/null
mariadb-install-db --no-defaults --user=root --datadir="$place/mariadb" > "$place/install.log" 2>&1
mariadbd --no-defaults --user=root --datadir="$place/mariadb" --socket="$place/mariadb.socket" --bind-address=127.0.0.1 \
  --port="$database" --skip-grant-tables --innodb-buffer-pool-size=64M --pid-file="$place/mariadb.pid" > "$place/mariadb.log" 2>&1 &
until_ready MariaDB mariadb --no-defaults -S "$place/mariadb.socket" -e "create database backprune"
slurmdbd
until_ready slurmdbd sacctmgr -n show cluster
sacctmgr -i add cluster backprune > /dev/null 2>&1 || true
slurmctld -i
slurmd
until_ready slurmd bash -c '[ "$(sinfo -h -o %T)" = idle ]'
sinfo

one_core="hydra.launcher.cpus_per_task=1 hydra.launcher.mem_gb=1 hydra.launcher.gpus_per_node=1 hydra.launcher.timeout_min=60"
mkdir -p "$into"
wanted() { [ -z "${ONLY:-}" ] || [ "$ONLY" = "$1" ]; }
if wanted demo; then
LAUNCHER_WORDS=$one_core PYTHON=$python bash "$repo/tests/launchers.sh" "$into" submitit_slurm
fi

if wanted cancel; then
# a job that is cancelled: the others go on, the sweep ends, says so, and the same command runs what is missing
words=(launcher=submitit_slurm attack=none seed=11 threads=1 gate.max_drop=null train.epochs=100 "runs=$into/cancelled" $one_core hydra.launcher.name=cancelled)
log=$into/cancelled.log
"$python" bench/run.py "${words[@]}" defense=none,clp > "$log" 2>&1 & sweep=$!
for _ in $(seq 240); do job=$(squeue -h -r -t RUNNING --name=cancelled -o %i | tail -n 1); [ -n "$job" ] && break; sleep 0.25; done
for _ in $(seq 40); do sacct -n -X -j "$job" -o state | grep -q RUNNING && break; sleep 0.25; done   # else it is waited for for ever
scancel "$job"
status=0; wait "$sweep" || status=$?
for _ in $(seq 1200); do [ -z "$(squeue -h -r --name=cancelled)" ] && break; sleep 0.5; done   # the others go on without it
cells=$(find "$into/cancelled" -name record.json | wc -l)
[ "$status" = 1 ] && [ "$cells" = 1 ] && grep -q "error: a job ended without a result" "$log" \
  || { echo "after scancel $job: exit status $status, $cells cells"; tail -n 5 "$log"; exit 1; }
"$python" bench/run.py "${words[@]}" defense=none,clp >> "$log" 2>&1
[ "$(find "$into/cancelled" -name record.json | wc -l)" = 2 ] || { echo "the same command again did not finish:"; tail -n 5 "$log"; exit 1; }
echo "scancel: said, the other cell kept, and the same command ran the one that was missing"
fi

if wanted requeue; then
# a job that is told to stop (as before its time limit, or when it is preempted): its training is kept, it is queued again by
# itself, goes on, and ends with the same bits as one that nobody stopped
words=(attack=none defense=none seed=12 threads=1 gate.max_drop=null train.epochs=${EPOCHS:-100})
"$python" bench/run.py "${words[@]}" "runs=$into/straight" > "$into/straight.log" 2>&1 || { tail -n 5 "$into/straight.log"; exit 1; }
log=$into/requeued.log
"$python" bench/run.py launcher=submitit_slurm "${words[@]}" checkpoint=0.02 "runs=$into/requeued" $one_core hydra.launcher.name=requeued > "$log" 2>&1 &
sweep=$!
states() { find "$into/requeued/backdoors" -path '*.part/*.safetensors' 2> /dev/null | wc -l; }
for _ in $(seq 1200); do [ "$(states)" -gt 0 ] && break; sleep 0.1; done   # it trains, and keeps its state every second
job=$(squeue -h -r -t RUNNING --name=requeued -o %i)
scancel --signal=USR2 "$job"
for _ in $(seq 240); do squeue -h -r -t PENDING --name=requeued -o %i | grep -q . && break; sleep 0.25; done
kept=$(states)
for _ in $(seq 120); do scontrol update "JobId=$job" StartTime=now 2> /dev/null && break; sleep 0.5; done   # Slurm would wait two minutes
status=0; wait "$sweep" || status=$?
interruptions=$(grep -h '"interruptions"' "$into"/requeued/backdoors/*/*/*/*/card.json | tr -dc 0-9)
[ "$status" = 0 ] && [ "$kept" = 1 ] && [ "$interruptions" = 1 ] && [ "$(sacct -n -X -D -j "$job" | wc -l)" = 2 ] \
  || { echo "after USR2 to $job: exit status $status, $kept states kept, $interruptions interruptions"; tail -n 5 "$log"; exit 1; }
"$python" tests/same_runs.py "$into/straight" "$into/requeued"
echo "queued again: the training was kept, went on, and ended as the one that ran straight on"
fi
