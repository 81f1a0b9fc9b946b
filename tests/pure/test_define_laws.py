"""Laws: of merging, of key paths, of quoting, of two parsers that must agree, and of text that must never raise."""

import tomllib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmlaunch.define.layers import Source
from kvmlaunch.define.load import Surroundings, load_definition
from kvmlaunch.define.positions import locate
from kvmlaunch.define.tree import Path, Tree, join_path, leaves, merge, plain, quote, split_path, tree_of, without
from kvmlaunch.define.values import (
    MOST_BANDWIDTH,
    parse_bandwidth_value,
    parse_cpu_list,
    parse_duration_value,
    parse_forward,
    parse_mac,
    parse_ready,
    parse_size_value,
    render_exact_bandwidth,
    render_exact_size,
    render_forward,
    render_ready,
)
from kvmlaunch.model.choice import Origin
from kvmlaunch.model.definition import Bandwidth, Forward, Ready
from kvmlaunch.units import render_cpus, render_duration

pytestmark = pytest.mark.pure

SURROUNDINGS = Surroundings(environment={}, home=PurePosixPath("/root"), working_directory=PurePosixPath("/work"))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
KEYS = st.one_of(st.sampled_from(["a", "b", "c", "a.b"]), TEXT.filter(bool))
TABLES = st.recursive(
    st.dictionaries(KEYS, st.one_of(st.integers(-9, 9), TEXT, st.booleans()), max_size=3),
    lambda inner: st.dictionaries(KEYS, st.one_of(st.integers(-9, 9), inner), max_size=3),
    max_leaves=8,
)
TREES = TABLES.map(lambda table: tree_of(table, Origin(kind="file", place="/x")))
PORTS = st.integers(1, 65535)


def toml_of(table: Mapping[str, Any]) -> str:
    pairs = (f"{quote(key)} = {toml_of(v) if isinstance(v, dict) else scalar(v)}" for key, v in table.items())
    return "{" + ", ".join(pairs) + "}"


def scalar(value: object) -> str:
    return quote(value) if isinstance(value, str) else str(value).lower()


@given(TREES)
def test_merging_with_nothing_or_with_itself_changes_nothing(tree: Tree) -> None:
    assert merge(tree, {}) == merge({}, tree) == merge(tree, tree) == tree


@given(TREES, TREES, TREES)
def test_layers_of_tables_may_be_merged_in_any_grouping_when_the_top_one_is_last(a: Tree, b: Tree, c: Tree) -> None:
    upper = dict(leaves(c))

    merged = dict(leaves(merge(merge(a, b), c)))

    assert all(merged[path] == leaf for path, leaf in upper.items())


@given(TREES)
def test_what_is_removed_is_gone_and_the_rest_stays(tree: Tree) -> None:
    for path, _ in leaves(tree):
        left = dict(leaves(without(tree, path)))
        assert left == {other: leaf for other, leaf in leaves(tree) if other != path}


@given(TABLES)
def test_a_tree_gives_its_table_back(table: dict[str, object]) -> None:
    assert plain(tree_of(table, Origin(kind="set"))) == table


@given(st.lists(KEYS, min_size=1, max_size=4), st.one_of(st.none(), st.integers(0, 99)))
def test_a_key_path_reads_back(names: list[str], index: int | None) -> None:
    path: Path = (*names, index) if index is not None else tuple(names)

    assert split_path(join_path(path)) == path


@given(TEXT)
def test_quoted_text_is_toml_and_reads_back(text: str) -> None:
    assert tomllib.loads(f"a = {quote(text)}") == {"a": text}


@given(TABLES)
def test_both_parsers_of_toml_read_the_same_values(table: dict[str, Any]) -> None:
    import toml_rs

    text = f"top = {toml_of(table)}\n"

    assert tomli.loads(text) == toml_rs.loads(text) == {"top": table}


@settings(deadline=None)
@given(TABLES)
def test_every_leaf_of_a_text_is_found_in_its_line(table: dict[str, Any]) -> None:
    text = f"\ntop = {toml_of(table)}\n"

    for path, _ in leaves(tree_of(tomli.loads(text), Origin(kind="file"))):
        place = locate(text, join_path(path))
        assert place is not None
        assert text.splitlines()[place[0] - 1].startswith("top")


@settings(max_examples=300, deadline=None)
@given(st.one_of(TEXT, st.binary(max_size=40), TABLES.map(toml_of)))
def test_no_text_whatever_raises(text: str | bytes) -> None:
    source = Source(path=PurePosixPath("/vm/a.toml"), text=text)

    loaded = load_definition("a", [source], (), SURROUNDINGS, {})

    assert (loaded.definition is None) == bool(loaded.findings)


@settings(deadline=None)
@given(st.lists(TEXT, max_size=3))
def test_no_override_whatever_raises(overrides: list[str]) -> None:
    source = Source(path=PurePosixPath("/vm/a.toml"), text="")

    loaded = load_definition("a", [source], overrides, SURROUNDINGS, {})

    assert (loaded.definition is None) == bool(loaded.findings)


@given(st.integers(1, (1 << 63) - 1))
def test_every_size_and_bandwidth_in_bytes_reads_back(size: int) -> None:
    assert parse_size_value(render_exact_size(size)) == size
    rate = min(size, MOST_BANDWIDTH)
    assert parse_bandwidth_value(render_exact_bandwidth(Bandwidth(rate))) == rate


@given(st.integers(1, 10_000_000), st.lists(st.integers(0, 99), min_size=1, unique=True))
def test_durations_and_cpu_lists_read_back(milliseconds: int, cpus: list[int]) -> None:
    assert parse_duration_value(render_duration(milliseconds / 1000)) == milliseconds / 1000
    assert parse_cpu_list(render_cpus(tuple(cpus))) == tuple(cpus)


@given(st.sampled_from(["tcp", "udp"]), st.sampled_from(["127.0.0.1", "0.0.0.0", "::1", "fe80::1%eth0"]), PORTS, PORTS)  # noqa: S104
def test_a_forward_reads_back(protocol: Any, address: str, host_port: int, guest_port: int) -> None:  # noqa: ANN401
    forward = Forward(protocol=protocol, address=address, host_port=host_port, guest_port=guest_port)

    assert parse_forward(render_forward(forward)) == forward


@pytest.mark.parametrize("text", ["http://127.0.0.1:8080/", "http://[::1]/a?b=c", "console:^login: $", "tcp:[::1]:22"])
def test_a_condition_reads_back(text: str) -> None:
    ready = parse_ready(text)

    assert isinstance(ready, Ready)
    assert render_ready(ready) == text


@given(st.binary(min_size=6, max_size=6).filter(lambda raw: any((raw[0] & 0xFE, *raw[1:]))))
def test_a_mac_address_is_read_in_any_case(raw: bytes) -> None:
    mac = bytes([raw[0] & 0xFE, *raw[1:]]).hex(":")

    assert parse_mac(mac.upper()) == parse_mac(mac.replace(":", "-")) == mac
