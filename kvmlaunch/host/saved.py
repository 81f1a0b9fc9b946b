"""A capture as a directory: `files/` mirrors the host, `probes.json` holds the rest."""

import json
import os
import shlex
from pathlib import Path

from kvmlaunch.errors import HostFailed, Report
from kvmlaunch.facts.sources import Captured
from kvmlaunch.host.tree import failed

SCHEMA = "kvmlaunch/capture/1"
PROBES = "probes.json"
FILES = "files"


def save_capture(captured: Captured, directory: Path) -> None:
    """Write a capture; an earlier one in this directory is replaced.

    Raises PreflightFailed `host.space`, HostFailed.
    """
    try:
        write_capture(captured, directory)
    except OSError as error:
        raise failed(error.filename or str(directory), error) from error


def write_capture(captured: Captured, directory: Path) -> None:
    """Write a capture; raises OSError."""
    earlier = load_capture(directory) if (directory / PROBES).exists() else Captured()
    for path in earlier.files.keys() - captured.files.keys():
        mirror_of(directory, path).unlink(missing_ok=True)
    for path, text in captured.files.items():
        place = mirror_of(directory, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(os.fsencode(text))
    document = {"schema": SCHEMA, "probes": captured.probes}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PROBES).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def mirror_of(directory: Path, path: str) -> Path:
    """Give the place of a host's file in a capture."""
    return directory / FILES / path.lstrip("/")


def load_capture(directory: Path) -> Captured:
    """Give a saved capture; HostFailed when the directory holds none."""
    try:
        document = json.loads((directory / PROBES).read_text(encoding="utf-8"))
    except OSError as error:
        raise no_capture(directory, f"{PROBES} in it: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise no_capture(directory, f"{PROBES} in it is no JSON: {error}") from error
    match document:
        case {"schema": str(schema), "probes": {**probes}} if schema == SCHEMA:
            return Captured(
                files=load_mirror(directory / FILES), probes={str(name): probe for name, probe in probes.items()}
            )
        case _:
            raise no_capture(directory, f"{PROBES} is not of the schema {SCHEMA}")


def load_mirror(mirror: Path) -> dict[str, str]:
    """Give the texts of a mirrored tree by their path on the host."""
    places = (place for place in sorted(mirror.rglob("*")) if place.is_file())
    return {f"/{place.relative_to(mirror)}": os.fsdecode(place.read_bytes()) for place in places}


def no_capture(directory: Path, why: str) -> HostFailed:
    """Give the error for a directory that holds no capture."""
    return HostFailed(
        Report(
            code="host.facts.unreadable",
            message="the directory holds no saved facts",
            where=str(directory),
            why=why,
            hint=f"kvmlaunch facts VM --save {shlex.quote(str(directory))}   # on the host that is meant",
        )
    )
