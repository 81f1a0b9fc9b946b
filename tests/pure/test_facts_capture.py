"""Looking at a host: made-up trees under a root, real files, real locks and sockets."""

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from kvmlaunch.facts import network
from kvmlaunch.facts.sources import Captured, Wanted, parse_captured
from kvmlaunch.host.capture import capture_host, expand
from kvmlaunch.host.capture_path import capture_disks, open_image, takes_no_discard
from kvmlaunch.host.rights import capture_user, rights_of
from kvmlaunch.host.sockets import capture_sockets
from kvmlaunch.model.host import PathFacts, UserFacts

pytestmark = pytest.mark.pure


def write(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        place = root / name.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def look(path: Path) -> PathFacts:
    found = parse_captured(capture_host(Wanted(paths=(PurePosixPath(path),))))
    return found.paths[PurePosixPath(path)]


def test_this_machine_parses() -> None:
    wanted = Wanted(io_uring=True, network_devices=True, listeners=True)
    facts = parse_captured(capture_host(wanted))
    assert facts.memory.total > facts.memory.available > 0
    assert facts.user.uid == os.geteuid()
    assert facts.network_devices["lo"].up


def test_the_machine_id_is_not_the_real_one(tmp_path: Path) -> None:
    real = "3d1219c7c4c5404aaa1f6d2a48adfda4\n"
    write(tmp_path, {"/etc/machine-id": real})
    first, second = (capture_host(Wanted(), root=tmp_path).files["/etc/machine-id"] for _ in range(2))
    assert first == second != real
    assert len(first) == len(real)


def test_a_tree_under_a_root(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "/proc/meminfo": "MemTotal: 8 kB\nMemAvailable: 4 kB\n",
            "/proc/cpuinfo": "processor: 0\nflags: vmx\n\nprocessor: 1\n",
            "/sys/devices/system/cpu/online": "0-1\n",
            "/sys/module/kvm_intel/srcversion": "",
            "/sys/module/loop/srcversion": "",
            "/dev/kvm": "",
            "/usr/bin/ip": "",
            "/srv/a.img": "x",
        },
    )
    (tmp_path / "usr/bin/ip").chmod(0o755)
    captured = capture_host(Wanted(paths=(PurePosixPath("/srv/a.img"),)), root=tmp_path, search="/bin:relative")
    facts = parse_captured(captured)
    assert facts.kvm.runs_guests
    assert facts.kvm.modules == ("kvm_intel",)
    assert not facts.vhost_net
    assert facts.tools == {"ip": "/usr/bin/ip"}
    assert facts.paths[PurePosixPath("/srv/a.img")].size == 1
    assert captured.files["/proc/cpuinfo"] == "processor: 0\nflags: vmx\n"


def test_an_empty_root_is_no_host(tmp_path: Path) -> None:
    captured = capture_host(Wanted(), root=tmp_path)
    with pytest.raises(ValueError, match="names no CPU"):
        parse_captured(captured)


def test_a_pattern_stays_within_a_component(tmp_path: Path) -> None:
    write(tmp_path, {f"/a/{name}/x/{size}/n": "" for name in ("node0", "node1", "nodes") for size in ("2M", "1G")})
    assert expand(str(tmp_path), "/a/node[0-9]*/x/*/n") == [
        *("/a/node0/x/1G/n", "/a/node0/x/2M/n", "/a/node1/x/1G/n", "/a/node1/x/2M/n"),
    ]
    assert expand(str(tmp_path), "/not/there") == ["/not/there"]


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [(Path.touch, "file"), (Path.mkdir, "directory"), (make_fifo, "fifo"), (make_socket, "socket")],
)
def test_kinds_of_paths_are_seen_without_blocking(tmp_path: Path, make: Callable[[Path], None], kind: str) -> None:
    make(tmp_path / "it")
    assert look(tmp_path / "it").kind == kind


def test_a_character_device_is_not_opened() -> None:
    assert look(Path("/dev/zero")).kind == "character"


def test_a_missing_path_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("none", "none/below", "file/below"):
        assert look(tmp_path / name).kind == "missing"


def test_a_sparse_file_and_a_full_one(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(b"x" * 8192)
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 20)
    assert look(tmp_path / "full").fully_allocated
    assert not look(tmp_path / "sparse").fully_allocated
    assert look(tmp_path / "full").filesystem


def test_a_link_is_followed_and_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"x")
    (tmp_path / "link").symlink_to("image")
    assert look(tmp_path / "link").inode == look(tmp_path / "image").inode
    assert look(tmp_path / "link").path == PurePosixPath(tmp_path / "link")


def test_the_backing_file_of_a_qcow2_image(tmp_path: Path) -> None:
    name = b"/srv/base,1.qcow2"
    head = struct.pack(">4sIQI", b"QFI\xfb", 3, 5000, len(name)).ljust(5000, b"\0") + name
    (tmp_path / "clone.qcow2").write_bytes(head)
    found = look(tmp_path / "clone.qcow2")
    assert (found.header, found.backing) == ("qcow2", name.decode())


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9, a=b"))
    path.write_bytes(b"x")
    assert look(path).kind == "file"


BLOCK_TREE = {
    "nvme0n1/queue/scheduler": "[none] mq-deadline",
    "nvme0n1/queue/rotational": "0",
    "nvme0n1/queue/physical_block_size": "4096",
    "nvme0n1/mq/0/cpu_list": "",
    "nvme0n1/mq/1/cpu_list": "",
    "nvme0n1/nvme0n1p2/partition": "2",
    "nvme0n1/nvme0n1p2/dev": "259:2",
    "dm-0/dev": "253:0",
    "dm-0/queue/scheduler": "",
    "md0/dev": "9:0",
    "bcache0/dev": "252:0",
    "loop0/loop/backing_file": "/srv/image",
}


def test_the_disk_below_a_partition_a_volume_and_a_loop(tmp_path: Path) -> None:
    devices = tmp_path / "sys/devices"
    write(devices, BLOCK_TREE)
    for upper, lower in (("dm-0", "nvme0n1/nvme0n1p2"), ("md0", "dm-0"), ("bcache0", "md0")):
        (devices / upper / "slaves").mkdir()
        (devices / upper / "slaves" / Path(lower).name).symlink_to(f"../../{lower}")
    numbers = tmp_path / "sys/dev/block"
    numbers.mkdir(parents=True)
    write(tmp_path, {"/srv/image": ""})
    below = (tmp_path / "srv/image").stat().st_dev
    links = {"259:2": "nvme0n1/nvme0n1p2", "253:0": "dm-0", "9:0": "md0", "252:0": "bcache0", "7:0": "loop0"}
    links[f"{os.major(below)}:{os.minor(below)}"] = "nvme0n1"
    for number, device in links.items():
        (numbers / number).symlink_to(f"../../devices/{device}")
    disk = {"name": "nvme0n1", "scheduler": "[none] mq-deadline", "rotational": "0", "queues": 2, "physical": 4096}
    for number in ("259:2", "253:0", "9:0", "252:0", "7:0"):
        assert capture_disks(str(tmp_path), number, ()) == [disk]
    assert capture_disks(str(tmp_path), "9:9", ()) == []


@pytest.mark.parametrize(("limit", "none"), [("0\n", True), ("1073741824\n", False), (None, False)])
def test_a_device_that_frees_nothing_says_so(tmp_path: Path, limit: str | None, *, none: bool) -> None:
    limits = {"sda/queue/discard_max_bytes": limit} if limit is not None else {}
    write(tmp_path / "sys/devices", {"sda/size": "1\n", "sda/sda1/partition": "1\n", **limits})
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    for number, device in {"8:0": "sda", "8:1": "sda/sda1"}.items():
        (tmp_path / "sys/dev/block" / number).symlink_to(f"../../devices/{device}")

    assert [takes_no_discard(str(tmp_path), number) for number in ("8:0", "8:1", "9:9")] == [none, none, False]


def header(backing: str) -> bytes:
    """Give the beginning of a qcow2 image with a backing file."""
    name = backing.encode()
    return struct.pack(">4sIQI", b"QFI\xfb", 3, 112, len(name)) + bytes(92) + name


@pytest.mark.parametrize("kind", ["device", "fifo", "directory"])
def test_what_a_guest_names_as_its_backing_file_is_opened_only_where_it_is_an_image(tmp_path: Path, kind: str) -> None:
    place = {"device": Path("/dev/zero"), "fifo": tmp_path / "fifo", "directory": tmp_path}[kind]
    if kind == "fifo":
        os.mkfifo(place)
    (tmp_path / "image").write_bytes(b"x")

    with pytest.raises(OSError, match="No such device"):
        open_image(str(place))
    os.close(open_image(str(tmp_path / "image")))


def test_what_a_guest_writes_into_a_raw_image_makes_no_other_one_a_base(tmp_path: Path) -> None:
    base = tmp_path / "b.img"
    base.write_bytes(bytes(512))
    (tmp_path / "a.img").write_bytes(header("b.img"))
    (tmp_path / "c.qcow2").write_bytes(header("b.img"))

    facts = parse_captured(capture_host(Wanted(paths=(PurePosixPath(base),), overlays=True)))

    assert facts.paths[PurePosixPath(base)].overlays == (str(tmp_path / "c.qcow2"),)


def lock(handle: int, first: int, length: int = 1) -> None:
    """Lock bytes as QEMU does: shared, and owned by the open file."""
    flock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, first, length, 0)
    fcntl.fcntl(handle, fcntl.F_OFD_SETLK, flock)


@pytest.mark.parametrize(("first", "writes"), [(100, False), (101, True)])
def test_who_holds_the_lock_of_an_image(tmp_path: Path, first: int, *, writes: bool) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"x")
    with image.open("r+b") as held:
        lock(held.fileno(), first)
        (holder,) = look(image).lock_holders
    assert (holder.pid, holder.writes) == (os.getpid(), writes)
    assert look(image).lock_holders == ()


def test_who_holds_a_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        facts = parse_captured(capture_host(Wanted(ports=(port,))))
    (found,) = [listener for listener in facts.listeners if listener.port == port]
    assert (found.protocol, found.address) == ("tcp", "127.0.0.1")
    assert found.holder is not None
    assert found.holder.pid == os.getpid()


def test_sock_diag_and_proc_name_the_same_sockets() -> None:
    six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, six:
        udp.bind(("127.0.0.1", 0))
        six.bind(("::1", 0))
        asked = capture_sockets("", network.SOCKET_FILES)
        read = {path: network.parse_bound(Path(path).read_text()) for path in network.SOCKET_FILES}
    first, second = (sorted(map(repr, network.parse_listeners(tables, {}))) for tables in (asked, read))
    assert first == second


def test_the_caller_is_the_user_by_default() -> None:
    assert capture_user().uid == os.geteuid()
    assert capture_user("root") == capture_user("root")


@pytest.mark.root
def test_rights_of_a_user_are_had_and_given_back(tmp_path: Path) -> None:
    nobody = UserFacts(uid=65534, gid=65534, name="nobody", groups=("nogroup",))
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed/image").touch()
    for place in (tmp_path, *tmp_path.parents):
        place.chmod(place.stat().st_mode | 0o001)
    (tmp_path / "mine").touch(mode=0o600)
    before = (os.geteuid(), os.getegid(), os.getgroups())
    with rights_of(nobody):
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (65534, 65534, [65534])
    assert (os.geteuid(), os.getegid(), os.getgroups()) == before
    wanted = Wanted(paths=tuple(PurePosixPath(tmp_path / name) for name in ("closed/image", "mine")), io_uring=True)
    seen = parse_captured(capture_host(wanted, user=nobody))
    denied, unreadable = seen.paths.values()
    assert (denied.kind, denied.refusal) == ("denied", "Permission denied")
    assert (unreadable.kind, unreadable.readable, unreadable.writable) == ("file", False, False)
    assert (seen.user.name, seen.caller_uid) == ("nobody", 0)


def test_what_is_captured_can_be_compared() -> None:
    assert Captured(files={}, probes={}) == Captured()
