"""What a qcow2 image costs: the cache of its L2 tables, and the allocation of its clusters.

Sources: QEMU docs/qcow2-cache.txt; docs/interop/qcow2; measured, kvmlaunch docs, performance.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from kvmlaunch.builder.option import field
from kvmlaunch.model.choice import MEASURED, Choice, Origin
from kvmlaunch.model.definition import THIN_PROFILES
from kvmlaunch.model.finding import Finding, warning
from kvmlaunch.model.host import PathFacts
from kvmlaunch.model.plan import Field
from kvmlaunch.model.qemu import QemuCaps
from kvmlaunch.units import GIB, MIB, render_rounded

DISCARD_NO_UNREF, FIRST_KEEPING = "discard-no-unref", 3
ENTRY = 8  # bytes of an L2 entry; twice that with subclusters
DEFAULT_CACHE = 32 * MIB  # of QEMU on Linux
LARGEST_CACHE = 256 * MIB  # memory of the host that one disk may take: 2 TiB at 64 KiB clusters
WORTH_SAYING = GIB
CACHE_SOURCE = "QEMU docs, qcow2-cache.txt; measured: a cache too small read holes 30 times slower"
ALLOCATION = "4 KiB writes to clusters that are not there yet: 6 to 12 k IOPS, raw 24 to 65 k; alike once allocated"


def tables_size(facts: PathFacts) -> int:
    """Give the bytes of all L2 tables of an image, 0 where its header was not read."""
    if not facts.cluster_size:
        return 0
    clusters = -(-facts.virtual_size // facts.cluster_size)
    return clusters * ENTRY * (2 if facts.extended_l2 else 1)


def plan_l2_cache(table: str, path: PurePosixPath, facts: PathFacts) -> Choice[int] | None:
    """Choose l2-cache-size in bytes where QEMU's default does not cover the image; None leaves the default."""
    need = tables_size(facts)
    if need <= DEFAULT_CACHE:
        return None
    whole = -(-need // facts.cluster_size) * facts.cluster_size
    value = min(whole, LARGEST_CACHE)
    reason = f"the L2 tables of {render_rounded(facts.virtual_size)} have {render_rounded(need)}, QEMU's cache 32MiB"
    if whole > LARGEST_CACHE:
        covered = LARGEST_CACHE * facts.virtual_size // need
        reason += (
            f"; {render_rounded(LARGEST_CACHE)} are the most that one disk gets, enough for {render_rounded(covered)}"
        )
    origin = Origin(kind="host", place=f"the header of {path}", key=f"{table}.l2_cache")
    return Choice(value=value, reason=reason, source=CACHE_SOURCE, origin=origin)


def plan_no_unref(facts: PathFacts, caps: QemuCaps, *, trims: bool) -> Choice[bool] | None:
    """Choose to keep the place of trimmed clusters where this QEMU can, and the image: from version 3 of qcow2 on."""
    if not trims or facts.qcow2_version < FIRST_KEEPING or DISCARD_NO_UNREF not in caps.qcow2:
        return None
    return Choice(
        value=True,
        reason="a trimmed cluster is freed and keeps its place, so that the image does not fragment over the years",
        source="QEMU man page, -blockdev qcow2 discard-no-unref",
        origin=Origin(kind="qemu", place="query-qmp-schema", key="disk"),
    )


def is_allocated(facts: PathFacts) -> bool:
    """Has every cluster its place: with preallocated metadata the file is as long as the disk."""
    return facts.size >= facts.virtual_size


def explain_rows(table: str, path: PurePosixPath, facts: PathFacts) -> Iterator[Field]:
    """Give what the image costs beside raw or LVM, for `explain`."""
    if not facts.cluster_size:
        return
    origin = Origin(kind="host", place=f"the header of {path}", key=f"{table}.qcow2")
    if facts.backing:
        state, reason = "overlay", "what is written is first copied from the backing file, by subcluster or cluster"
    elif is_allocated(facts):
        state, reason = "metadata allocated", "as fast as raw or LVM once written; kept: growth, snapshots"
    else:
        state, reason = "allocates as it grows", f"{ALLOCATION}; kvmlaunch disk convert, or preallocation"
    yield field("", f"{table}.qcow2", Choice(value=state, reason=reason, source=MEASURED, origin=origin))
    if plan_l2_cache(table, path, facts) is None:
        need = tables_size(facts)
        covers = f"QEMU's default covers the {render_rounded(need)} of L2 tables"
        place = Origin(kind="host", place=origin.place, key=f"{table}.l2_cache")
        cache = Choice(value=DEFAULT_CACHE, reason=covers, source=CACHE_SOURCE, origin=place)
        yield field("", f"{table}.l2_cache", cache)


def check_allocation(
    table: str, path: PurePosixPath, facts: PathFacts, *, vm: str, profile: str, readonly: bool
) -> Iterator[Finding]:
    """Advise where writes will have to allocate (`disk.qcow2.unallocated`); thin by intent is not spoken of."""
    thin = profile in THIN_PROFILES or readonly or facts.backing
    if thin or not facts.cluster_size or facts.virtual_size < WORTH_SAYING or is_allocated(facts):
        return
    disk, whole = f"{vm}:{table.removeprefix('disk.')}", path.with_name(f"{path.stem}-whole.qcow2")
    yield warning(
        code="disk.qcow2.unallocated",
        message=f"{path.name} allocates its clusters as the guest writes",
        key=f"{table}.path",
        why=ALLOCATION,
        hint=f"kvmlaunch disk convert {disk} {whole}   # with its metadata in place",
    )
