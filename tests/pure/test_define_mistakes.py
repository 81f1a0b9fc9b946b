"""Loading a definition that is wrong: every mistake at once, each with its code, its place, and the line to write."""

import re
from pathlib import Path, PurePosixPath

import pytest

from kvmlaunch.define import load
from kvmlaunch.define.layers import Source
from kvmlaunch.define.load import Surroundings, load_definition
from kvmlaunch.model.finding import Finding

pytestmark = pytest.mark.pure

PROFILES = {path.stem: path.read_text() for path in (Path(load.__file__).parent / "profiles").glob("*.toml")}
SURROUNDINGS = Surroundings(environment={}, home=PurePosixPath("/root"), working_directory=PurePosixPath("/work"))


def findings(text: str | bytes, *overrides: str, name: str = "web01", **templates: str) -> tuple[Finding, ...]:
    sources = [Source(path=PurePosixPath("/vm/web01.toml"), text=text)]
    sources += [Source(path=PurePosixPath(f"/vm/{stem}.toml"), text=other) for stem, other in templates.items()]
    loaded = load_definition(name, sources, overrides, SURROUNDINGS, PROFILES)
    assert (loaded.definition is None) == bool(loaded.findings)
    return loaded.findings


def only(text: str | bytes, *overrides: str, **templates: str) -> Finding:
    found = findings(text, *overrides, **templates)
    assert len(found) == 1, found
    return found[0]


def codes(text: str | bytes, *overrides: str, **templates: str) -> list[str]:
    return [finding.report.code for finding in findings(text, *overrides, **templates)]


def test_five_mistakes_are_five_findings() -> None:
    text = (
        'vcpus = "4"\nmemory = "8GB"\nmemroy = 1\n[disk.root]\npath = "a.img"\ncache = "writebck"\n[cpu]\nmodel = 5\n'
    )

    found = findings(text)

    assert [(finding.report.code, finding.report.where) for finding in found] == [
        ("def.value.type", "/vm/web01.toml:1:9 vcpus"),
        ("def.size.decimal", "/vm/web01.toml:2:10 memory"),
        ("def.key.unknown", "/vm/web01.toml:3:1 memroy"),
        ("def.value.choice", "/vm/web01.toml:6:9 disk.root.cache"),
        ("def.value.type", "/vm/web01.toml:8:9 cpu.model"),
    ]


def test_a_rule_across_keys_is_told_beside_the_mistake_of_a_value() -> None:
    text = '[cpu]\nmodel = 5\n[disk.a]\npath = "a.img"\ndiscard = "ignore"\ndetect_zeroes = "unmap"\n'

    assert codes(text) == ["def.value.type", "def.disk.detect_zeroes"]


def test_a_rule_that_rests_on_a_wrong_key_is_not_told() -> None:
    assert codes('[cpu]\nvcpus = "4"\npin = "2-5"\n') == ["def.value.type"]


@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        ('vcpus = "4"', "def.value.type", "vcpus = 4"),
        ("vcpus = true", "def.value.type", ""),
        ("vcpus = 4.0", "def.value.type", "vcpus = 4"),
        ("vcpus = 0", "def.value.range", ""),
        ("memory = 0", "def.value.range", ""),
        ('memory = "0"', "def.value.range", ""),
        ("vcpus = 5000", "def.value.range", ""),
        ("vcpus = 123456789012345678901", "def.value.range", ""),
        ("vcpus = 1e30", "def.value.type", ""),
        ("description = 5", "def.value.type", 'description = "5"'),
        ("description = nan", "def.value.type", ""),
        ("description = 2020-01-01", "def.value.type", ""),
        ('description = "a\\u0000"', "def.value.type", ""),
        ('memory = "8GB"', "def.size.decimal", 'memory = "8GiB"'),
        ("memory = 8", "def.size.unit", 'memory = "8GiB"'),
        ('memory = "8"', "def.size.unit", 'memory = "8GiB"'),
        ('memory = "8gib"', "def.size.unit", 'memory = "8GiB"'),
        ('memory = "0GiB"', "def.value.range", ""),
        ('memory = "-1GiB"', "def.value.range", ""),
        ('memory = "0.3K"', "def.value.range", ""),
        ('memory = "1K"', "def.value.range", 'memory = "1MiB"'),
        ('os = "Linux"', "def.value.choice", 'os = "linux"'),
        ('memory.hugepages = "2M"', "def.value.choice", 'hugepages = "2MiB"'),
        ("memory.ksm = true", "def.value.type", 'ksm = "on"'),
        ("os = [1]", "def.value.type", ""),
        ("memory.lock = 1", "def.value.type", "lock = true"),
        ("memory.numa = 0", "def.value.type", 'numa = "0"'),
        ('memory.numa = "x"', "def.value.choice", "lscpu"),
        ('iothreads.count = "8"', "def.value.type", "count = 8"),
        ('iothreads.count = "aut"', "def.value.choice", 'count = "auto"'),
        ("iothreads.count = 99", "def.value.range", ""),
        ('cpu.pin = "0-2,1"', "def.value.range", "each thread"),
        ('cpu.pin = "5-2"', "def.value.range", ""),
        ('cpu.pin = ""', "def.value.range", 'pin = "none"'),
        ("cpu.topology = 4", "def.value.type", ""),
        ('uuid = "123e4567e89b42d3a456426614174000"', "def.value.choice", "hyphens"),
        ('uuid = "00000000-0000-0000-0000-000000000000"', "def.value.choice", "not all zero"),
        ("uuid = 7", "def.value.type", ""),
        ('cpu.features.pmu = "of"', "def.value.choice", 'pmu = "off"'),
        ('cpu.features."a,b" = "on"', "def.name", ""),
        ('cpu.properties."a,b" = "1"', "def.name", ""),
        ('cpu.properties.phys-bits = "40,pmu=on"', "def.value.choice", "no comma"),
        ('cpu.properties.phys-bits = ""', "def.value.choice", "no comma"),
        ("cpu.properties.phys-bits = 40", "def.value.type", 'phys-bits = "40"'),
        ('cpu.properties.pmu = "off"', "def.value.choice", 'features = { pmu = "off" }'),
        ('cpu.properties.apic-id = "3"', "def.value.choice", "cpu.topology"),
        ('cpu.model = "host,pmu=off"', "def.value.choice", "cpu.features"),
        ('machine = "q35,accel=tcg"', "def.value.choice", ""),
        ('security.user = "a b"', "def.value.choice", ""),
        ('cloud_init.hostname = "my_host"', "def.value.choice", "letters, digits and -, in labels"),
        ('cloud_init.hostname = "a..b"', "def.value.choice", "letters, digits and -, in labels"),
        ('cloud_init.hostname = "a-"', "def.value.choice", "letters, digits and -, in labels"),
        ('lifecycle.stop_timeout = "90"', "def.size.unit", "90s"),
        ("lifecycle.stop_timeout = 90", "def.size.unit", 'stop_timeout = "90s"'),
        ('lifecycle.stop_timeout = "9999h"', "def.value.range", ""),
        ('lifecycle.ready = "login:"', "def.value.choice", "console:REGEX"),
        ('lifecycle.ready = "console:("', "def.value.choice", ""),
        ('lifecycle.ready = "http://h:99999/"', "def.value.range", ""),
        ('lifecycle.ready = "tcp::80"', "def.value.choice", 'ready = "tcp:127.0.0.1:80"'),
        ('network.a.mac = "zz"', "def.value.choice", ""),
        ('network.a.mac = "53:54:00:00:00:01"', "def.value.choice", 'mac = "52:54:00:00:00:01"'),
        ('network.a.forwards = ["tcp::80:80"]', "def.net.exposed", '"tcp:127.0.0.1:80:80"'),
        ('network.a.forwards = ["tcp:80:80"]', "def.net.exposed", '"tcp:127.0.0.1:80:80"'),
        ('network.a.forwards = ["tcp:127.0.0.1:80-:80"]', "def.value.choice", '"tcp:127.0.0.1:80:80"'),
        ('network.a.forwards = ["tcp:localhost:80:80"]', "def.value.choice", "127.0.0.1"),
        ('network.a.forwards = ["tcp:127.0.0.1:0:80"]', "def.value.range", ""),
        ('network.a.forwards = ["sctp:127.0.0.1:1:80"]', "def.value.choice", ""),
        ('network.a.forwards = "tcp:127.0.0.1:80:80"', "def.value.type", 'forwards = ["tcp:127.0.0.1:80:80"]'),
        ('network.a.bridge = "a b"', "def.value.choice", ""),
        ('network.a = "br0"', "def.value.type", ""),
        ("disk = 5", "def.value.type", ""),
        ('disk = ""', "def.path", ""),
        ('disk = "a\\u0000.img"', "def.path", ""),
        ('disk = "/dev/fdset/1"', "def.path", ""),
        ('disk = "../dev//fdset/1"', "def.path", ""),
        ('disk = "~bob/a.img"', "def.path", ""),
        ('disk = "a.xyz"', "def.disk.format", 'path = "/vm/a.xyz"\nformat = "raw"'),
        ('disk = "../a b.vmdk"', "def.disk.format", "qemu-img convert -O qcow2 '/a b.vmdk' '/a b.qcow2'"),
        ('disk = "a.iso"', "def.disk.format", 'cdrom = "/vm/a.iso"'),
        ('network = "user"', "def.value.choice", '[network.net0]\ntype = "user"'),
        ('network = "nat"', "def.value.choice", '[network.net0]\ntype = "user"'),
        ("cpu = 4", "def.value.type", "vcpus = 4"),
        ('cpu = "host"', "def.value.type", 'cpu.model = "host"'),
        ("cores = 4", "def.key.unknown", "vcpus = 4"),
        ("cpu.cores = 4", "def.key.unknown", "topology = {"),
        ('ram = "4GiB"', "def.key.unknown", 'memory = "4GiB"'),
        ('ports = ["80:80"]', "def.key.unknown", 'forwards = ["tcp:127.0.0.1:8080:80"]'),
        ('network.lan.ports = ["80:80"]', "def.key.unknown", 'forwards = ["tcp:127.0.0.1:8080:80"]'),
        ('disk = ["a.img", "b.img"]', "def.value.type", '[disk.name2]\npath = "b.img"'),
        ("disk = [1]", "def.value.type", ""),
        ("memory = [1]", "def.value.type", ""),
        ('disk.root = "x.img"', "def.value.type", 'disk.root.path = "x.img"'),
        ('share.src = "/srv"', "def.value.type", 'share.src.path = "/srv"'),
        ('boot = "cdrom"', "def.value.type", "--boot cdrom.NAME"),
        ('boot = "uefi"', "def.value.type", 'boot.firmware = "uefi"'),
        ('firmware = "uefi"', "def.value.type", 'boot.firmware = "uefi"'),
        ('display = "vnc"', "def.value.type", 'display.type = "vnc"'),
        ('cloud_init = "u.yaml"', "def.value.type", 'cloud_init.user_data = "u.yaml"'),
        ("abc = 4", "def.key.unknown", "keys here: extends, unset, vars, vcpus, memory"),
        ('display = { type = "vnc", address = ":1" }', "def.net.exposed", 'address = "127.0.0.1:5901"'),
        ('display = { type = "vnc", address = "127.0.0.1:2" }', "def.value.range", 'address = "127.0.0.1:5902"'),
        ('raw.args = "-vga std"', "def.value.type", 'args = ["-vga", "std"]'),
        ('raw.args = ["-vga std"]', "def.raw.option", 'args = ["-vga", "std"]'),
        ('disk.a.cache = "none"', "def.value.type", "path ="),
        ('disk.A.path = "a.img"', "def.name", ""),
        (f'disk.{"a" * 41}.path = "a.img"', "def.name", ""),
        ('disk.a.path = "lvm:vg0"', "def.path", '"lvm:vg0/web01"'),
        ('disk.a.path = "lvm:../web01"', "def.path", '"lvm:vg0/web01"'),
        ('disk.a.path = "a.img"\ndisk.a.backing = "b.img"', "def.value.choice", ""),
        ('disk.a.path = "a.qcow2"\ndisk.a.backing = "/elsewhere/b.img"', "def.path", ""),
        ('disk.a.path = "a.img"\ndisk.a.preallocation = "metadata"', "def.value.choice", ""),
        ('disk.a.path = "a.img"\ndisk.a.thin_pool = "pool"', "def.value.choice", ""),
        ('name = "x"', "def.key.unknown", ""),
        ("origins = {}", "def.key.unknown", ""),
        ("cache = 1", "def.key.unknown", "[disk.NAME]"),
        ("share = 1", "def.value.type", ""),
        ('description = "${x}"', "def.var", "$${"),
        ('description = "${env:NOTHING}"', "def.var", "export NOTHING"),
        ('description = "${x"', "def.var", "close it"),
        ("vars.a = 3", "def.value.type", 'a = "3"'),
        ('vars = "a"', "def.value.type", ""),
        ('vars."a b" = "c"', "def.var", ""),
        ('vars.a = "${b}"\nvars.b = "x"', "def.var", ""),
        ("extends = 3", "def.value.type", ""),
        ('extends = "a.toml"', "def.value.type", 'extends = ["a.toml"]'),
        ('extends = ["a.toml"]', "def.extends", "ls -l /vm/a.toml"),
        ('extends = ["${x}.toml"]', "def.extends", ""),
        ('unset = "disk.a"', "def.value.type", 'unset = ["disk.a"]'),
        ('unset = ["disk.a"]', "def.extends", ""),
        ("vcpus = 1\ncpu.vcpus = 2", "def.shorthand", "cpu.vcpus"),
    ],
)
def test_a_mistake_has_its_code_its_line_and_the_right_spelling(text: str, code: str, hint: str) -> None:
    finding = only(text)

    assert finding.report.code == code
    assert hint in finding.report.hint
    assert re.match(r"/vm/web01\.toml:[12]:\d+ \S", finding.report.where)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a = ", ":1:5"),
        ("vcpus = 1\n vcpus = 2\n", ":2:2"),
        ("[cpu]\n[memory]\n[cpu]\n", ":3:1"),
        ("vcpus = 1\na = " + "[" * 2000, ":2:5"),
        ("vcpus = 1\n" + "a." * 500 + "b = 1", ":2:1"),
        ("vcpus = " + "1" * 5000, ":1:9"),
        ('\nx = "\0"', ":2:6"),
        (b"vcpus = 1\ndescription = '\xff'", ":2:16"),
        (b"\xef\xbb\xbfvcpus = 1", ":1:1"),
        ("#" * (50 << 20), ":1:1"),
    ],
)
def test_a_text_that_is_no_toml_is_one_finding_with_its_place(text: str | bytes, where: str) -> None:
    finding = only(text)

    assert finding.report.code == "def.toml.syntax"
    assert finding.report.where == f"/vm/web01.toml{where}"


def test_a_path_with_bytes_that_are_not_utf8_shows_them_escaped() -> None:
    finding = only(b'vcpus = 1\n[disk.a]\npath = "\xff\xfe.img"\n')

    assert finding.report.code == "def.path"
    assert finding.report.where == "/vm/web01.toml:3:9"
    assert r"\xff\xfe.img" in finding.report.why


def test_bytes_of_the_command_line_that_are_not_utf8_are_refused() -> None:
    assert codes("", "disk.a.path=/x/\udcff.img", "description=\udcff") == ["def.path", "def.value.type"]


@pytest.mark.parametrize(
    "text",
    [
        'disk = "x.img"\n[disk.data]\npath = "y.img"\n',
        'disk = "x.img"  # the system\n\n[ disk . data ]\npath = "y.img"\n',
    ],
)
def test_a_shorthand_beside_its_table_is_told_what_to_write(text: str) -> None:
    finding = only(text)

    assert finding.report.code == "def.shorthand"
    assert finding.report.hint == '[disk.root]\npath = "x.img"'


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('disk = { path = "x.img", format = "raw" }\n', "[disk.NAME]"),
        ('[network]\ntype = "bridge"\n', "[network.NAME]"),
    ],
)
def test_the_keys_of_one_where_names_are_wanted_are_told_so(text: str, hint: str) -> None:
    finding = only(text)

    assert finding.report.code == "def.value.type"
    assert hint in finding.report.hint


@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        ('[disk.a]\npath = "a.img"\n[disk.b]\npath = "b.img"\nserial = "a"', "def.value.choice", "of its own"),
        (
            '[disk.a]\npath = "a.img"\nserial = "x"\n[disk.b]\npath = "b.img"\nserial = "x"',
            "def.value.choice",
            "of its own",
        ),
        (f'[disk.a]\npath = "a.img"\nbus = "virtio-scsi"\nserial = "{"x" * 37}"', "def.value.range", "x" * 36),
        ('[disk.a]\npath = "a.img"\nbus = "nvme"\nqueues = 65', "def.value.range", "queues = 64"),
        ('[share.a]\npath = "/a"\n[share.b]\npath = "/b"\ntag = "a"', "def.value.choice", "of its own"),
        ("[network.a]\nmtu = 9000", "def.value.choice", 'bridge = "br0"'),
        ('[network.a]\nifname = "tap0"\nmodel = "e1000e"\nmtu = 9000', "def.value.choice", 'model = "virtio-net"'),
        ('[memory]\nballoon = "on"\nlock = true', "def.value.choice", 'balloon = "off"'),
        ('[memory]\nksm = "on"\n[share.a]\npath = "/a"\ntype = "virtiofs"', "def.value.choice", 'type = "9p"'),
        (
            '[boot]\nfirmware = "uefi"\nkernel = "k"\n[firmware]\nsecure_boot = true',
            "def.value.choice",
            "boot from its disk",
        ),
        (
            'machine = "pc-i440fx-7.2"\nboot.firmware = "uefi"\nfirmware.secure_boot = true',
            "def.value.choice",
            'machine = "auto"',
        ),
        (f'[boot]\nkernel = "k"\nappend = "{"x" * 2048}"', "def.value.range", ""),
        ('[network.a]\nmac = "00:00:00:00:00:00"', "def.value.choice", "leave mac out"),
    ],
)
def test_what_would_be_dropped_in_silence_is_refused(text: str, code: str, hint: str) -> None:
    finding = only(text)

    assert finding.report.code == code
    assert hint in finding.report.hint


@pytest.mark.parametrize(
    "text",
    [
        '[network.a]\nbridge = "br0"\nmodel = "e1000e"\nmtu = 9000',
        "[network.a]\nmtu = 1400",
        '[network.a]\ntype = "none"\nmtu = 9000',
        '[disk.a]\npath = "a.img"\nserial = ""\n[disk.b]\npath = "b.img"\nserial = ""',
        '[memory]\nballoon = "on"\nprealloc = true',
        'raw.args = ["-boot", "a", "-drive", "if=floppy,format=raw,file=/x"]',
        'security.sandbox = false\nraw.args = ["-netdev", "tap,id=n"]\nnetwork.n.type = "none"',
        'raw.args = ["-nic", "none"]\nnetwork.n.type = "none"',
    ],
)
def test_what_can_be_had_is_not_refused(text: str) -> None:
    assert findings(text) == ()


@pytest.mark.parametrize("key", ["boot.firmware", "memory", "extends", "accel"])
def test_a_key_of_the_top_beneath_a_table_is_told_where_it_stands(key: str) -> None:
    finding = only(f'[network.lan]\nbridge = "br0"\n{key} = "x"\n')

    assert finding.report.code == "def.key.unknown"
    assert "above the first [table]" in finding.report.hint


@pytest.mark.parametrize("extends", ['["gone.toml"]', '"gone.toml"', "[1]"])
def test_a_template_that_is_missing_is_the_only_mistake_of_what_rests_on_it(extends: str) -> None:
    assert len(findings(f'extends = {extends}\nunset = ["disk.scratch.cache", "network.lan"]\n')) == 1


@pytest.mark.parametrize("name", ["a,process=evil", "../x", "", "a" * 41, "a\n", "é", "-a", "A"])
def test_a_vm_has_a_plain_name(name: str) -> None:
    found = findings("", name=name)

    assert [finding.report.code for finding in found] == ["def.name"]


@pytest.mark.parametrize(
    ("override", "code", "hint"),
    [
        ("memory=4GB", "def.size.decimal", "--set memory=4GiB"),
        ("memroy=4GiB", "def.key.unknown", "--set memory=…"),
        ("memory.sise=4GiB", "def.key.unknown", "--set memory.size=…"),
        ("memory=4096", "def.size.unit", "--set memory=4096MiB"),
        ("memory", "def.toml.syntax", "--set KEY=VALUE"),
        ("a..b=1", "def.key.unknown", ""),
        ("raw.args[0]=-x", "def.key.unknown", ""),
        ('extends=["a"]', "def.extends", ""),
        ("security.sandbox=no", "def.value.type", "--set security.sandbox=false"),
        ("vcpus=4\nos='x'", "def.value.type", ""),
    ],
)
def test_a_mistake_of_the_command_line_is_shown_as_it_was_written(override: str, code: str, hint: str) -> None:
    finding = only("", override)

    assert finding.report.code == code
    assert hint in finding.report.hint
    assert finding.report.where == f"--set {override.partition('=')[0]}"


def test_a_mistake_in_a_template_is_shown_in_the_template() -> None:
    finding = only('extends = ["a.toml"]\n', a='\n[console]\nlog = "no"\n')

    assert finding.report.where == "/vm/a.toml:3:7 console.log"


def test_a_mistake_of_a_template_that_the_file_mends_is_none() -> None:
    assert findings('extends = ["a.toml"]\nmemory = "8GiB"\n', a='memory = "8GB"\n') == ()


def test_templates_in_a_circle_are_refused() -> None:
    finding = only('extends = ["a.toml"]\n', a='extends = ["web01.toml"]\n')

    assert (finding.report.code, finding.report.where) == ("def.extends", "/vm/a.toml:1:12 extends[0]")
    assert finding.report.why == "web01.toml → a.toml → web01.toml"


def test_five_levels_of_templates_are_allowed_and_six_are_not() -> None:
    chain = {f"t{level}": f'extends = ["t{level + 1}.toml"]\n' for level in range(1, 6)}

    assert findings('extends = ["t1.toml"]\n', **(chain | {"t5": ""})) == ()
    assert codes('extends = ["t1.toml"]\n', **chain, t6="") == ["def.extends"]


def test_a_broken_template_does_not_make_up_mistakes_of_the_file() -> None:
    text = 'extends = ["a.toml"]\n[disk.root]\ncache = "none"\nserial = "${from_template}"\n'

    assert codes(text, a="a =\n") == ["def.toml.syntax"]


def test_unset_names_what_was_probably_meant() -> None:
    finding = only('extends = ["a.toml"]\nunset = ["disk.scrach"]\n', a='disk.scratch.path = "a.img"\n')

    assert "disk.scratch" in finding.report.hint


def test_a_secret_is_never_repeated() -> None:
    found = findings('raw.args = ["-object", "secret,id=s,data=hunter2"]\n')

    assert [finding.report.code for finding in found] == ["def.secret"]
    assert "hunter2" not in repr(found)


def test_no_message_lets_a_terminal_sequence_through() -> None:
    found = findings('os = "\\u001b[31m"\n"\\u001b[2J" = 1\n')

    texts = [field for finding in found for field in finding.report]
    assert [text for text in texts if "\\u001b" in text]
    assert not [text for text in texts if "\x1b" in text]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[disk.a]\npath = "a.img"\nbus = "nvme"\non_error = "stop"\n', "disk.a.on_error"),
        ('[disk.a]\npath = "a.img"\nbus = "virtio-scsi"\nqueues = 1023\n', "disk.a.queues"),
        ('[disk.a]\npath = "a.img"\n[disk.a.limits]\nbandwidth = "2000TiB/s"\n', "disk.a.limits.bandwidth"),
        ('[display]\naddress = "127.0.0.1:5901"\n', "display.address"),
        ('[disk.a]\npath = "a.qcow2"\nbacking = "x/y/b.img"\n', "disk.a.backing"),
        ('[disk.a]\npath = "a.img"\nformat = "qcow2"\nbacking = "b.img"\n', "disk.a.path"),
        ('[raw]\nargs = ["-serial", "tcp::14445,server=true,wait=off"]\n', "raw.args"),
        ('[raw]\nargs = ["-chardev", "socket,id=c,host=0.0.0.0,port=1,server=y"]\n', "raw.args"),
        ('[raw]\nargs = ["-netdev", "socket,id=n,listen=:5000"]\n', "raw.args"),
        ('[raw]\nargs = ["-machine", "memory-backend=x"]\n', "raw.args"),
    ],
)
def test_what_qemu_would_refuse_or_open_to_all_is_refused_with_its_place(text: str, place: str) -> None:
    assert place in only(text).report.where


def test_a_socket_of_this_host_alone_is_taken() -> None:
    assert codes('[raw]\nargs = ["-netdev", "socket,id=n,listen=127.0.0.1:5000"]\n') == []


def test_a_variable_that_is_not_there_is_said_once() -> None:
    assert codes('[disk.a]\npath = "a.img"\nsize = "${undefined}"\n') == ["def.var"]


def test_every_unknown_variable_of_a_string_is_told() -> None:
    found = findings('description = "${foo} ${bar} ${foo}"\n')

    assert [finding.report.message for finding in found] == [
        "there is no variable ${foo}",
        "there is no variable ${bar}",
    ]


def test_a_shorthand_that_is_written_twice_is_no_table() -> None:
    (found,) = findings('disk = "x.img"\ndisk = "y.img"\n')

    assert (found.report.code, found.report.message) == ("def.toml.syntax", "disk is written twice")


def test_a_free_boot_index_is_free_of_all_others() -> None:
    boots = {"a": 1, "b": 1, "c": 2, "d": 2}
    disks = "".join(f'[disk.{name}]\npath = "{name}.img"\nboot = {boot}\n' for name, boot in boots.items())

    assert [finding.report.hint for finding in findings(disks)] == ["boot = 3", "boot = 4"]


def test_a_string_without_its_end_is_said_to_be_one() -> None:
    (found,) = findings('memory = "8GiB\nvcpus = 2\n')

    assert (found.report.code, found.report.message) == ("def.toml.syntax", "a string does not end on its line")
    assert ":1:" in found.report.where


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('disk = ""', "disk"),
        ('[disk.root]\npath = "/dev/fdset/1"', "disk.root.path"),
        ("network = true", "network"),
        ('memory = "1.0000001GiB"', "memory"),
        ('[lifecycle]\nready = "console:["', "lifecycle.ready"),
    ],
)
def test_a_mistake_without_a_line_to_write_names_the_command_that_tells_what_the_key_holds(text: str, key: str) -> None:
    finding = only(text)

    assert finding.report.hint.startswith(f"kvmlaunch explain {key} ")


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (("memory.hugepages=2MiB", "memory.ksm=on"), "--set memory.ksm=off"),
        (("disk.a.path=a.img", "disk.a.cache=writeback", "disk.a.aio=native"), "--set disk.a."),
    ],
)
def test_values_of_the_command_line_that_do_not_go_together_have_their_fix_there(
    overrides: tuple[str, ...], hint: str
) -> None:
    finding = only("", *overrides)

    assert finding.report.hint.startswith(hint)
