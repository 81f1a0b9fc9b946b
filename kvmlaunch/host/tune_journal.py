"""The journal of tuning: one file of root's, written before a knob or a file is touched, and after it.

What cannot be read is an error until somebody has looked at it; nothing is ever undone on a guess.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from attrs import define

from kvmlaunch.errors import PreflightFailed, Report
from kvmlaunch.host.files import read_text_at, remove_if_there, write_atomically
from kvmlaunch.host.places import STATE
from kvmlaunch.host.tree import entered
from kvmlaunch.model.tuning import FileEntry, MountEntry, SettingEntry, TuneEntry, VmEntry
from kvmlaunch.model.value import NOTHING, asdict, fields

SCHEMA: Final = "kvmlaunch/tune-journal/1"
NAME: Final = "tune.json"
LARGEST: Final = 16 << 20  # bytes
KINDS: Final[Mapping[str, type[TuneEntry]]] = {
    "setting": SettingEntry,
    "file": FileEntry,
    "mount": MountEntry,
    "vm": VmEntry,
}
WORDS: Final = {kind: word for word, kind in KINDS.items()}
LISTS: Final = ("kept_before",)
MAY_BE_NONE: Final = ("before", "after", "undo_from", "last", "kept", "default")


def render_entries(entries: Iterable[TuneEntry]) -> str:
    """Give the JSON text of the journal."""
    return json.dumps(
        {"schema": SCHEMA, "entries": [{"kind": WORDS[type(entry)], **own_fields(entry)} for entry in entries]},
        indent=1,
    )


def own_fields(entry: TuneEntry) -> dict[str, object]:
    """Give the fields of an entry; the kind of a file beside the kind of the entry."""
    return {("file_kind" if name == "kind" else name): value for name, value in asdict(entry).items()}


def parse_entries(text: str) -> tuple[TuneEntry, ...]:
    """Give the entries of a JSON text; raises ValueError for anything that is none of ours."""
    try:
        document = json.loads(text)
        if document["schema"] != SCHEMA:
            message = "another version of the journal"
            raise ValueError(message)
        return tuple(parse_entry(each) for each in document["entries"])
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"no journal of ours: {error!r}"
        raise ValueError(message) from error


def parse_entry(document: Mapping[str, Any]) -> TuneEntry:
    """Give one entry; raises KeyError, TypeError for a wrong field or type."""
    kind = KINDS[document["kind"]]
    named = {("kind" if name == "file_kind" else name): value for name, value in document.items() if name != "kind"}
    for field in fields(kind):
        if field.name not in named and field.default is not NOTHING:
            continue  # of a release that did not have it
        value = named[field.name]
        if field.name in LISTS and type(value) is list and all(type(each) is str for each in value):
            named[field.name] = tuple(value)
            continue
        wanted: object = field.type if field.type in {int, bool} else str
        if type(value) is not wanted and not (value is None and field.name in MAY_BE_NONE):
            raise TypeError(field.name)
    return kind(**named)


def write_entries(entries: Iterable[TuneEntry]) -> None:
    """Write the journal so that it survives a crash; an empty one is removed.  Raises HostFailed, PreflightFailed."""
    kept = tuple(entries)
    with entered(STATE, 0, make=True) as fd:
        if kept:
            write_atomically(fd, NAME, render_entries(kept))
        else:
            remove_if_there(fd, NAME)


def read_entries() -> tuple[TuneEntry, ...]:
    """Give the journal; raises PreflightFailed `host.journal.unreadable`, as what was before stands in it alone."""
    try:
        with entered(STATE, 0) as fd:
            text, there = read_text_at(fd, NAME, LARGEST), NAME in os.listdir(fd)
    except FileNotFoundError:
        return ()
    if text is None and not there:
        return ()
    try:
        return parse_entries(text or "")
    except ValueError as error:
        place = STATE / NAME
        raise PreflightFailed(
            Report(
                code="host.journal.unreadable",
                message="the journal of tuning cannot be read",
                where=str(place),
                why=f"{error}; what it says of the host before is needed to put it back",
                hint=f"mv {place} {place}.old   # once you have put back by hand what it names",
            )
        ) from error


@define(kw_only=True)
class Ledger:
    """The journal of tuning in hand: every change of it is on disk before this process goes on.

    `boot_id` and `time` are written into new entries.  A `patient` one goes on where its file system takes nothing, as
    what is put back is found to be so the next time; `unwritten` says then why it is not on disk.
    """

    entries: tuple[TuneEntry, ...]
    boot_id: str
    time: str
    write: Callable[[tuple[TuneEntry, ...]], None] = write_entries
    patient: bool = False
    unwritten: Report | None = None

    def find(self, path: str) -> TuneEntry | None:
        """Give what is written down of a path."""
        return next((entry for entry in self.entries if entry.path == path), None)

    def put(self, entry: TuneEntry) -> None:
        """Write an entry down, in the place of an earlier one of its path."""
        if self.find(entry.path) is None:
            self.entries = (*self.entries, entry)
        else:
            self.entries = tuple(entry if each.path == entry.path else each for each in self.entries)
        self.save()

    def save(self) -> None:
        """Write the entries."""
        try:
            self.write(self.entries)
        except PreflightFailed as error:
            if not self.patient or error.report.code != "host.space":
                raise
            self.unwritten = error.report
        else:
            self.unwritten = None

    def replace(self, entries: tuple[TuneEntry, ...]) -> None:
        """Write other entries down in place of all, where they differ."""
        if entries != self.entries:
            self.entries = entries
            self.save()

    def drop(self, path: str) -> None:
        """Take an entry out."""
        self.entries = tuple(entry for entry in self.entries if entry.path != path)
        self.save()

    def restore(self, path: str, earlier: TuneEntry | None) -> None:
        """Write down what stood there before a try that failed."""
        if earlier is None:
            self.drop(path)
        else:
            self.put(earlier)
