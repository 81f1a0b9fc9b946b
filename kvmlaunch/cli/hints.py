"""The commands of a hint find the definition that was asked for: its file, `--defs` and `--set` come along."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from kvmlaunch.cli.commands import COMMANDS
from kvmlaunch.host.definitions import SUFFIX
from kvmlaunch.steps.names import name_of

COMMAND: Final = re.compile(
    r"\bkvmlaunch (?P<verb>(?:(?:disk snapshot|disk|tune) )?[a-z-]+)"
    r"(?: (?P<vm>[a-z0-9][a-z0-9-]*)(?P<disk>:[a-z0-9-]+)?(?=[\s:]|$))?"
)
SET: Final = re.compile(r"--set '?([^=\s']+)")
PLANNING: Final = {"print-cmd", "explain", "show", "validate", "preflight", "up", "disk"}
NO_DEFINITION: Final = {"version", "completion", "schema"}


def as_typed(hint: str) -> str:
    """Give a hint whose commands name definitions as this command was given them."""
    return as_asked(hint, sys.argv[1:], exists=os.path.exists)


def as_asked(hint: str, words: Sequence[str], *, exists: Callable[[str], bool]) -> str:
    """Give a hint whose commands name definitions as the words of the command line did, where there is such a file."""
    files = {name_of(word): word for word in written_files(words) if exists(word)}
    directories = "".join(f" --defs {shlex.quote(word)}" for word in values(words, "--defs"))
    overrides = {word.partition("=")[0]: f" --set {shlex.quote(word)}" for word in values(words, "--set")}
    if not files and not directories and not overrides:
        return hint

    def addressed(found: re.Match[str]) -> str:
        verb, vm, disk = found["verb"], found["vm"] or "", found["disk"] or ""
        if verb.split()[0] not in COMMANDS:  # a sentence
            return found[0]
        before = "" if verb in NO_DEFINITION or vm in files else directories
        own = set(SET.findall(hint[found.end() :].partition("\n")[0]))  # what this command sets itself
        kept = (text for key, text in overrides.items() if key not in own)
        settings = "".join(kept) if vm and verb.split()[0] in PLANNING else ""
        return f"kvmlaunch{before} {verb}" + (f" {shlex.quote(files.get(vm, vm))}{disk}{settings}" if vm else "")

    return COMMAND.sub(addressed, hint)


def written_files(words: Sequence[str]) -> Iterator[str]:
    """Give the definition files among words of a command line, such as `a.toml`, `a.toml:root` and `--file=a.toml`."""
    for word in words:
        name = word.partition("=")[2] if word.startswith("-") else word
        file, suffix, _ = name.partition(f"{SUFFIX}:")
        if suffix or name.endswith(SUFFIX):
            yield f"{file}{SUFFIX}" if suffix else name


def values(words: Sequence[str], option: str) -> Iterator[str]:
    """Give the values of an option that may be repeated."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            yield after
        elif word.startswith(f"{option}="):
            yield word.partition("=")[2]
