"""A command for several VMs: the steps of each as lines, one failure beside the others, one document of all."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from kvmlaunch.cli.session import Session
from kvmlaunch.cli.show import error_document, say, short_path, show_document, show_failure, talk
from kvmlaunch.errors import KvmlaunchError, Report
from kvmlaunch.steps.caller import Tell
from kvmlaunch.steps.many import common_code, run_each
from kvmlaunch.steps.names import name_of

Document = dict[str, Any]
DETAILS = {"mount": 1, "directory": 1, "tap": 1, "exec": 2}  # steps that are said with so many -v


def teller(session: Session, vm: str) -> Tell:
    """Give what turns the steps of a VM into lines on stderr."""

    def tell(word: str, text: str) -> None:
        if session.verbose < DETAILS.get(word, 0):
            return
        if not session.json or word == "warn":
            say(session, vm, *(("warn", "") if word == "warn" else ("ok", word)), short_path(text))

    return tell


def noting(tell: Tell, said: set[str]) -> Tell:
    """Give what also notes the words of the steps that were told."""

    def tell_and_note(word: str, text: str) -> None:
        said.add(word)
        tell(word, text)

    return tell_and_note


def each_vm(
    session: Session, kind: str, words: Sequence[str], action: Callable[[str], tuple[int, Document]], *, jobs: int = 1
) -> int:
    """Run an action for each VM; failures are shown as they come, and the exit code is that of all.

    An action shows what it did and gives its exit code and its document; with --json all documents are printed as
    one, a VM that failed with its error in it.
    """

    def run_one(word: str) -> tuple[int, str]:
        try:
            code, document = action(word)
        except BrokenPipeError:  # who read the answers went away: what is done to a VM is done
            forget_reader()
            code, document = 0, {"name": name_of(word)}
        except Exception as error:  # noqa: BLE001 - what one VM meets stops no other
            failure = error if isinstance(error, KvmlaunchError) else failure_of(error)
            failure.vm = name_of(word)
            show_failure(session, failure, name_of(word) if len(words) > 1 else "")
            code, document = failure.exit_code, {"name": name_of(word), "error": error_document(failure)}
        return code, json.dumps(document)

    words = tuple(dict.fromkeys(words))
    done = run_each(words, run_one, at_once=jobs)
    if session.json:
        show_document(
            kind, {"vms": [json.loads(text) if text else lost(name_of(word)) for word, (_, text) in done.items()]}
        )
    return common_code(code for code, _ in done.values())


def forget_reader() -> None:
    """Have what is written from now on go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def failure_of(error: Exception) -> KvmlaunchError:
    """Give as an error of ours what no step refused: of the host, of a standard output, or a bug, which is kept."""
    from kvmlaunch.cli.failures import bug_failure, host_failure, output_failure  # noqa: PLC0415 - on a failure only

    if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        raise error
    return output_failure(error) or host_failure(error) or bug_failure(error)


def lost(name: str) -> Document:
    """Give the document of a VM whose process died before it could answer."""
    report = Report(code="internal.bug", message="the process for this VM died", why="it left no answer")
    return {"name": name, "error": error_document(KvmlaunchError(report))}


def named(
    vms: tuple[str, ...], all_of: Callable[[], Sequence[str]] | None = None, *, every: bool = False, nothing: str = ""
) -> Sequence[str]:
    """Give the VMs that a command is for; raises UsageError when none is named, or some beside --all.

    `all_of` gives what --all means, where there is that option; `nothing` is said when it means none.
    """
    if every and vms:
        raise click.UsageError("name VMs, or --all, not both")
    if not vms and not every:
        raise click.UsageError("name a VM, or --all" if all_of else "name a VM")
    found = vms or (all_of() if all_of else ())
    if not found:
        talk(f"nothing to do: {nothing}")
    return found
