"""What `doctor` says of a host: what is wrong first, each with its numbers and what mends it."""

import pytest
from attrs import evolve

from kvmlaunch.model.diagnosis import Diagnosis, Trial
from kvmlaunch.model.host import AioFacts, HostFacts, KvmFacts, UserFacts
from kvmlaunch.model.tuning import HostTuning
from kvmlaunch.model.wishes import HostWishes
from kvmlaunch.tune.doctor import diagnose
from kvmlaunch.tune.fleet import VmWish
from kvmlaunch.units import MIB
from tests.tuningbook import host, queue, tuning

pytestmark = pytest.mark.pure

BOOTED = Trial(kernel="/boot/vmlinuz", progressed=True, seconds=1.5)
WEB = VmWish(name="web01", page_size=2 * MIB, pages=512)
ORDINARY = VmWish(name="small")


def examined(
    facts: HostFacts | None = None, found: HostTuning | None = None, vms: tuple[VmWish, ...] = (), trial: Trial = BOOTED
) -> dict[str, Diagnosis]:
    """Give the diagnoses by subject, in order."""
    rows = diagnose(facts or host(pages=512), found or tuning(), HostWishes(), vms, vms, trial)
    return {each.subject: each for each in rows}


def test_a_sound_host_has_nothing_to_mend() -> None:
    found = examined(vms=(WEB,))

    assert {each.verdict for each in found.values()} <= {"ok", "skip"}
    assert all(not each.fix for each in found.values() if each.verdict == "ok")


def test_what_is_wrong_comes_first_and_what_gains_most_before_the_rest() -> None:
    facts = evolve(host(), kvm=KvmFacts(device="missing"))
    found = tuning(devices={"sda": 1}, files=queue("sda", "none", rotational="1"), daemons={"numad": 5})

    order = [(each.verdict, subject) for subject, each in examined(facts, found, (WEB,)).items()]

    assert order[:4] == [
        ("FAIL", "kvm"),
        ("warn", "hugepages 2MiB"),
        ("warn", "scheduler sda"),
        ("warn", "tuned"),
    ]


def test_everything_that_is_wrong_says_why_and_what_mends_it() -> None:
    facts = evolve(
        host(), kvm=KvmFacts(device="denied"), aio=AioFacts(used=60000, most=65536, io_uring_refusal="refused")
    )
    files = {
        **queue("sda", "none", rotational="1"),
        "/proc/cmdline": "elevator=deadline\n",
        "/proc/sys/vm/swappiness": "90\n",
        "/proc/buddyinfo": "Node 0, zone Normal 900000 0 0 0 0 0 0 0 0 0 0\n",
        "/sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]\n",
        "/sys/kernel/mm/ksm/run": "1\n",
    }
    found = tuning(devices={"sda": 1}, files=files, daemons={"tuned": 9})

    wrong = [each for each in examined(facts, found, (WEB, ORDINARY)).values() if each.verdict in {"FAIL", "warn"}]

    assert {each.subject for each in wrong} == {
        "kvm", "hugepages 2MiB", "memory", "thp", "ksm", "scheduler sda", "native aio", "io_uring", "vm.swappiness",
        "tuned", "cmdline",
    }  # fmt: skip
    assert all(each.why and each.fix and each.source for each in wrong)


@pytest.mark.parametrize(("uid", "verdict"), [(0, "ok"), (1000, "warn")])
def test_memory_that_a_user_may_not_lock_is_told_and_root_raises_his_limit(uid: int, verdict: str) -> None:
    facts = evolve(host(), caller_uid=uid, user=UserFacts(uid=uid, gid=uid, name="alice", memlock_hard=8 << 20))

    found = examined(facts, vms=(VmWish(name="locking", locked=3 << 30),))["locked memory"]

    assert found.verdict == verdict
    assert ("alice - memlock 3145728" in found.fix) is (verdict == "warn")


@pytest.mark.parametrize(
    ("trial", "verdict", "word"),
    [
        (BOOTED, "ok", "booted in 1.5 s"),
        (Trial(kernel="/boot/vmlinuz", progressed=False, seconds=20), "FAIL", "nothing was printed in 20 s"),
        (Trial(kernel="/boot/vmlinuz", progressed=False, words="a\nqemu: no MSR"), "FAIL", "qemu: no MSR"),
        (Trial(words="no kernel to boot was found"), "skip", "no kernel to boot was found"),
    ],
)
def test_kvm_is_believed_when_a_guest_made_progress(trial: Trial, verdict: str, word: str) -> None:
    found = examined(trial=trial)["kvm"]

    assert found.verdict == verdict
    assert word in f"{found.found} {found.why}"


def test_pvm_alone_runs_no_ordinary_guest_whatever_opens() -> None:
    facts = evolve(host(), kvm=KvmFacts(device="usable", modules=("kvm", "kvm_pvm")))

    assert examined(facts, trial=Trial())["kvm"].verdict == "FAIL"


def test_a_pool_names_who_holds_it_and_what_is_lacking() -> None:
    facts = host(pages=100)
    busy = evolve(facts, pools=tuple(evolve(pool, free=0) for pool in facts.pools))
    found = tuning(page_holders=[{"pid": 7, "command": "postgres", "bytes": 200 * MIB}])

    pool = examined(busy, found, (WEB,))["hugepages 2MiB"]

    assert "postgres (pid 7) 200MiB" in pool.found
    assert "need 512, 412 are lacking" in pool.why
    assert pool.numbers["needed"] == 512


def test_who_holds_pages_of_another_size_is_no_holder_of_this_pool() -> None:
    facts = host(pages=100)
    busy = evolve(facts, pools=tuple(evolve(pool, free=0) for pool in facts.pools))
    holder = {"pid": 7, "command": "postgres", "bytes": 2048 * MIB, "page_size": 1024 * MIB}

    pool = examined(busy, tuning(page_holders=[holder]), (WEB,))["hugepages 2MiB"]

    assert "postgres" not in pool.found
    assert pool.numbers["holders"] == []


def test_what_ksm_saves_is_counted_in_bytes() -> None:
    counters = {"run": "1", "pages_sharing": "512", "pages_shared": "8", "full_scans": "3", "general_profit": "-4096"}
    files = {f"/sys/kernel/mm/ksm/{name}": f"{value}\n" for name, value in counters.items()}

    ksm = examined(found=tuning(files=files), vms=(VmWish(name="dense", ksm=True),))["ksm"]

    assert "saves 2MiB" in ksm.found
    assert "profit -4KiB" in ksm.found
    assert ksm.numbers["saved"] == 2 * MIB
    assert ksm.verdict == "ok"


@pytest.mark.parametrize(("run", "told"), [("1", True), ("0", False)])
def test_uksm_is_named_where_a_kernel_scans_with_it(run: str, *, told: bool) -> None:
    found = examined(found=tuning(files={"/sys/kernel/mm/uksm/run": f"{run}\n"}))

    assert ("uksm" in found) is told


def test_the_numbers_of_ksm_have_its_words_too() -> None:
    found = tuning(files={"/sys/kernel/mm/ksm/pages_sharing": "512\n", "/sys/kernel/mm/ksm/pages_shared": "3\n"})
    ksm = examined(found=found)["ksm"]

    assert (ksm.numbers["pages_shared"], ksm.numbers["pages_sharing"], ksm.numbers["saved"]) == (3, 512, 2 << 20)
    assert ksm.numbers["advisor_mode"] == "none"
    assert "saves 2MiB (3 pages stand for 512 more)" in ksm.found
