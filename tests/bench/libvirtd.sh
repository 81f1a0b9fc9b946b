#!/bin/sh
# A libvirtd of the bench's own, with sockets in the directory $1: the first process here runs in namespaces of its own,
# so all that it started is gone once standard input ends.  What it keeps lies in memory, nothing of the host's is seen.
set -eu
for place in /etc/libvirt /run /var/cache /var/lib /var/log; do
    mount -t tmpfs -o mode=755 tmpfs "$place"
done
cat >/etc/libvirt/libvirtd.conf <<CONF
unix_sock_dir = "$1"
auth_unix_rw = "none"
auth_unix_ro = "none"
CONF
# As root, as kvmlaunch without its system user does; without virtlogd and cgroups, which no namespace here would hold.
cat >/etc/libvirt/qemu.conf <<CONF
user = "root"
group = "root"
stdio_handler = "file"
cgroup_controllers = []
CONF
libvirtd &
cat
