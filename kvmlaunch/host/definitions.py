"""Definition files: found by name, read once, and refused when somebody else could have written them."""

import errno
import os
import shlex
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from kvmlaunch.errors import DefinitionInvalid, Misnamed, Report, UnknownVm
from kvmlaunch.model.value import frozen

SUFFIX = ".toml"
LONGEST = (1 << 20) + 1  # one byte beyond what load_definition accepts, so that it is the one who refuses
SYSTEM = Path("/etc/kvmlaunch/vmdefs")
PROFILES = Path(__file__).parent.parent / "define" / "profiles"


@frozen(kw_only=True)
class Trust:
    """Whose files are believed: root's and those of `uids`; an ordinary user believes what he can read.

    `sudo` tells whether root was asked by it, so that a command to paste needs it as well.
    """

    checked: bool
    uids: frozenset[int]
    sudo: bool = False


def search_path(
    written: Iterable[str], environment: Mapping[str, str], home: PurePosixPath, here: PurePosixPath
) -> tuple[Path, ...]:
    """Give the directories that are searched, first hit wins."""
    listed = [part for part in environment.get("KVMLAUNCH_PATH", "").split(":") if part]
    asked = [here / part for part in (*written, *listed)]
    fixed = [here / "vmdefs", home / ".config/kvmlaunch/vmdefs", SYSTEM]
    return tuple(Path(path) for path in (*asked, *fixed))


def find_definition(name: str, places: tuple[Path, ...], *, otherwise: str = "") -> Path:
    """Give the file of a VM's name; raises UnknownVm with the nearest names and the places searched, or Misnamed.

    `otherwise` is what to do where no name is near; a first definition is written unless it says something else.
    """
    for place in places:
        path = place / f"{name}{SUFFIX}"
        if os.path.lexists(path):  # reading a link to nothing tells why it cannot be read
            return path
        refuse_closed((place,), rights=os.X_OK)
    import difflib

    near = difflib.get_close_matches(name, sorted(names_in(places)), n=3)
    meant = f"did you mean {' or '.join(near)}?" if near else ""
    refuse_name(name, meant)
    hint = meant or otherwise or f"kvmlaunch init {name}"
    raise UnknownVm(
        Report(
            code="vm.unknown",
            message=f"there is no VM {name!r}",
            where=", ".join(map(str, places)),
            why=f"no {name}{SUFFIX} in these directories",
            hint=hint,
        )
    )


def refuse_name(name: str, meant: str = "") -> None:
    """Refuse a word that can be no VM's name; raises Misnamed, with what was `meant` or where the names stand."""
    from kvmlaunch.define.rules import check_vm_name  # noqa: PLC0415 - on an error only

    if mistake := check_vm_name(name):
        hint = meant or "kvmlaunch ls   # lists the VMs"
        raise Misnamed(Report(code=mistake.code, message=mistake.message, why=mistake.hint, hint=hint))


def refuse_closed(places: Iterable[Path], *, rights: int = os.R_OK | os.X_OK) -> None:
    """Refuse to take a directory that may not be read for an empty one (`def.path`); the system's own may be root's."""
    for place in places:
        if os.path.isdir(place) and not os.access(place, rights) and place != SYSTEM:
            raise DefinitionInvalid(
                Report(
                    code="def.path",
                    message=f"the definitions in {place} cannot be read",
                    where=str(place),
                    why=os.strerror(errno.EACCES),
                    hint=f"namei -l {shlex.quote(str(place))}   # shows what keeps you out",
                )
            )


def definition_files(places: tuple[Path, ...]) -> dict[str, Path]:
    """Give every definition by name, the first hit of each."""
    found: dict[str, Path] = {}
    for place in places:
        for path in (
            sorted(place.glob(f"*{SUFFIX}")) if os.path.isdir(place) and os.access(place, os.R_OK | os.X_OK) else ()
        ):
            # No editor's lock, no link to nothing, no directory.
            if not path.name.startswith(".") and os.path.isfile(path):
                found.setdefault(path.stem, path)
    return found


def names_in(places: tuple[Path, ...]) -> frozenset[str]:
    """Give the names of all definitions."""
    return frozenset(definition_files(places))


def read_file(path: Path, trust: Trust) -> bytes:
    """Give a definition's bytes; raises DefinitionInvalid `def.path`, `def.untrusted`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        there = shlex.quote(str(path))
        hint = (
            f"namei -l {there}   # shows where it ends" if os.path.lexists(path) else "kvmlaunch ls   # lists the VMs"
        )
        why = error.strerror or ""
        report = Report(code="def.path", message=f"{path} cannot be read", where=str(path), why=why, hint=hint)
        raise DefinitionInvalid(report) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise DefinitionInvalid(
                Report(
                    code="def.path",
                    message=f"{path} is no regular file",
                    where=str(path),
                    hint="name a file that ends in .toml",
                )
            )
        if trust.checked:
            check_trust(path, status, trust)
        return os.read(fd, LONGEST)
    finally:
        os.close(fd)


def check_trust(path: Path, status: os.stat_result, trust: Trust) -> None:
    """Refuse a file, or a directory above it, that somebody else may write; a sticky directory is allowed."""
    refuse_unless_trusted(path, path, status, trust)
    for parent in {*path.absolute().parents, *path.resolve().parents}:
        refuse_unless_trusted(path, parent, parent.stat(), trust)


def trust_hint(file: Path, path: Path, trust: Trust, *, foreign: bool) -> str:
    """Give the command after which root believes a file: of the file itself, or of a directory above it.

    A directory of somebody else's stays his: root gets a copy of the definition where all directories are root's.
    """
    sudo = "sudo " if trust.sudo else ""
    what, there = shlex.quote(str(path)), shlex.quote(f"/etc/kvmlaunch/vmdefs/{file.name}")
    if not foreign:
        return f"{sudo}chmod go-w {what}"
    above = (each for each in file.resolve().parents if each.exists())
    if path == file and all(each.stat().st_uid == 0 for each in above):
        return f"{sudo}chown root: {what} && {sudo}chmod go-w {what}"
    return f"{sudo}install -D -m 0644 {shlex.quote(str(file))} {there}   # then name that file: its paths begin there"


def refuse_unless_trusted(file: Path, path: Path, status: os.stat_result, trust: Trust) -> None:
    """Refuse a definition's file for what it is itself, or for a directory above it."""
    foreign = status.st_uid not in trust.uids | {0}
    open_to_others = status.st_mode & 0o022 and not (path != file and status.st_mode & stat.S_ISVTX)
    if foreign or open_to_others:
        why = f"it belongs to uid {status.st_uid}, mode {status.st_mode & 0o7777:04o}"
        hint = trust_hint(file, path, trust, foreign=foreign)
        raise DefinitionInvalid(
            Report(
                code="def.untrusted",
                message="root does not run what others can write",
                where=str(path),
                why=why,
                hint=hint,
            )
        )


def load_profiles() -> dict[str, str]:
    """Give the texts of the built-in profiles by name."""
    return {path.stem: path.read_text(encoding="utf-8") for path in PROFILES.glob(f"*{SUFFIX}")}


def is_same_file(path: str, other: str) -> bool:
    """Do two paths name one file: by different directories, or by a link."""
    with suppress(OSError):
        return os.path.samefile(path, other)
    return path == other
