#!/bin/sh
# Raises the pool of huge pages by a number, or lowers it; under kvmlaunch's lock, as others may be at it.
set -eu
exec 9>/proc/sys/vm/compact_memory
flock 9
wanted=$(($(cat /proc/sys/vm/nr_hugepages) + $1))
[ "$wanted" -ge 0 ] || wanted=0
echo "$wanted" >/proc/sys/vm/nr_hugepages
