#!/bin/sh
# Raises the pool of huge pages by a number, or lowers it; under kvmlaunch's lock, as others may be at it.
set -eu
exec 9</sys/kernel/mm/hugepages
flock 9
echo $(($(cat /proc/sys/vm/nr_hugepages) + $1)) >/proc/sys/vm/nr_hugepages
