"""Rules across keys: each refuses what it is for, and lets its neighbours pass."""

from pathlib import PurePosixPath

import pytest

from kvmlaunch.define.layers import Source
from kvmlaunch.define.load import Surroundings, load_definition

pytestmark = pytest.mark.pure

SURROUNDINGS = Surroundings(environment={}, home=PurePosixPath("/root"), working_directory=PurePosixPath("/work"))
DENSITY = '[memory]\nksm = "on"\nhugepages = "off"\nballoon = "on"\n'
RAW = 'raw.args = ["{}"]\n'


def check(text: str) -> list[tuple[str, str]]:
    """Give code and key of every finding."""
    source = Source(path=PurePosixPath("/vm/web01.toml"), text=text)
    loaded = load_definition("web01", [source], (), SURROUNDINGS, {"density": DENSITY})
    return [(finding.report.code, finding.key) for finding in loaded.findings]


DISK = '[disk.a]\npath = "a.img"\n'
TWO = '[disk.a]\npath = "a.img"\n{}\n[disk.b]\npath = "b.img"\n{}\n'


@pytest.mark.parametrize(
    ("text", "code", "key"),
    [
        ('[disk.a]\npath = "a.img"\n[disk.b]\npath = "./x/../a.img"\n', "def.disk.same", "disk.b.path"),
        (TWO.format("boot = 1", "boot = 1"), "def.disk.boot", "disk.b.boot"),
        (DISK + 'boot = 2\n[cdrom.c]\npath = "c.iso"\nboot = 2\n', "def.disk.boot", "cdrom.c.boot"),
        (DISK + 'aio = "native"\ncache = "writeback"\n', "def.disk.aio", "disk.a.aio"),
        (DISK + 'aio = "native"\ncache = "unsafe"\n', "def.disk.aio", "disk.a.aio"),
        (DISK + 'detect_zeroes = "unmap"\ndiscard = "ignore"\n', "def.disk.detect_zeroes", "disk.a.detect_zeroes"),
        ('[disk.a]\npath = "a.vmdk"\n', "def.disk.format", "disk.a.path"),
        (DISK + 'bus = "sata"\nreadonly = true\n', "def.value.choice", "disk.a.readonly"),
        (DISK + 'bus = "ide"\niothread = true\n', "def.value.choice", "disk.a.iothread"),
        ('os = "windows"\n' + DISK + "queues = 4\n", "def.value.choice", "disk.a.queues"),
        (DISK + f'serial = "{"s" * 21}"\n', "def.value.range", "disk.a.serial"),
        ("cpu = { vcpus = 4, topology = { cores = 3 } }", "def.value.range", "cpu.topology"),
        ('cpu = { vcpus = 4, pin = "1-3" }', "def.value.range", "cpu.pin"),
        ('iothreads = { count = 2, pin = "1" }', "def.value.range", "iothreads.pin"),
        ('memory = { size = "1536MiB", hugepages = "1GiB" }', "def.value.range", "memory.size"),
        ('memory = { hugepages = "2MiB", ksm = "on" }', "def.value.choice", "memory.ksm"),
        ('memory = { hugepages = "2MiB", balloon = "on" }', "def.value.choice", "memory.balloon"),
        ('cloud_init.ssh_keys = ["alice"]', "def.value.choice", "cloud_init.ssh_keys"),
        ('boot.initrd = "i"', "def.value.choice", "boot.initrd"),
        ('[share."../x"]\npath = "s"', "def.name", 'share."../x"'),
        (f'[share.a]\npath = "s"\ntag = "{"t" * 37}"', "def.value.range", "share.a.tag"),
        ('console.log = false\nlifecycle.ready = "console:login:"', "def.value.choice", "lifecycle.ready"),
        ('console.serial = false\nlifecycle.ready = "console:login:"', "def.value.choice", "lifecycle.ready"),
        ('display.address = "[::1f]:5901"\ndisplay.type = "vnc"', "def.net.exposed", "display.address"),
        (
            'network.a.forwards = ["tcp:127.0.0.1:80:80", "tcp:0.0.0.0:80:81"]',
            "def.value.choice",
            "network.a.forwards",
        ),
        ('boot.append = "a"', "def.value.choice", "boot.append"),
        ('network.a.type = "bridge"', "def.value.choice", "network.a.type"),
        ('network.a.type = "tap"', "def.value.choice", "network.a.type"),
        ('network.a = { type = "user", bridge = "br0" }', "def.value.choice", "network.a.bridge"),
        ('network.a = { bridge = "br0", ifname = "tap0" }', "def.value.choice", "network.a.ifname"),
        ('network.a = { bridge = "br0", forwards = ["tcp:127.0.0.1:1:1"] }', "def.value.choice", "network.a.forwards"),
        ("network.a.vhost = true", "def.value.choice", "network.a.vhost"),
        ("network.a.queues = 2", "def.value.choice", "network.a.queues"),
        (
            'network.a.mac = "52:54:00:00:00:01"\nnetwork.b.mac = "52:54:00:00:00:01"',
            "def.value.choice",
            "network.b.mac",
        ),
        (
            'network.a.forwards = ["tcp:127.0.0.1:1:1", "tcp:127.0.0.1:1:2"]',
            "def.value.choice",
            "network.a.forwards",
        ),
        ('display = { type = "vnc", address = "0.0.0.0:5901" }', "def.net.exposed", "display.address"),
        ('display = { type = "vnc", address = ":5901" }', "def.net.exposed", "display.address"),
        ('display = { type = "vnc", address = "127.0.0.1:1" }', "def.value.range", "display.address"),
        ('display = { type = "vnc", address = "here" }', "def.value.choice", "display.address"),
        (
            'network.a.forwards = ["tcp:127.0.0.1:80:80"]\nlifecycle.ready = "tcp:127.0.0.1:80"',
            "def.ready.forward",
            "lifecycle.ready",
        ),
        (
            'network.a.forwards = ["tcp:0.0.0.0:80:80"]\nlifecycle.ready = "tcp:127.0.0.1:80"',
            "def.ready.forward",
            "lifecycle.ready",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, code: str, key: str) -> None:
    assert check(text) == [(code, key)]


@pytest.mark.parametrize(
    "text",
    [
        TWO.format("boot = 1", "boot = 2"),
        DISK + 'aio = "native"\n',
        DISK + 'aio = "native"\ncache = "directsync"\n',
        DISK + 'detect_zeroes = "unmap"\n',
        '[disk.a]\npath = "/dev/vg0/disk.1"\n',
        '[disk.a]\npath = "a.vmdk"\nformat = "raw"\n',
        '[disk.a]\npath = "volume"\n',
        'os = "windows"\n' + DISK + 'bus = "virtio-blk"\nqueues = 4\n',
        DISK + 'bus = "virtio-scsi"\nserial = "123456789012345678901"\n',
        'cpu = { vcpus = 4, topology = { cores = 2, threads = 2 }, pin = "1-4" }',
        'iothreads = { count = "auto", pin = "1" }',
        'memory = { size = "2GiB", hugepages = "1GiB" }',
        'memory = "129MiB"',
        'memory = { ksm = "on", balloon = "on" }',
        'profile = "density"\nmemory.hugepages = "2MiB"',
        'boot = { kernel = "k", initrd = "i", append = "a,b $()" }',
        'os = "windows"\nboot.kernel = "k"',
        'network.a.forwards = ["tcp:0.0.0.0:80:80", "udp:0.0.0.0:80:80"]',
        'network.a = { bridge = "br0", vhost = true, queues = 4 }',
        'display = { type = "vnc", address = "[::1]:5901" }',
        'network.a.forwards = ["tcp:127.0.0.1:80:80"]\nlifecycle.ready = "http://127.0.0.1:80/"',
        'network.a.forwards = ["tcp:127.0.0.1:80:80"]\nlifecycle.ready = "tcp:10.0.0.9:80"',
    ],
)
def test_what_goes_together_is_let_pass(text: str) -> None:
    assert check(text) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ('"disk.img"', "def.raw.option"),
        ('"-accel", "tcg"', "def.raw.option"),
        ('"--accel", "tcg"', "def.raw.option"),
        ('"-machine", "q35"', "def.raw.option"),
        ('"-machine", "usb=off,accel=tcg"', "def.raw.option"),
        ('"-mem-path", "/x"', "def.raw.option"),
        ('"-numa", "node"', "def.raw.option"),
        ('"-machine", "usb=off,append=quiet"', "def.raw.option"),
        ('"-global", "driver=cfi.pflash01,property=secure,value=off"', "def.raw.option"),
        ('"-snapshot"', "def.raw.option"),
        ('"-smbios", "type=1,uuid=550e8400-e29b-41d4-a716-446655440000"', "def.raw.option"),
        ('"-machine", "usb=off,memory-backend=m"', "def.raw.option"),
        ('"-cdrom", "/x.iso"', "def.raw.option"),
        ('"-hda", "/x.img"', "def.raw.option"),
        ('"-drive", "file=/x.qcow2,if=virtio"', "def.disk.format"),
        ('"-drive", "file=/x,,format=raw.qcow2,if=virtio"', "def.disk.format"),
        ('"-nic", "none"', "def.raw.option"),
        ('"-drive", "if=none,id=x,file.driver=file,file.filename=/x"', "def.disk.format"),
        ('"-net", "none"', "def.raw.option"),
        ('"-netdev", "bridge,id=n,br=br0"', "def.raw.option"),
        ('"-nic", "bridge"', "def.raw.option"),
        ('"-netdev", "tap,id=n"', "def.raw.option"),
        ('"-netdev", "id=n,type=tap,script=no"', "def.raw.option"),
        ('"-netdev", \'{"type":"tap","id":"n"}\'', "def.raw.option"),
        ('"-nic", "user,smb=/srv"', "def.raw.option"),
        ('"-daemonize"', "def.raw.option"),
        ('"-S"', "def.raw.option"),
        ('"-qmp", "stdio"', "def.raw.option"),
        ('"-vnc", ":1"', "def.raw.option"),
        ('"-display", "vnc=:1"', "def.raw.option"),
        ('"-incoming", "exec:cat /x"', "def.raw.option"),
        ('"-incoming", "tcp::4444"', "def.net.exposed"),
        ('"-incoming", "tcp:0:4444"', "def.net.exposed"),
        ('"-s"', "def.net.exposed"),
        ('"-gdb", "tcp::1234"', "def.net.exposed"),
        ('"-serial", "tcp:10.0.0.5:4444,server=on,wait=off"', "def.net.exposed"),
        ('"-serial", "telnet::4444,server"', "def.net.exposed"),
        ('"-chardev", "socket,id=c,host=0.0.0.0,port=4444,server=on"', "def.net.exposed"),
        ('"-chardev", "socket,id=c,port=4444,host=fe80::1,server"', "def.net.exposed"),
        ('"-spice", "port=5930,disable-ticketing=on"', "def.net.exposed"),
        ('"-netdev", "user,id=n,hostfwd=tcp::80-:80"', "def.net.exposed"),
        ('"-netdev", "socket,id=n,udp=127.0.0.1:1,localaddr=0.0.0.0:4444"', "def.net.exposed"),
        ('"-netdev", "tap,id=n,script=/etc/qemu-ifup"', "def.raw.option"),
        ('"-netdev", "user,id=n,guestfwd=tcp:10.0.2.9:1-cmd:cat"', "def.raw.option"),
        ('"-object", "secret,id=s,data=hunter2"', "def.secret"),
        ('"-object", \'{"qom-type":"secret","id":"s","data":"hunter2"}\'', "def.secret"),
        ('"-object", \'{"data" : "hunter2","qom-type":"secret","id":"s"}\'', "def.secret"),
        ('"-object", \'{"qom-type":"secret","id":"s","d\\u0061ta":"hunter2"}\'', "def.secret"),
        ("\"-object\", \"{ 'data': 'hunter2', 'qom-type': 'secret', 'id': 's' }\"", "def.secret"),
        ('"-object", "data=hunter2,qom-type=secret,id=s"', "def.secret"),
        ('"-object", "secret,id=s,file=/a,,,data=hunter2"', "def.secret"),
        ('"-drive", "id=d,if=none,format=raw,file=https://bob:hunter2@example.org/d.img"', "def.secret"),
        ('"-drive", "id=d,if=none,format=raw,file=iscsi://bob%hunter2@example.org/iqn.a/1"', "def.secret"),
        ('"-blockdev", \'{"driver":"https","url":"https://bob:hunter2@example.org/d.img"}\'', "def.secret"),
        ('"-run-with", "user=bob"', "def.raw.option"),
        ('"-serial", "mon:tcp:127.0.0.1:4444,server=on,wait=off"', "def.raw.option"),
        ('"-netdev", \'{"type":"user","id":"n","hostfwd":[{"str":"tcp::8081-:81"}]}\'', "def.net.exposed"),
        ('"-netdev", \'{"type":"user","id":"n","guestfwd":[{"str":"tcp:10.0.2.9:1-cmd:id"}]}\'', "def.raw.option"),
        ("\"-netdev\", \"{ 'type': 'user', 'id': 'n' }\"", "def.raw.option"),
        ('"-netdev", "stream,id=n,server=on,addr.type=inet,addr.host=0.0.0.0,addr.port=4455"', "def.net.exposed"),
        (
            '"-netdev", \'{"type":"stream","id":"n","server":true,"addr":{"type":"inet","host":"","port":"1"}}\'',
            "def.net.exposed",
        ),
        ('"-netdev", "dgram,id=n,local.type=inet,local.host=0.0.0.0,local.port=4455"', "def.net.exposed"),
    ],
)
def test_an_argument_by_hand_that_undoes_a_promise_is_refused(arguments: str, code: str) -> None:
    assert [found for found, _ in check(f"raw.args = [{arguments}]")] == [code]


@pytest.mark.parametrize(
    "arguments",
    [
        '"-device", "pvpanic-pci"',
        '"-machine", "pcspk-audiodev=a"',
        '"-object", "secret,id=s,file=/run/s"',
        '"-object", "secret,id=s,file=/srv/a,,data=b"',
        '"-drive", "id=d,if=none,format=raw,file=https://bob@example.org:8080/d@2.img,file.password-secret=s"',
        '"-boot", "menu=on,splash-time=5000"',
        '"-smbios", "type=0,vendor=x"',
        '"-drive", "if=none,id=d,media=cdrom"',
        '"-drive", "file=/x.iso,media=cdrom,readonly=on"',
        '"-machine", "hpet=on"',
        '"-drive", "file=/x.img,driver=raw,if=none,id=d"',
        '"-netdev", "tap,id=n,ifname=tap7,script=no,downscript=no"',
        '"-netdev", "tap,id=n,fd=7"',
        '"-netdev", "socket,id=n,mcast=230.0.0.1:1234"',
        '"-incoming", "tcp:10.0.0.5:4444"',
        '"-incoming", "unix:/run/m"',
        '"-gdb", "tcp:127.0.0.1:1234"',
        '"-serial", "tcp:10.0.0.5:4444"',
        '"-serial", "tcp:[::1]:4444,server=on"',
        '"-chardev", "socket,id=c,host=localhost,port=4444,server=on"',
        '"-chardev", "socket,id=c,path=/run/c.sock,server=on"',
        '"-spice", "addr=127.0.0.1,port=5930,disable-ticketing=on"',
        '"-spice", "unix=on,addr=/run/spice.sock,disable-ticketing=on"',
        '"-netdev", "tap,id=n,ifname=t0,script=no,downscript=no"',
        '"-netdev", "stream,id=n,server=off,addr.type=inet,addr.host=10.0.0.5,addr.port=4455"',
        '"-netdev", "stream,id=n,server=on,addr.type=unix,addr.path=/run/n"',
        '"-netdev", \'{"type":"user","id":"n","hostfwd":[{"str":"tcp:127.0.0.1:8081-:81"}]}\'',
        '"-no-shutdown"',
        '"-global", "kvm-pit.lost_tick_policy=discard"',
    ],
)
def test_an_argument_by_hand_that_adds_something_is_let_pass(arguments: str) -> None:
    assert check(f"raw.args = [{arguments}]") == []


@pytest.mark.parametrize("value", ["d", "menu=on,once=d", "order=nc"])
def test_an_order_beside_boot_indexes_is_refused(value: str) -> None:
    assert [code for code, _ in check(f'disk = "a.img"\nraw.args = ["-boot", "{value}"]')] == ["def.raw.option"]
