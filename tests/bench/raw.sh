#!/bin/sh
# What somebody writes who starts QEMU by hand: start it in the background, wait until its monitor answers.
#
#   raw.sh DIRECTORY PAGES MOUNT QEMU ARGUMENT...
#
# With PAGES above 0 it first raises the pool and mounts hugetlbfs for them, as the same argv needs it.
# DIRECTORY gets the sockets that argv names; the pid is left in DIRECTORY/pid.
set -eu
directory=$1 pages=$2 mount=$3
shift 3
mkdir -p "$directory/log"
if [ "$pages" -gt 0 ]; then
    "$(dirname "$0")/pool.sh" "$pages"
    mkdir -p "$mount"
    mount -t hugetlbfs -o "pagesize=2M,size=$((pages * 2))M,min_size=$((pages * 2))M,mode=0700" hugetlbfs "$mount"
fi
setsid "$@" </dev/null >"$directory/qemu.log" 2>&1 &
echo $! >"$directory/pid"
until [ -S "$directory/qmp.sock" ]; do
    kill -0 $! || { cat "$directory/qemu.log" >&2; exit 1; }
    sleep 0.002
done
socat "UNIX-CONNECT:$directory/qmp.sock" "EXEC:$(dirname "$0")/answer.sh $directory/answer"
grep -q '"status"' "$directory/answer"
