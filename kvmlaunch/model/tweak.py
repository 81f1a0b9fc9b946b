"""A thing to be set within a guest, as cloud-init and the script for guests without it do it."""

from kvmlaunch.model.choice import Choice
from kvmlaunch.model.value import frozen


@frozen(kw_only=True)
class Tweak:
    """One thing to set within a guest.

    `files` are written, each a path and its text; `package` is installed; `unit` is a systemd unit that is enabled and
    started; `command` makes it true at once, `undo` takes that back, both for a POSIX shell.
    """

    name: str
    wanted: Choice[bool]
    files: tuple[tuple[str, str], ...] = ()
    package: str = ""
    unit: str = ""
    command: str = ""
    undo: str = ""
