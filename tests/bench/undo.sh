#!/bin/sh
# Gives back by hand what raw.sh took: undo.sh PAGES MOUNT.
set -eu
umount "$2"
rmdir "$2"
"$(dirname "$0")/pool.sh" "-$1"
