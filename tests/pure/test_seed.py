"""The files of a seed for cloud-init: what of the user's is taken, and what ours says."""

import gzip
import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kvmlaunch.builder.cloud_init import build_seed, installs_agent, plan_seed, plan_tweaks, seed_rows
from kvmlaunch.define.layers import Source
from kvmlaunch.define.load import Surroundings, load_definition
from kvmlaunch.guest.seed import (
    LONGEST,
    check_mapping,
    check_meta_data,
    check_network,
    check_table,
    check_user_data,
    render_meta_data,
    render_vendor_data,
    seed_contents,
)
from kvmlaunch.host.definitions import load_profiles
from kvmlaunch.model.definition import Definition

SURROUNDINGS: Final = Surroundings(environment={}, home=PurePosixPath("/root"), working_directory=PurePosixPath("/w"))
PROFILES: Final = load_profiles()
SWITCHES: Final = ("scheduler", "trim", "agent", "haltpoll")
TEXTS: Final = st.text(st.characters(exclude_categories=["Cs"]))
MIME: Final = 'Content-Type: multipart/mixed; boundary="x"\nMIME-Version: 1.0\n\n--x--\n'


def defined(text: str) -> Definition:
    """Give a definition."""
    source = Source(path=PurePosixPath("/vm/web.toml"), text=text)
    loaded = load_definition("web", [source], (), SURROUNDINGS, PROFILES)
    assert loaded.definition, loaded.findings
    return loaded.definition


def with_switches(*on: str) -> Definition:
    """Give a definition that has these switched on, and no other."""
    return defined("[cloud_init]\n" + "".join(f"{name} = {str(name in on).lower()}\n" for name in SWITCHES))


def vendor_data(*on: str) -> str:
    """Give the vendor data of a definition that has these switched on."""
    return render_vendor_data("web", plan_tweaks(with_switches(*on))).decode()


@pytest.mark.parametrize(
    "content",
    [
        *("#cloud-config\nusers: []\n", "#cloud-config\n", "#cloud-config", "#cloud-config\r\nusers: []\r\n"),
        *("#!/bin/sh\necho :\n", "#include\nhttp://example.org/\n", "#include-once\nhttp://example.org/\n"),
        *("#cloud-boothook\n#!/bin/sh\n", "#part-handler\n", "## template: jinja\n#cloud-config\n{{ x }}: y\n"),
        *(MIME, "MIME-Version: 1.0\nContent-Type: multipart/mixed\n\n"),
        *("#cloud-config\n{a: &x [1], b: *x}\n", "#cloud-config\nname: é\n"),
    ],
)
def test_every_kind_of_user_data_is_taken(content: str) -> None:
    assert check_user_data(content.encode()) == ""


@pytest.mark.parametrize(
    "content",
    ['#cloud-config-archive\n- type: text/cloud-config\n  content: "a: 1"\n', '#cloud-config-jsonp\n[{"op": "add"}]\n'],
)
def test_kinds_whose_names_begin_with_cloud_config_are_no_tables_and_taken(content: str) -> None:
    assert check_user_data(content.encode()) == ""


def test_compressed_user_data_is_taken_unread() -> None:
    assert check_user_data(gzip.compress(b"#cloud-config\n")) == ""


@pytest.mark.parametrize(
    ("content", "why"),
    [
        *((b"", "kind"), (b"\n", "kind"), (b"users: []\n", "kind"), (b"# cloud-config\n", "kind")),
        *((b"cloud-config\n", "kind"), (b"\xef\xbb\xbf#cloud-config\n", "kind"), (b"PK\x03\x04", "kind")),
        *((b"\xff\xfe#\0", "UTF-8"), (b"#cloud-config\n\xe9: 1\n", "UTF-8"), (bytes(range(256)), "UTF-8")),
        *((b"#cloud-config\n- a\n", "table"), (b"#cloud-config\ntext\n", "table"), (b"#cloud-config\n5\n", "table")),
        *((b"#cloud-config\na: [\n", "YAML"), (b"#cloud-config\n\ta: 1\n", "YAML")),
        (b"#cloud-config\na: b: c\n", "YAML"),
        *((b"#cloud-config\na: \x01\n", "YAML"), (b"#cloud-config\na: *x\n", "YAML")),
        *((b"#cloud-config\na: !!python/object:os.system {}\n", "YAML"), (b"#cloud-config\na: 1\n---\nb: 2\n", "YAML")),
        (b"#cloud-config\n" + b"a: [" * 50_000, "YAML"),
    ],
    ids=range(21),
)
def test_what_cloud_init_would_not_take_is_told(content: bytes, why: str) -> None:
    assert why in check_user_data(content)


@pytest.mark.parametrize(
    "value",
    [
        *('!!int ""', '!!float ""', "!!bool maybe", "!!timestamp never", "!!binary é", "2001-99-99", '!!int "0x"'),
        *("0001-01-01 00:00:00 +23:59", "9999-12-31 23:59:59 -23:59", "{[a]: b}", "{{a: b}: c}", "!!omap a"),
        *("!!set [a]", "!!pairs a", "!!merge x", "=", "{<<: 5}", "!!float 1e999", "!!float .", "1:99999:99"),
        *("!!null {}", "!!str [a]"),
    ],
)
def test_yaml_that_its_reader_chokes_on_is_told_or_taken_and_nothing_escapes(value: str) -> None:
    why = check_user_data(f"#cloud-config\na: {value}\n".encode())

    assert "\n" not in why


@given(st.binary(max_size=200))
def test_no_user_data_makes_an_error(content: bytes) -> None:
    check_user_data(content)
    check_user_data(b"#cloud-config\n" + content)


@given(st.text(alphabet="!{}[]:,&*<-?|>'\"%@#= \n\tabint09.~", max_size=60))
def test_no_yaml_makes_an_error(text: str) -> None:
    check_mapping(text)


def test_user_data_may_have_a_mebibyte_and_no_more() -> None:
    head = b"#!/bin/sh\n"

    assert check_user_data(head.ljust(LONGEST)) == ""
    assert "longer" in check_user_data(head.ljust(LONGEST + 1))
    assert "longer" in check_user_data(gzip.compress(b"").ljust(LONGEST + 1))


def test_vendor_data_sets_what_is_wanted_by_itself() -> None:
    found = render_vendor_data("web", plan_tweaks(defined("[cloud_init]\nenabled = true\n"))).decode()

    assert found.startswith("#!/bin/sh\n")
    assert "    want_package qemu-guest-agent\n" in found
    assert "    want_file /etc/udev/rules.d/60-kvmlaunch-scheduler.rules " in found
    assert "    want_unit fstrim.timer\n" in found


@given(st.sets(st.sampled_from(SWITCHES), min_size=1))
def test_vendor_data_has_exactly_what_is_switched_on(on: set[str]) -> None:
    found = vendor_data(*on)

    marks: Mapping[str, str] = {
        "scheduler": "60-kvmlaunch-scheduler.rules",
        "trim": "fstrim.timer",
        "agent": "qemu-guest-agent",
        "haltpoll": "cpuidle_haltpoll",
    }
    assert {name for name, mark in marks.items() if mark in found} == on


def test_with_all_switched_off_vendor_data_is_an_empty_table() -> None:
    assert vendor_data() == "#cloud-config\n{}\n"


def test_the_scheduler_is_set_by_a_rule_of_one_line() -> None:
    rule = next(line for line in vendor_data("scheduler").splitlines() if "want_file /etc/udev" in line)

    assert 'ATTR{queue/scheduler}="none"' in rule
    assert rule.endswith("'")


@given(TEXTS, TEXTS, st.lists(TEXTS))
def test_meta_data_says_who_the_guest_is(instance: str, hostname: str, keys: list[str]) -> None:
    found = json.loads(render_meta_data(instance, hostname, keys))

    assert found == {"instance-id": instance, "local-hostname": hostname, **({"public-keys": keys} if keys else {})}


def test_meta_data_reads_as_yaml_what_json_says() -> None:
    content = render_meta_data("id-1", "front", ['ssh-ed25519 AAAA "alice": é\U0001f600 \x85\u2028'])

    assert yaml.safe_load(content) == json.loads(content)


def test_more_metadata_is_laid_over_ours() -> None:
    more = b"local-hostname: other\nregion: north\nsince: 2026-01-02\n"

    found = json.loads(render_meta_data("id-1", "front", ["key"], more))

    assert found == {
        "instance-id": "id-1",
        "local-hostname": "other",
        "public-keys": ["key"],
        "region": "north",
        "since": "2026-01-02",
    }
    assert json.loads(render_meta_data("id-1", "front", [], b"# nothing\n")) == {
        "instance-id": "id-1",
        "local-hostname": "front",
    }


@pytest.mark.parametrize("content", [b"- a\n", b"1: a\n", b"a: [\n", b"\xff", b"text"])
def test_metadata_that_is_no_table_of_names_is_refused(content: bytes) -> None:
    assert check_table(content)


@pytest.mark.parametrize("content", [b"- a\n", b"a:\n  2020-01-01: x\n", b"a: &x [*x]\n"])
def test_metadata_that_json_cannot_hold_is_refused(content: bytes) -> None:
    assert check_meta_data(content)
    assert check_meta_data(b"since: 2020-01-01\n") == ""


@pytest.mark.parametrize("content", [b"packages: [x]\n", b"version: [2]\n", b"network: {version: {a: 1}}\n", b""])
def test_a_network_that_tells_no_version_is_refused(content: bytes) -> None:
    assert check_network(content)


@pytest.mark.parametrize("content", [b"version: 2\n", b"network: {version: 1}\n", b"network: {config: disabled}\n"])
def test_a_network_that_cloud_init_reads_is_taken(content: bytes) -> None:
    assert check_network(content) == ""


def test_a_seed_has_user_data_even_where_none_is_written_and_a_network_only_where_it_is() -> None:
    bare = seed_contents(user_data=None, network=None, meta_data=b"m", vendor_data=b"v")
    full = seed_contents(user_data=b"", network=b"n", meta_data=b"m", vendor_data=b"v")

    assert bare == {"meta-data": b"m", "user-data": b"#cloud-config\n{}\n", "vendor-data": b"v"}
    assert check_user_data(bare["user-data"]) == ""
    assert full == {"meta-data": b"m", "user-data": b"", "vendor-data": b"v", "network-config": b"n"}


@pytest.mark.parametrize(
    ("text", "has"),
    [
        *(("", False), ("[cloud_init]\n", False), ("[cloud_init]\ntrim = false\n", True)),
        *(('[cloud_init]\nhostname = "a"\n', True), ("[cloud_init]\nenabled = true\n", True)),
        *(('[cloud_init]\nenabled = false\nhostname = "a"\n', False), ('[cloud_init]\nenabled = "auto"\n', False)),
    ],
)
def test_there_is_a_seed_where_anything_of_it_is_written_unless_it_is_switched_off(text: str, *, has: bool) -> None:
    definition = defined(text)

    assert plan_seed(definition).value is has
    assert bool(build_seed(definition).options) is has
    assert installs_agent(definition) is has


def test_explain_has_a_row_for_every_switch_where_there_is_a_seed() -> None:
    rows = {row.key: row.choice.value for row in seed_rows(defined("[cloud_init]\ntrim = false\n"))}

    assert rows == {
        "cloud_init.enabled": True,
        "cloud_init.scheduler": True,
        "cloud_init.trim": False,
        "cloud_init.agent": True,
        "cloud_init.haltpoll": False,
    }


@pytest.mark.parametrize(("pin", "polls"), [("none", False), ("auto", True)])
def test_a_guest_polls_where_its_vcpus_are_pinned(pin: str, *, polls: bool) -> None:
    definition = defined(f'[cpu]\npin = "{pin}"\n[cloud_init]\nenabled = true\n')

    found = {tweak.name: tweak.wanted.value for tweak in plan_tweaks(definition)}

    assert found["haltpoll"] is polls


def test_an_agent_is_not_installed_where_its_channel_is_switched_off() -> None:
    (agent,) = (each for each in plan_tweaks(defined("guest_agent.enabled = false")) if each.name == "agent")

    assert not agent.wanted.value
    assert "no channel" in agent.wanted.reason
