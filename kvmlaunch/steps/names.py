"""Which VM a word of the command line means, and whether there is one: for commands that look at a VM or end it.

They read no definition, so that a VM with a broken or removed one can still be looked at and ended.
"""

import os
from pathlib import Path

from kvmlaunch.host.definitions import SUFFIX, find_definition
from kvmlaunch.steps.caller import Caller


def is_file(word: str) -> bool:
    """Is an argument a file and not a VM's name."""
    return "/" in word or word.endswith(SUFFIX)


def name_of(word: str) -> str:
    """Give the name of the VM that a word means: `FILE.toml` defines the VM of its own name.

    Any other path stays as it is, and is no name: what is ended must be named beyond doubt.
    """
    return Path(word).name.removesuffix(SUFFIX) if word.endswith(SUFFIX) else word


def refuse_unknown(caller: Caller, word: str) -> None:
    """Raise UnknownVm, with the nearest name, for a VM that has no definition and has left nothing on this host."""
    name = name_of(word)
    places = caller.places(name)
    file = word if is_file(word) else caller.file
    if file and name_of(file) == name and os.path.isfile(caller.here / file):
        return
    if any(map(os.path.isdir, (places.run, places.logs))) or is_journalled(caller, name):
        return
    find_definition(name, caller.search, otherwise="kvmlaunch ls")


def is_journalled(caller: Caller, name: str) -> bool:
    """Is something of the host changed for a VM; an ordinary user cannot tell."""
    if caller.uid != 0:
        return False
    from kvmlaunch.host.journal import read_journal  # noqa: PLC0415 - after everything else

    return read_journal(caller.owner_uid, name) is not None
