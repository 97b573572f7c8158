#!/bin/bash
# Starts a Slurm of one host for tests, and stops it again.
#
#   apt-get install --no-install-recommends slurm-wlm munge     # Debian; once, as root
#   tests/slurm/start.sh FOLDER [PORT]                          # as root; PORT and PORT+1 are used (default 16817)
#
# munged, slurmctld and slurmd keep everything they write in FOLDER (state, keys, logs), talk on loopback only, and know
# one partition, "short", with two made-up GPUs. The script prints "ready" and stays until its standard input ends
# (Ctrl-D; in a test, also the end of the test) or it is interrupted; then it stops the three. Meanwhile, in another
# shell:
#
#   export SLURM_CONF=FOLDER/slurm.conf
#   sinfo; mmchar study --slurm --gres gpu:1
set -eu

here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "${1:?give a folder}"
folder=$(cd "$1" && pwd)
port=${2:-16817}
host=$(hostname -s)
[ "$(id -u)" = 0 ] || { echo "start.sh needs root: slurmd starts each job as the user it belongs to" >&2; exit 1; }
for daemon in munged slurmctld slurmd; do
    command -v "$daemon" >/dev/null || { echo "no $daemon: apt-get install slurm-wlm munge" >&2; exit 1; }
done

pids=
stop() {
    trap - EXIT
    squeue -h -o %A 2>/dev/null | sort -u | xargs -r scancel 2>/dev/null || true # no job outlives its Slurm
    for _ in $(seq 100); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.1; done
    kill $pids 2>/dev/null || true
    for _ in $(seq 50); do kill -0 $pids 2>/dev/null || return 0; sleep 0.1; done # they end by themselves
    kill -9 $pids 2>/dev/null || true
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir -p "$folder/state" "$folder/spool"
sed -e "s|@FOLDER@|$folder|" -e "s|@HOST@|$host|" -e "s|@CPUS@|$(nproc)|" \
    -e "s|@CTLD_PORT@|$port|" -e "s|@SLURMD_PORT@|$((port + 1))|" "$here/slurm.conf.in" >"$folder/slurm.conf"
for gpu in 0 1; do [ -e "$folder/gpu$gpu" ] || mknod "$folder/gpu$gpu" c 1 3; done # made-up GPUs: copies of /dev/null
echo "NodeName=$host Name=gpu File=$folder/gpu[0-1]" >"$folder/gres.conf"
export SLURM_CONF=$folder/slurm.conf

(umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
munged --force --foreground --key-file="$folder/munge.key" --socket="$folder/munge.socket" --seed-file="$folder/munge.seed" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --num-threads=2 </dev/null >/dev/null 2>&1 &
pids="$pids $!"
for _ in $(seq 50); do [ -S "$folder/munge.socket" ] && break; sleep 0.1; done
slurmctld -D -c </dev/null >"$folder/slurmctld.log" 2>&1 &
pids="$pids $!"
slurmd -D </dev/null >"$folder/slurmd.log" 2>&1 &
pids="$pids $!"

for _ in $(seq 200); do
    [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && ready=1 && break
    sleep 0.1
done
[ "${ready:-}" ] || { for log in "$folder"/*.log; do echo "$log" >&2; tail -n 5 "$log" >&2; done; exit 1; }
echo ready
cat >/dev/null # until standard input ends
