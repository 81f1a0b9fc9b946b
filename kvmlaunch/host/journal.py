"""The journal of host changes: written before a change is made, read after a crash.

One file a VM, `UID-NAME.json`, in a directory of root's with mode 0700.  What cannot be read is put
aside under another name and said; nothing is ever undone on a guess.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import get_args

from kvmlaunch.host.files import read_text_at, remove_if_there, temporary_name, write_atomically
from kvmlaunch.host.places import JOURNAL
from kvmlaunch.host.tree import entered
from kvmlaunch.model.change import (
    Change,
    ChangeOwner,
    DirectoryChange,
    Entry,
    Journal,
    LogMountChange,
    MountChange,
    PoolChange,
    TapChange,
)
from kvmlaunch.model.value import asdict, evolve

SCHEMA = 2
UNREADABLE = ".unreadable"
TEXTS = {"path", "ifname", "bridge"}
COUNTS = ("before", "after", "undo_from", "surplus")
KINDS: dict[str, type[Change]] = {
    "pool": PoolChange,
    "mount": MountChange,
    "log": LogMountChange,
    "directory": DirectoryChange,
    "tap": TapChange,
}
WORDS = {kind: word for word, kind in KINDS.items()}


def file_name(uid: int, vm: str) -> str:
    """Give the journal's file name of a VM."""
    return f"{uid}-{vm}.json"


def render_journal(journal: Journal) -> str:
    """Give the JSON text of a journal."""
    entries = [
        {
            "kind": WORDS[type(entry.change)],
            "change": asdict(entry.change),
            "owner": entry.owner,
            **{name: getattr(entry, name) for name in COUNTS},
        }
        for entry in journal.entries
    ]
    head = {name: getattr(journal, name) for name in ("vm", "uid", "run", "boot_id", "time", "state")}
    return json.dumps({"schema": SCHEMA, **head, "entries": entries}, indent=1)


def parse_journal(text: str) -> Journal:
    """Give the journal of a JSON text; raises ValueError for anything that is none of ours."""
    try:
        document = json.loads(text)
        if document.pop("schema") != SCHEMA:
            message = "another version of the journal"
            raise ValueError(message)
        entries = tuple(
            Entry(
                change=KINDS[each["kind"]](**each["change"]),
                owner=each["owner"],
                before=each["before"],
                after=each["after"],
                undo_from=each["undo_from"],
                surplus=each.get("surplus"),
            )
            for each in document.pop("entries")
        )
        journal = Journal(entries=entries, **document)
        check_journal(journal)
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"no journal of ours: {error!r}"
        raise ValueError(message) from error
    return journal


def check_journal(journal: Journal) -> None:
    """Refuse a journal with a wrong type, a number below zero or an unknown word; raises TypeError, ValueError."""
    counted = [getattr(entry, name) for entry in journal.entries for name in COUNTS]
    values = [value for entry in journal.entries for value in asdict(entry.change).items()]
    texts = [journal.vm, journal.run, journal.boot_id, journal.time]
    texts += [value for name, value in values if name in TEXTS]
    numbers = [value for name, value in values if name not in TEXTS and type(value) is not bool]
    if not all(type(text) is str for text in texts) or type(journal.uid) is not int:
        raise TypeError("a text or the uid has the wrong type")
    if not all(number is None or (type(number) is int and number >= 0) for number in (*counted, *numbers)):
        raise TypeError("a number is none, or is below zero")
    unknown = {entry.owner for entry in journal.entries} - set(get_args(ChangeOwner))
    if unknown or journal.state not in {"intent", "done"}:
        raise ValueError(f"owner {unknown or ''!r} or state {journal.state!r} is unknown")


@contextlib.contextmanager
def journal_directory(*, make: bool = False) -> Iterator[int]:
    """Open the journal's directory; raises FileNotFoundError where there never was one."""
    if make:
        with entered(JOURNAL.parent, 0, make=True):
            pass
    with entered(JOURNAL, 0, make=make, mode=0o700) as fd:
        yield fd


def write_journal(journal: Journal) -> None:
    """Write a VM's journal so that it survives a crash; an empty one is removed."""
    with journal_directory(make=True) as fd:
        name = file_name(journal.uid, journal.vm)
        if journal.entries:
            write_atomically(fd, name, render_journal(journal))
        else:
            remove_if_there(fd, temporary_name(name))
            remove_if_there(fd, name)


def read_boot_id() -> str:
    """Give the id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def read_journal(uid: int, vm: str) -> Journal | None:
    """Give a VM's journal, None when there is none of this boot: the changes of another died with it.

    An unreadable one is put aside, and a void one removed.
    """
    try:
        with journal_directory() as fd:
            journal = read_one(fd, file_name(uid, vm))
            if journal is not None and journal.boot_id != read_boot_id():
                remove_if_there(fd, file_name(uid, vm))
                return None
            return journal
    except FileNotFoundError:
        return None


def read_one(directory_fd: int, name: str) -> Journal | None:
    """Give one journal; one that cannot be parsed is renamed to `NAME.unreadable`, or with a number behind it."""
    text = read_text_at(directory_fd, name)
    if text is None:
        return None
    try:
        return parse_journal(text)
    except ValueError:
        taken = set(os.listdir(directory_fd))
        free = (f"{name}{UNREADABLE}{number or ''}" for number in itertools.count())
        aside = next(each for each in free if each not in taken)
        os.rename(name, aside, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        return None


def unreadable_journals() -> tuple[PurePosixPath, ...]:
    """Give the journals that were put aside: what they say was taken of the host is not given back by itself."""
    try:
        with journal_directory() as fd:
            return tuple(JOURNAL / name for name in sorted(os.listdir(fd)) if f".json{UNREADABLE}" in name)
    except FileNotFoundError:
        return ()


def read_all_journals() -> tuple[Journal, ...]:
    """Give every journal, in the order of their names."""
    try:
        with journal_directory() as fd:
            names = sorted(name for name in os.listdir(fd) if name.endswith(".json") and not name.startswith("."))
            return tuple(journal for name in names if (journal := read_one(fd, name)))
    except FileNotFoundError:
        return ()


def replaced(journal: Journal, entry: Entry, by: Entry | None) -> Journal:
    """Give a journal with another entry in the place of one; None takes it out."""
    kept = tuple(by if each is entry else each for each in journal.entries)
    return evolve(journal, entries=tuple(each for each in kept if each is not None))
