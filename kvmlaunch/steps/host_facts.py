"""`facts`: what is known of this host and its QEMU, shown or saved for a report, `--facts` or the tests."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from kvmlaunch.builder.vm import wanted_paths
from kvmlaunch.facts.sources import Captured, Wanted, parse_captured
from kvmlaunch.host.capture import capture_host
from kvmlaunch.host.qemu_probe import capture_answers, save_answers
from kvmlaunch.host.saved import save_capture
from kvmlaunch.model.host import HostFacts
from kvmlaunch.steps.caller import Caller
from kvmlaunch.steps.load import load_subject
from kvmlaunch.steps.resolve import QEMU_ANSWERS, find_binary


def capture(caller: Caller, words: Sequence[str]) -> Captured:
    """Look at everything, and at the files of the VMs that are named."""
    definitions = [load_subject(caller, word).definition for word in words]
    paths: list[PurePosixPath] = [path for definition in definitions for path in wanted_paths(definition)]
    return capture_host(Wanted(paths=tuple(dict.fromkeys(paths)), listeners=True, network_devices=True, io_uring=True))


def read_facts(caller: Caller, words: Sequence[str]) -> HostFacts:
    """Give the host's facts."""
    return parse_captured(capture(caller, words))


def save_facts(caller: Caller, words: Sequence[str], directory: Path) -> tuple[Path, bool]:
    """Save a capture of this host, with QEMU's answers for the first VM's binary where it can be asked.

    Gives the directory and whether QEMU's answers are in it.  Raises HostFailed.
    """
    save_capture(capture(caller, words), directory)
    if not words:
        return directory, False
    answers = capture_answers(find_binary(load_subject(caller, words[0]).definition, caller))
    save_answers(answers, directory / QEMU_ANSWERS)
    return directory, True
