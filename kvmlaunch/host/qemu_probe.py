"""Ask a QEMU binary what it can do, once: the answers are kept by the binary's identity.

A start with no machine (`-M none -S`), all queries on its standard input, quit the last of them.
`qom-list-types` is not asked: it loads every module, and a foreign one can abort QEMU.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kvmlaunch.errors import HostFailed, PreflightFailed, Report
from kvmlaunch.facts import qemu, qemu_cache
from kvmlaunch.model.qemu import OLDEST_VERSION, QemuCaps
from kvmlaunch.model.value import evolve

if TYPE_CHECKING:
    from kvmlaunch.host.command import ToolResult

START = ("-M", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio")
SUFFIXES = {qemu.HELP: ".txt", qemu.BINARY: ".txt"}


def probe_qemu(binary: Path, *, cache: Path | None) -> QemuCaps:
    """Give the capabilities of a binary, from the cache when it is the same file as then.

    `cache` is a directory, which is made; one that cannot be written is gone without, in silence.
    Raises PreflightFailed `qemu.missing` for no such program, `qemu.version` for one that is no QEMU
    or too old.
    """
    identity = identity_of(binary)
    place = (
        cache and cache / f"qemu-{hashlib.sha256(identity[0].encode(errors='surrogateescape')).hexdigest()[:16]}.json"
    )
    known = load_cached(place, identity) if place else None
    if known is None:
        known = parse_probe(binary, capture_answers(binary))
        if place:
            save_cached(place, identity, known)
    return evolve(known, binary=PurePosixPath(binary))


def identity_of(binary: Path) -> tuple[str, int, int, int]:
    """Give real path, size and time of change in nanoseconds of a binary, and the schema of the cache."""
    try:
        real = binary.resolve(strict=True)
        seen = real.stat()
    except (OSError, RuntimeError) as error:
        raise missing(binary, str(getattr(error, "strerror", error))) from error
    if not real.is_file() or not os.access(real, os.X_OK):
        raise missing(binary, "it is no file that you may run")
    return str(real), seen.st_size, seen.st_mtime_ns, qemu_cache.SCHEMA


def load_cached(place: Path, identity: tuple[str, int, int, int]) -> QemuCaps | None:
    """Give what was kept for this identity; None when there is nothing, of another file, or damaged."""
    try:
        kept, caps = parse_kept(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return caps if kept == list(identity) else None


@lru_cache(maxsize=4)
def parse_kept(text: str) -> tuple[object, QemuCaps]:
    """Give the identity of a binary and its capabilities, of a text that was kept; a start looks at it twice."""
    document = json.loads(text)
    return document["identity"], qemu_cache.parse_caps(document["caps"])


def save_cached(place: Path, identity: tuple[str, int, int, int], caps: QemuCaps) -> None:
    """Keep capabilities: written beside and renamed, so that a reader sees all or nothing."""
    document = f'{{"identity":{json.dumps(identity)},"caps":{qemu_cache.render_caps(caps)}}}\n'
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            beside.write_text(document, encoding="utf-8")
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)
    except OSError:
        return


def capture_answers(binary: Path) -> Mapping[str, str]:
    """Give the raw answers of a binary; PreflightFailed when it is missing or no QEMU."""
    help_text = ask(binary, ("-help",), None)
    try:
        version = qemu.parse_help_version(help_text.out)
        if version[:2] < OLDEST_VERSION:
            raise too_old(binary, version)
        replies = ask(binary, START, qemu.render_queries(version))
        answers = qemu.parse_replies(replies.out)
    except ValueError as error:
        raise no_qemu(binary, str(error)) from error
    return {qemu.BINARY: f"{binary}\n", qemu.HELP: help_text.out, **answers}


def ask(binary: Path, arguments: tuple[str, ...], queries: str | None) -> "ToolResult":
    """Give what a binary says; PreflightFailed when it cannot be started or fails."""
    from kvmlaunch.host.command import run_tool  # noqa: PLC0415 - once a binary

    try:
        result = run_tool((str(binary), *arguments), input=queries)
    except HostFailed as error:
        raise missing(binary, error.report.why) from error
    if result.status != 0:
        raise no_qemu(binary, f"{' '.join(arguments)} ended with {result.status}: {result.err.strip()[-400:]}")
    return result


def parse_probe(binary: Path, answers: Mapping[str, str]) -> QemuCaps:
    """Give the capabilities of answers; PreflightFailed when they make no sense."""
    try:
        return qemu.parse_answers(answers)
    except ValueError as error:
        raise no_qemu(binary, str(error)) from error


def save_answers(answers: Mapping[str, str], directory: Path) -> None:
    """Write answers, pruned to what is read of them, a file each."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in qemu.prune_answers(answers).items():
        (directory / f"{name}{SUFFIXES.get(name, '.json')}").write_text(text, encoding="utf-8")


def load_answers(directory: Path) -> Mapping[str, str]:
    """Give saved answers; HostFailed when the directory holds none."""
    names = (qemu.BINARY, qemu.HELP, *qemu.QUERIES, qemu.DEVICES, qemu.TYPES)
    try:
        return {
            name: (directory / f"{name}{SUFFIXES.get(name, '.json')}").read_text(encoding="utf-8") for name in names
        }
    except (OSError, ValueError) as error:
        raise HostFailed(
            Report(
                code="host.facts.unreadable",
                message="the directory holds no saved answers of a QEMU",
                where=str(directory),
                why=error.strerror if isinstance(error, OSError) and error.strerror else str(error),
                hint=f"kvmlaunch facts VM --save {shlex.quote(str(directory.parent))}   # on the host that is meant",
            )
        ) from error


def missing(binary: Path, why: str) -> PreflightFailed:
    """Give the refusal for a binary that is not there or cannot be run."""
    return PreflightFailed(
        Report(
            code="qemu.missing",
            message="QEMU is not installed, or is not where the definition says",
            where=str(binary),
            why=why,
            hint="apt install qemu-system-x86",
        )
    )


def too_old(binary: Path, version: tuple[int, int, int]) -> PreflightFailed:
    """Give the refusal for a QEMU that is too old."""
    found, oldest = (".".join(str(part) for part in parts) for parts in (version, OLDEST_VERSION))
    return PreflightFailed(
        Report(
            code="qemu.version",
            message=f"QEMU {found} is too old: {oldest} or newer is needed",
            where=str(binary),
            why=f"it reports version {found}",
            hint="apt install qemu-system-x86",
        )
    )


def no_qemu(binary: Path, why: str) -> PreflightFailed:
    """Give the refusal for a program that does not answer as QEMU does."""
    return PreflightFailed(
        Report(
            code="qemu.version",
            message="this program is no QEMU that we can ask",
            where=str(binary),
            why=why,
            hint=f"{binary} -version",
        )
    )
