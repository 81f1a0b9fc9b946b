#!/bin/sh
# One conversation with QEMU's monitor on standard input and output: what query-status answers goes into the file $1.
set -eu
read -r greeting
echo '{"execute":"qmp_capabilities"}'
read -r negotiated
echo '{"execute":"query-status"}'
read -r status
echo "$greeting$negotiated$status" >"$1"
