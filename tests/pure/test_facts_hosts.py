"""The captured hosts of `tests/hosts`: they parse, they are what their names say, they are derived as written."""

import importlib.util
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

from kvmlaunch.errors import HostFailed
from kvmlaunch.facts.sources import Captured, parse_captured
from kvmlaunch.host.saved import load_capture, save_capture
from kvmlaunch.model.host import HostFacts
from kvmlaunch.units import GIB, MIB

pytestmark = pytest.mark.pure

HOSTS = Path(__file__).resolve().parents[1] / "hosts"


def load_derive() -> ModuleType:
    spec = importlib.util.spec_from_file_location("derive", HOSTS / "derive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DERIVE = load_derive()
NAMES = sorted(place.name for place in HOSTS.iterdir() if (place / "probes.json").exists())


def host(name: str) -> HostFacts:
    return parse_captured(load_capture(HOSTS / name))


def test_every_host_is_derived_and_stored() -> None:
    assert sorted(DERIVE.HOSTS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_host_is_as_its_derivation_says(name: str) -> None:
    assert load_capture(HOSTS / name) == DERIVE.derive(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_host_has_all_paths_and_its_ids(name: str) -> None:
    facts = host(name)
    assert {str(path) for path in facts.paths} == set(DERIVE.PATHS)
    assert (len(facts.machine_id), len(facts.boot_id)) == (32, 36)


def test_the_real_host_has_pvm() -> None:
    facts = host("debian12-pvm")
    assert facts.kvm.device == "usable"
    assert not facts.kvm.runs_guests
    assert facts.pool(2 * MIB) is not None


def test_the_plain_host() -> None:
    facts = host("kvm-intel-8cpu")
    assert facts.kvm.runs_guests
    assert facts.cpus.siblings[0] == (0, 4)
    assert facts.memory.total == 32 * GIB
    assert facts.systemd
    assert facts.hugetlb_cgroup == {}


def test_paths_of_the_plain_host() -> None:
    paths = host("kvm-intel-8cpu").paths
    root = paths[PurePosixPath("/srv/vm/web01.img")]
    assert (root.filesystem, root.device, root.scheduler, root.rotational) == ("ext4", "nvme0n1", "none", False)
    assert root.fully_allocated
    assert not paths[PurePosixPath("/srv/vm/sparse.img")].fully_allocated
    assert paths[PurePosixPath("/dev/vg0/web01")].fully_allocated
    assert paths[PurePosixPath("/srv/nfs/data.img")].filesystem == "nfs4"
    assert paths[PurePosixPath("/srv/vm/clone.qcow2")].backing == "/srv/vm/golden.qcow2"
    assert paths[PurePosixPath("/srv/vm/locked.img")].lock_holders[0].vm == "mail01"
    assert paths[PurePosixPath("/srv/vm/link.img")].inode == root.inode


def test_what_the_other_hosts_differ_in() -> None:
    assert [pool.available for pool in host("two-nodes").nodes[1].pools] == [512, 4]
    assert host("no-kvm").kvm.device == "missing"
    assert host("user-alice").kvm.device == "denied"
    assert not host("user-alice").paths[PurePosixPath("/dev/vg0/web01")].readable
    assert host("user-alice").paths[PurePosixPath("/srv/vm/web01.img")].writable
    assert "kvm" in host("user-alice-kvm").user.groups
    assert host("thp-never-ksm").thp == "never"
    assert host("io-uring-disabled").aio.io_uring_refusal == "Operation not permitted"
    assert host("vhost").network_devices["tap-alice"].multi_queue
    assert [listener.port for listener in host("vhost").listeners] == [22, 8080]
    assert host("hugetlb-cgroup").hugetlb_cgroup == {2 * MIB: 256 * MIB}


def test_a_capture_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    earlier = Captured(files={"/proc/old": "x", "/proc/both": "y"}, probes={"kvm": ""})
    captured = Captured(files={"/proc/both": "caf\u00e9 \udcff\n", "/etc/a/b": ""}, probes={"path:/\udcff": [1, None]})
    save_capture(earlier, tmp_path / "facts")
    save_capture(captured, tmp_path / "facts")
    assert load_capture(tmp_path / "facts") == captured


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"schema": "kvmlaunch/capture/1"}', "[" * 100_000])
def test_a_directory_that_holds_no_capture_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "probes.json").write_text(text)
    with pytest.raises(HostFailed) as caught:
        load_capture(tmp_path)
    assert caught.value.report.code == "host.facts.unreadable"
