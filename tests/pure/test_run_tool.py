"""A tool that may take long: how it ended, what it printed meanwhile, and that it ends with us."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from kvmlaunch.errors import HostFailed
from kvmlaunch.run.process import none_left_behind
from kvmlaunch.run.spawn import Child, Owner, spawn_child
from kvmlaunch.run.tool import run_long
from tests.sandbox import is_alive

pytestmark = pytest.mark.pure

US = Owner(uid=os.getuid(), gid=os.getgid())


def test_status_and_both_streams_are_given() -> None:
    done = run_long(("sh", "-c", "echo out; echo err >&2; exit 3"), US)

    assert (done.status, done.out, done.err) == (3, "out\n", "err\n")


def test_a_signal_is_a_negative_status() -> None:
    assert run_long(("sh", "-c", "kill -9 $$"), US).status == -9


def test_bytes_that_are_no_text_are_kept_apart() -> None:
    assert run_long(("printf", r"\377"), US).out == "\udcff"


def test_what_it_prints_is_seen_while_it_runs() -> None:
    seen: list[str] = []

    run_long(("sh", "-c", "echo half; sleep 0.5; echo whole"), US, look=seen.append)

    assert "half\n" in seen


def test_it_inherits_the_lock_and_nothing_else_of_ours(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock, (tmp_path / "other").open("w"):
        done = run_long(("sh", "-c", "readlink /proc/self/fd/*"), US, fds=(lock.fileno(),))

    assert str(tmp_path / "lock") in done.out
    assert str(tmp_path / "other") not in done.out


def test_it_ends_with_us() -> None:
    seen: list[int] = []

    def interrupt(text: str) -> None:
        if text:
            seen.append(int(text))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_long(("sh", "-c", "echo $$; exec sleep 60"), US, look=interrupt)

    assert not is_alive(seen[0])


def test_a_tool_that_is_not_there_is_said_with_its_package() -> None:
    with pytest.raises(HostFailed) as raised:
        run_long(("no-such-tool",), US)

    assert raised.value.report.code == "host.tool.missing"


def test_a_tool_that_cannot_be_executed_is_said(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("")

    with pytest.raises(HostFailed) as raised:
        run_long((str(tmp_path / "tool"),), US)

    assert raised.value.report.code == "host.tool.failed"


def test_only_what_was_started_within_is_ended_by_a_failure() -> None:
    def begin() -> Child:
        return spawn_child(("sleep", "60"), US, out_fd=1, err_fd=2, fds=())

    children = [begin()]
    with suppress(KeyboardInterrupt), none_left_behind():
        children.append(begin())
        raise KeyboardInterrupt
    alive = [is_alive(child.pid) for child in children]
    for child in children:
        child.kill()
        child.wait()

    assert alive == [True, False]
