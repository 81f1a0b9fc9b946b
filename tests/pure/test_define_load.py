"""Loading a definition that is right: shorthands, layers, profiles, variables, paths, origins."""

import tomllib
from pathlib import Path, PurePosixPath

import pytest

from kvmlaunch.define import load
from kvmlaunch.define.layers import Source, wanted_files
from kvmlaunch.define.load import Loaded, Surroundings, load_definition
from kvmlaunch.define.resolved import render_origin, render_resolved
from kvmlaunch.model.choice import Origin
from kvmlaunch.model.definition import AUTO, Cpu, Definition, Duration, Forward, Lifecycle, Ready, Topology

pytestmark = pytest.mark.pure

ROOT = Path(__file__).resolve().parents[2]
PROFILES = {path.stem: path.read_text() for path in (Path(load.__file__).parent / "profiles").glob("*.toml")}
SURROUNDINGS = Surroundings(
    environment={"STORE": "/store"}, home=PurePosixPath("/home/ann"), working_directory=PurePosixPath("/work")
)
FILE = "/vm/web01.toml"


def load_text(text: str | bytes, *overrides: str, name: str = "web01", **templates: str) -> Loaded:
    """Load a text as /vm/NAME.toml; templates are beside it, by name."""
    sources = [Source(path=PurePosixPath(FILE), text=text)]
    sources += [Source(path=PurePosixPath(f"/vm/{stem}.toml"), text=other) for stem, other in templates.items()]
    return load_definition(name, sources, overrides, SURROUNDINGS, PROFILES)


def define(text: str, *overrides: str, **templates: str) -> Definition:
    loaded = load_text(text, *overrides, **templates)
    assert loaded.definition is not None, loaded.findings
    return loaded.definition


def test_three_lines_are_a_good_vm() -> None:
    vm = define('vcpus = 4\nmemory = "8GiB"\ndisk = "web01.img"\n')

    assert (vm.name, vm.file) == ("web01", PurePosixPath(FILE))
    assert (vm.cpu.vcpus, vm.memory.size) == (4, 8 << 30)
    assert vm.disk["root"].path == PurePosixPath("/vm/web01.img")
    assert vm.disk["root"].cache is AUTO


def test_an_empty_text_is_a_vm_of_defaults() -> None:
    vm = define("")

    assert vm.origins == {}
    assert vm.origin("cpu.vcpus") == Origin(kind="default", key="cpu.vcpus")


def test_all_five_shorthands_mean_their_keys() -> None:
    vm = define('vcpus = 2\nmemory = "2GiB"\ndisk = "a.img"\nnetwork = "br0"\ncdrom = "x.iso"\n')

    assert vm.network["net0"].bridge == "br0"
    assert vm.cdrom["cd0"].path == PurePosixPath("/vm/x.iso")
    assert vm.origin("disk.root.path") == Origin(kind="file", place=FILE, key="disk")


def test_every_kind_of_value_is_read() -> None:
    vm = define(
        """
        [cpu]
        vcpus = 4
        topology = { sockets = 1, cores = 4 }
        pin = "2-4,8"
        features = { pmu = "off" }
        [memory]
        numa = "1"
        [disk.a]
        path = "a.raw"
        limits = { iops = 100, bandwidth = "1.5MiB/s" }
        [network.lan]
        mac = "52-54-00-AB-CD-EF"
        forwards = ["tcp:127.0.0.1:8080:80", "udp:[::1]:53:53"]
        [lifecycle]
        stop_timeout = "500ms"
        ready = "console:login: ?$"
        """
    )

    assert vm.cpu.topology == Topology(sockets=1, cores=4, threads=1)
    assert vm.cpu.pin == (2, 3, 4, 8)
    assert vm.memory.numa == 1
    assert vm.disk["a"].limits.bandwidth == 3 << 19
    assert vm.network["lan"].mac == "52:54:00:ab:cd:ef"
    assert vm.network["lan"].forwards[1] == Forward(protocol="udp", address="::1", host_port=53, guest_port=53)
    assert vm.lifecycle == Lifecycle(stop_timeout=Duration(0.5), ready=Ready(kind="console", target="login: ?$"))


def test_the_order_of_the_file_is_the_order_of_the_devices() -> None:
    vm = define('[disk.z]\npath = "z.img"\n[disk.a]\npath = "a.img"\n')

    assert list(vm.disk) == ["z", "a"]


def test_templates_merge_left_to_right_and_the_file_wins() -> None:
    vm = define(
        'extends = ["a.toml", "b.toml"]\nvcpus = 4\n',
        a='vcpus = 1\nmemory = "1GiB"\n[labels]\nx = "a"\n',
        b='vcpus = 2\nmemory = "2GiB"\n[labels]\ny = "b"\n',
    )

    assert (vm.cpu.vcpus, vm.memory.size) == (4, 2 << 30)
    assert vm.labels == {"x": "a", "y": "b"}
    assert vm.origin("memory.size") == Origin(kind="file", place="/vm/b.toml", key="memory")


def test_an_array_of_a_template_is_replaced_whole() -> None:
    vm = define('extends = ["a.toml"]\n[raw]\nargs = ["-x"]\n', a='[raw]\nargs = ["-y", "-z"]\n')

    assert vm.raw.args == ("-x",)


def test_unset_removes_what_a_template_has() -> None:
    vm = define('extends = ["a.toml"]\nunset = ["disk.scratch"]\n', a='[disk.scratch]\npath = "s.img"\n')

    assert vm.disk == {}


def test_a_template_may_be_reached_twice() -> None:
    vm = define(
        'extends = ["a.toml", "b.toml"]\n', a='extends = ["c.toml"]\n', b='extends = ["c.toml"]\n', c="vcpus = 3\n"
    )

    assert vm.cpu == Cpu(vcpus=3)


def test_paths_are_relative_to_the_file_that_has_them() -> None:
    site = Source(path=PurePosixPath("/etc/site/site.toml"), text='[disk.data]\npath = "../data.img"\n')
    own = Source(path=PurePosixPath(FILE), text='extends = ["../etc/site/site.toml"]\ndisk = "~/web01.img"\n')
    loaded = load_definition("web01", [own, site], ["disk.tmp.path=t/tmp.img"], SURROUNDINGS, PROFILES)

    assert loaded.definition is not None
    paths = {name: str(disk.path) for name, disk in loaded.definition.disk.items()}
    assert paths == {"data": "/etc/data.img", "root": "/home/ann/web01.img", "tmp": "/work/t/tmp.img"}


@pytest.mark.parametrize(
    "name", ["nbd:localhost:1", "fat:rw:x", "json:{}", "http://h/x", "rbd:p/i", "file:a", "-a b,c=d", "é"]
)
def test_a_path_that_looks_like_a_protocol_is_a_file(name: str) -> None:
    vm = define(f'[disk.root]\npath = "{name}"\nformat = "raw"\n')

    assert str(vm.disk["root"].path) == f"/vm/{name}".replace("//", "/")


def test_wanted_files_are_what_a_text_extends() -> None:
    source = Source(path=PurePosixPath(FILE), text='extends = ["profiles/site.toml", "~/b.toml", 3]')

    assert wanted_files(source, PurePosixPath("/home/ann")) == (
        PurePosixPath("/vm/profiles/site.toml"),
        PurePosixPath("/home/ann/b.toml"),
    )


@pytest.mark.parametrize("text", ["", "a = ", "extends = 3", 'extends = ["${x}"]', b"\xff"])
def test_a_text_without_templates_or_sense_wants_no_files(text: str | bytes) -> None:
    assert wanted_files(Source(path=PurePosixPath(FILE), text=text)) == ()


def test_set_takes_toml_values_and_plain_words() -> None:
    vm = define(
        'disk = "a.img"\n',
        *("memory=4GiB", "vcpus=2", "disk.root.cache=none", "memory.numa=0", "cpu.pin=2-3", "description=5"),
        *('raw.args=["-x"]', "cpu.topology={ cores = 2 }", 'labels."a.b"=x'),
    )

    assert (vm.memory.size, vm.cpu.vcpus, vm.disk["root"].cache) == (4 << 30, 2, "none")
    assert (vm.memory.numa, vm.cpu.pin, vm.description) == (0, (2, 3), "5")
    assert (vm.raw.args, vm.labels) == (("-x",), {"a.b": "x"})
    assert vm.origin("memory.size") == Origin(kind="set", key="memory")


def test_the_last_set_wins_over_everything() -> None:
    vm = define('extends = ["a.toml"]\nvcpus = 2\n', "vcpus=3", "cpu.vcpus=4", a="vcpus = 1\n")

    assert vm.cpu == Cpu(vcpus=4)


def test_variables_come_from_the_file_the_vm_and_the_environment() -> None:
    vm = define(
        'description = "$${x} $ ${who}"\n[vars]\nwho = "${vm.name}"\n[disk.a]\npath = "${env:STORE}/${who}.img"\n'
        '[disk.b]\npath = "${vm.dir}/b.img"\n'
    )

    assert vm.description == "${x} $ web01"
    assert [str(disk.path) for disk in vm.disk.values()] == ["/store/web01.img", "/vm/b.img"]


def test_a_template_uses_the_variables_of_the_file() -> None:
    vm = define('extends = ["a.toml"]\n[vars]\nrole = "db"\n', a='description = "${role}"\n[vars]\nrole = "any"\n')

    assert vm.description == "db"


def test_notes_are_not_read_but_a_disk_may_be_named_like_one() -> None:
    vm = define('x-owner = "${nobody}"\n[x-tool]\na = 1\n[disk.x-ray]\npath = "a.img"\nx-note = 1\n')

    assert list(vm.disk) == ["x-ray"]
    assert list(vm.origins) == ["disk.x-ray.path"]


@pytest.mark.parametrize("profile", ["server", "database", "desktop", "density", "scratch"])
def test_every_profile_loads_and_says_where_its_values_come_from(profile: str) -> None:
    vm = define(f'profile = "{profile}"\n[disk.a]\npath = "a.img"\n')

    kinds = {origin.kind for key, origin in vm.origins.items() if key not in {"profile", "disk.a.path"}}
    assert kinds <= {"profile"}


def test_scratch_alone_makes_every_disk_unsafe() -> None:
    text = (
        '[disk.a]\npath = "a.img"\n[disk.b]\npath = "b.img"\ncache = "none"\n[disk.c]\npath = "c.img"\ncache = "auto"\n'
    )

    caches = {
        profile: [disk.cache for disk in define(text, f"profile={profile}").disk.values()] for profile in PROFILES
    }

    assert caches.pop("scratch") == ["unsafe", "none", AUTO]
    assert all(cache == [AUTO, "none", AUTO] for cache in caches.values())


def test_a_profile_never_makes_a_disk() -> None:
    assert define("", "profile=scratch").disk == {}


def test_a_file_wins_over_its_profile() -> None:
    vm = define('profile = "density"\n[memory]\nksm = "off"\n')

    assert (vm.memory.ksm, vm.memory.hugepages) == ("off", "off")
    assert vm.origin("memory.hugepages") == Origin(kind="profile", place="density", key="memory.hugepages")


@pytest.mark.parametrize("path", sorted((ROOT / "vmdefs").glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_right_and_reads_back_from_its_resolved_text(path: Path) -> None:
    loaded = load_text(path.read_bytes(), name=path.stem)
    assert loaded.definition is not None, loaded.findings

    again = load_text(render_resolved(loaded.definition), name=path.stem)

    assert again.definition is not None, again.findings
    assert again.definition.digest == loaded.definition.digest


def test_the_digest_changes_with_a_value_and_not_with_a_comment() -> None:
    text = 'vcpus = 4\ndisk = "a.img"\n'

    digests = [define(other).digest for other in (text, f"# a note\n{text}", 'vcpus = 5\ndisk = "a.img"\n')]

    assert digests[0] == digests[1] != digests[2]


def test_the_resolved_text_tells_every_origin() -> None:
    vm = define('profile = "scratch"\ndisk = "a.img"\n', "vcpus=2")

    lines = render_resolved(vm, render_origin).splitlines()

    assert "vcpus = 2  # --set vcpus" in lines
    assert f'path = "/vm/a.img"  # {FILE} disk' in lines
    assert 'cache = "unsafe"  # profile scratch' in lines
    assert 'aio = "auto"  # default' in lines


def test_the_resolved_text_is_toml_whatever_the_values() -> None:
    vm = define('description = "\\" \\\\ \\n $${x} \\u0085 é"\nmemory = "1GiB"\n[disk.a]\npath = "a\\tb.img"\n')

    text = render_resolved(vm)

    assert tomllib.loads(text)["disk"]["a"]["path"] == "/vm/a\tb.img"
    assert define(text).description == vm.description
