"""`make bench`: one table of ratios, each from one run with both sides in turn, and the same as JSON.

Root's VMs run in a mount namespace of the bench's own, where /run/kvmlaunch and its kin are empty, so that nothing of
the host's VMs is touched.  Nothing is left behind.
"""

import argparse
import json
import os
import platform
import secrets
import shutil
import subprocess  # noqa: TID253 - unshare is a program
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from attrs import asdict

from tests.bench.commands import measure_commands
from tests.bench.many import can_run, measure_host, measure_status, measure_validate, skipped_status
from tests.bench.measure import ROOT, BenchError, Row, environment, skipped
from tests.bench.peers import measure_native, measure_peers
from tests.bench.starts import GROUP, SCRIPT, Vm, measure_starts

OWN: Final = ("/run/kvmlaunch", "/var/lib/kvmlaunch", "/var/log/kvmlaunch")
LIBVIRT: Final = "/run/libvirt"  # where its embedded driver writes whatever root it is given
INSIDE: Final = "--inside"
TITLES: Final = {
    "a": "commands that end at once",
    "b": "a start, verified",
    "c": "many",
    "d": "what stays",
}


def isolated() -> int | None:
    """Run the bench again in a mount namespace of its own, as root can; None when this is it, or cannot be."""
    if INSIDE in sys.argv or os.geteuid() != 0 or not shutil.which("unshare"):
        return None
    places = (*OWN, LIBVIRT) if shutil.which("virsh") else OWN
    mounts = "; ".join(f"mkdir -p {path}; mount -t tmpfs -o mode=755 tmpfs {path}" for path in places)
    script = f'{mounts}; exec "$@"'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh"]
    again = [sys.executable, "-m", "tests.bench", *sys.argv[1:], INSIDE]
    return subprocess.run([*words, *again], cwd=ROOT, env=environment(), check=False).returncode  # noqa: S603 - our own


def run_parent() -> Path | None:
    """Give the directory of our VMs' run directories; None for a user without a runtime directory."""
    if os.geteuid() == 0:
        return Path("/run/kvmlaunch/vm")
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    return runtime / "kvmlaunch" if runtime.is_dir() else None


def measure_all(home: Path) -> Iterator[Row]:
    """Give every row."""
    token = secrets.token_hex(3)
    yield from measure_commands(home)
    yield measure_native(home)
    parent = run_parent()
    why = can_run() or ("" if parent else "there is no runtime directory: XDG_RUNTIME_DIR")
    if why or parent is None:
        yield skipped(GROUP, "up --paused", SCRIPT, why)
        yield from measure_validate(home)
        yield from measure_host(home)
        yield from skipped_status(why)
        return
    plain = Vm(name=f"bench-{token}", home=home, run=parent / f"bench-{token}", pages=0)
    yield from measure_starts(plain)
    yield from measure_peers(plain)
    yield from measure_validate(home)
    yield from measure_host(home)
    yield from measure_status(home, token)


def milliseconds(seconds: float) -> str:
    """Give a time for people."""
    return f"{seconds * 1000:.0f} ms" if seconds else ""


def cells(row: Row) -> tuple[str, ...]:
    """Give a row of the table."""
    if row.skipped:
        return (row.what, row.against, "skip", row.skipped, "", "", "")
    unit = "" if row.group == "d" else "×"
    mark = {True: "ok", False: "over", None: ""}[row.kept]
    spread = f"{row.least:.1f}–{row.most:.1f}" if unit else ""
    ratio = f"{row.ratio:.1f}{unit}" if unit else f"{row.ratio:.2g}"
    return (row.what, row.against, ratio, spread, milliseconds(row.ours), milliseconds(row.theirs), f"{row.aim} {mark}")


def show(row: Row) -> None:
    """Print a row as soon as it is there."""
    widths = (56, 36, 7, 12, 9, 9, 0)
    sys.stdout.write(
        "  ".join(cell.ljust(width) for cell, width in zip(cells(row), widths, strict=True)).rstrip() + "\n"
    )
    sys.stdout.flush()


def machine() -> dict[str, object]:
    """Give what the numbers depend on."""
    binary = shutil.which("qemu-system-x86_64") or shutil.which("kvm")
    asked = [binary, "--version"] if binary else ["true"]
    version = subprocess.run(asked, capture_output=True, text=True, check=False).stdout  # noqa: S603 - QEMU
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "qemu": version.splitlines()[0] if version else "",
        "root": os.geteuid() == 0,
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--json", default=".cache/bench.json", metavar="PATH", help="where to write the rows")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    wanted = Path(ROOT / parser.parse_args().json)
    again = isolated()
    if again is not None:
        return again
    about = machine()
    sys.stdout.write(f"{about['cpus']} CPUs, Linux {about['kernel']}, Python {about['python']}, {about['qemu']}\n")
    rows: list[Row] = []
    try:
        with tempfile.TemporaryDirectory(prefix="kvmlaunch-bench-") as home:
            for row in measure_all(Path(home)):
                if not rows or rows[-1].group != row.group:
                    sys.stdout.write(f"\n{row.group}  {TITLES[row.group]}\n")
                rows.append(row)
                show(row)
    except BenchError as error:
        sys.stderr.write(f"\nthe bench could not go on: {error}\n")
        return 1
    wanted.parent.mkdir(parents=True, exist_ok=True)
    wanted.write_text(
        json.dumps({"schema": "kvmlaunch/bench/1", **about, "rows": [asdict(row) for row in rows]}, indent=1)
    )
    sys.stdout.write(f"\nwritten to {wanted}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
