"""What the definitions ask of the host: huge pages, merging, ordinary memory."""

from collections.abc import Sequence

from kvmlaunch.model.definition import AUTO, Definition
from kvmlaunch.model.value import frozen
from kvmlaunch.model.wishes import PAGE_SIZES
from kvmlaunch.units import GIB


@frozen(kw_only=True)
class VmWish:
    """What one VM asks of the host; `pages` of `page_size`, 0 with ordinary memory.

    `trust` is its label `trust`, `locked` the bytes that it locks: its memory, and what QEMU itself needs.
    """

    name: str
    page_size: int = 0
    pages: int = 0
    ksm: bool = False
    trust: str = ""
    locked: int = 0


def vm_wish(definition: Definition) -> VmWish:
    """Give what a definition asks of the host, as the builder would: `auto` hugepages give way to KSM and a balloon."""
    memory = definition.memory
    ksm = memory.ksm == "on"
    word = memory.hugepages
    if word is AUTO:
        word = "off" if ksm or memory.balloon == "on" else "2MiB"
    page_size = PAGE_SIZES.get(str(word), 0)
    pages = -(-memory.size // page_size) if page_size else 0
    return VmWish(
        name=definition.name,
        page_size=page_size,
        pages=pages,
        ksm=ksm,
        trust=definition.labels.get("trust", ""),
        locked=memory.size + GIB if memory.lock else 0,
    )


def pages_of(wishes: Sequence[VmWish], page_size: int) -> int:
    """Give how many pages of a size all of them need at once."""
    return sum(wish.pages for wish in wishes if wish.page_size == page_size)


def names_text(names: Sequence[str], most: int = 4) -> str:
    """Give names in a row, the first of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
