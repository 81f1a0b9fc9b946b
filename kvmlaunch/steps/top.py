"""`top`: what the running VMs use, looked at again and again; from /proc, /sys and QEMU's own counters."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from attrs import Factory, define

from kvmlaunch.facts.qmp import Query
from kvmlaunch.facts.usage import Counters, Usage, build_counters, build_usage
from kvmlaunch.host.readers import read_text
from kvmlaunch.run.process import read_cmdline, read_start_time
from kvmlaunch.run.qmp import Target, ask_all
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.look import known_names
from kvmlaunch.steps.observe import Seen, monitor_path, observe

BLOCKS: tuple[Query, ...] = (("query-blockstats", {}),)
IFNAME = "ifname="
SECONDS, BRIEFLY = 2.0, 0.1  # that a monitor is waited for


def taps_of(seen: Seen) -> list[str]:
    """Give the taps of a VM, by the argv that it was started with."""
    words = seen.record.argv if seen.record else ()
    options = [option for word in words if word.startswith("tap,") for option in word.split(",")]
    return [option.removeprefix(IFNAME) for option in options if option.startswith(IFNAME)]


def read_network(taps: Sequence[str]) -> tuple[int, int] | None:
    """Give the bytes that a guest received and sent over its taps: what the host sent it, and received of it."""
    found = {
        name: [text for tap in taps if (text := read_text(f"/sys/class/net/{tap}/statistics/{name}"))]
        for name in ("tx_bytes", "rx_bytes")
    }
    received, sent = (sum(int(text) for text in texts if text.strip().isdecimal()) for texts in found.values())
    return (received, sent) if found["tx_bytes"] and found["rx_bytes"] else None


def huge_page_of(seen: Seen) -> int:
    """Give the size in bytes of the pages of a VM's hugetlbfs, 0 where it has none: hugetlbpage.rst."""
    with suppress(OSError):
        return os.statvfs(seen.places.hugepages).f_bsize
    return 0


def read_counters(seen: Seen, blocks: object) -> Counters:
    """Give what a VM has used so far."""

    def read(name: str) -> str:
        return read_text(f"/proc/{seen.pid}/{name}") or ""

    return build_counters(
        stat=read("stat"),
        status=read("status"),
        rollup=read("smaps_rollup"),
        ksm=read("ksm_merging_pages"),
        blocks=blocks,
        network=read_network(taps_of(seen)),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        huge_page=huge_page_of(seen),
    )


def started(pid: int | None) -> int | None:
    """Give when a process started, in clock ticks since boot; None for none, and for one that is gone or a zombie."""
    with suppress(OSError, ValueError):
        return read_start_time(pid) if pid and read_cmdline(pid) else None
    return None


@define(kw_only=True)
class Watch:
    """VMs that are looked at again and again, all where none is named.

    One whose process still runs is not looked up anew: that is most of what a look costs.
    """

    caller: Caller
    names: Sequence[str]
    known: dict[str, tuple[Seen, int]] = Factory(dict)
    silent: dict[int, float] = Factory(dict)  # by the pid of a QEMU that did not answer: how long it is waited for next

    def live(self) -> list[Seen]:
        """Give those that run."""
        before, self.known = self.known, {}
        for name in self.names or known_names(self.caller):
            seen, start = before.get(name, (None, None))
            if seen is None or started(seen.pid) != start:
                seen = observe(self.caller, name)
                start = started(seen.pid)
            if start is not None:
                self.known[name] = (seen, start)
        return [seen for seen, _ in self.known.values()]


def look(watch: Watch) -> dict[tuple[str, int], Counters]:
    """Give the counters of VMs by name and pid; all monitors are asked at once.

    One that was silent at the last look is waited for briefly, as it would hold up every look, then longer each time.
    """
    seen = watch.live()
    silent = [each for each in seen if each.pid in watch.silent]
    patience = max((watch.silent[each.pid or 0] for each in silent), default=0.0)
    answers = {**asked([each for each in seen if each not in silent], SECONDS), **asked(silent, patience)}
    watch.silent = {
        pid: min(SECONDS, 2 * watch.silent.get(pid, BRIEFLY / 2)) for pid, answer in answers.items() if answer is None
    }
    return {(each.name, each.pid or 0): read_counters(each, answers[each.pid or 0]) for each in seen}


def asked(seen: Sequence[Seen], seconds: float) -> dict[int, object]:
    """Give what the monitors of VMs say of their disks by pid, None for one that does not answer in time."""
    targets = [Target(path=monitor_path(each), pid=each.pid) for each in seen]
    answers = ask_all(targets, BLOCKS, seconds=seconds) if targets else []
    return {
        each.pid or 0: answer[0] if isinstance(answer, list) else None
        for each, answer in zip(seen, answers, strict=True)
    }


def usages(caller: Caller, words: Sequence[str], seconds: float) -> Iterator[Mapping[str, Usage]]:
    """Give what VMs use, all that run where none is named, every so many seconds; the first time after as long."""
    ticks = os.sysconf("SC_CLK_TCK")
    watch = Watch(caller=caller, names=words)
    before, begun = look(watch), time.monotonic()
    while True:
        time.sleep(seconds)
        after, now = look(watch), time.monotonic()
        yield {
            name: build_usage(before[name, pid], counters, now - begun, ticks)
            for (name, pid), counters in after.items()
            if (name, pid) in before
        }
        before, begun = after, now
