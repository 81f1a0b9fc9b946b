"""The names of what lies in a VM's run directory; none stands anywhere else."""

from typing import Final

RECORD: Final = "record.json"
PREPARED: Final = "prepared"
STOPPING: Final = "stopping"
QMP: Final = "qmp.sock"
QMP_OWN: Final = "qmp-own.sock"
EVENTS: Final = "events.sock"
EVENTS_LOG: Final = "events.log"  # in LOG while the VM runs; beside the record what is kept of it
CONSOLE: Final = "console.sock"
CONSOLE_OWN: Final = "tty-own.sock"
VNC: Final = "vnc.sock"
AGENT: Final = "qga.sock"
TPM: Final = "tpm.sock"
SHARE: Final = "share-"  # begins the sockets of shares, one a share
SOCKET: Final = ".sock"
NOTE: Final = ".pid"  # behind a socket's name: who serves it beside QEMU
LOG: Final = "log"  # a directory
CONSOLE_LOG: Final = "console.log"
QEMU_LOG: Final = "qemu.log"
