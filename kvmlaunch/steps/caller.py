"""Who asks, from where, and with which options: values that every step takes."""

import os
import pwd
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from kvmlaunch.errors import HostFailed, PreflightFailed, Report
from kvmlaunch.host.definitions import Trust, refuse_name, search_path
from kvmlaunch.host.places import cache_directory, places_for, prepared_places
from kvmlaunch.host.rights import capture_user, user_name
from kvmlaunch.model.plan import Places
from kvmlaunch.model.value import field, frozen

Tell = Callable[[str, str], None]  # the word of a step (`hugepages`) and what was done


@frozen(kw_only=True)
class Caller:
    """Who asks.

    `uid` is the effective one; `for_user` the user that root prepares for, None otherwise.  `file` is `-f`,
    `directories` are `--defs`, `overrides` the KEY=VALUE of `--set`, `facts` a saved capture to build for.
    `command` is what was asked, for hints that ask it again; `line` all of it, for one that asks it as root.
    """

    uid: int
    gid: int
    environment: Mapping[str, str]
    here: PurePosixPath
    home: PurePosixPath
    directories: tuple[str, ...] = ()
    file: str = ""
    overrides: tuple[str, ...] = ()
    facts: Path | None = None
    for_user: str | None = None
    command: str = "kvmlaunch up"
    line: str = "kvmlaunch"
    standard_input: bytes = field(default=b"", repr=False)

    @property
    def owner_uid(self) -> int:
        """The uid that the VM belongs to."""
        return pwd.getpwnam(self.for_user).pw_uid if self.for_user else self.uid

    @property
    def trust(self) -> Trust:
        """Whose definition files are believed."""
        sudo = self.environment.get("SUDO_UID", "")
        uids = {self.owner_uid, *([int(sudo)] if sudo.isdecimal() else [])}
        return Trust(checked=self.uid == 0, uids=frozenset(uids), sudo=bool(sudo))

    @property
    def settings(self) -> str:
        """The `--set` options as they are pasted behind a command, each with a space before it."""
        return "".join(f" --set {shlex.quote(each)}" for each in self.overrides)

    def again(self, word: str, instead: str) -> str:
        """Give the whole command once more, with another word in the place of one."""
        words, place = shlex.split(self.line), 0
        try:
            for each in self.command.split():  # a VM may be called as a command is
                place = words.index(each, place) + 1
            words[words.index(word, place)] = instead
        except ValueError:
            return f"{self.command} {instead}"
        return shlex.join(words)

    def preflight(self, vm: str, deed: str) -> str:
        """Give the command by which root prepares the host for a VM of the caller's, or takes that back."""
        if self.uid == 0:
            return f"kvmlaunch preflight {vm} {deed}{f' --user {self.for_user}' if self.for_user else ''}"
        return f"sudo kvmlaunch preflight {vm} {deed} --user {user_name(self.uid)}"

    @property
    def search(self) -> tuple[Path, ...]:
        """The directories where definitions are searched."""
        return search_path(self.directories, self.environment, self.home, self.here)

    @property
    def cache(self) -> Path:
        """Where QEMU's answers are kept."""
        return cache_directory(self.uid, self.environment)

    def places(self, vm: str) -> Places:
        """Give the directories of a VM; raises Misnamed for a name that would lead elsewhere."""
        if vm in {"", ".", ".."} or "/" in vm or "\0" in vm:
            refuse_name(vm)
        if self.for_user:
            return prepared_places(self.owner_uid, vm, str(self.home))
        return places_for(self.uid, vm, self.environment)


def working_directory() -> PurePosixPath:
    """Give the directory that this process is in; raises HostFailed where it was removed."""
    try:
        return PurePosixPath(os.getcwd())
    except OSError as error:
        report = Report(
            code="host.failed",
            message="the working directory is not there any more",
            where=os.environ.get("PWD", "."),
            why=error.strerror or "",
            hint="cd /",
        )
        raise HostFailed(report) from error


def current_caller(
    *,
    directories: tuple[str, ...] = (),
    file: str = "",
    overrides: tuple[str, ...] = (),
    facts: Path | None = None,
    for_user: str | None = None,
    command: str = "kvmlaunch up",
    standard_input: bytes = b"",
) -> Caller:
    """Give the caller of this process: the one place where environment, arguments, ids and directory are read."""
    environment = dict(os.environ)
    home = home_of(for_user) if for_user else own_home(environment)
    if for_user and pwd.getpwnam(for_user).pw_uid == os.geteuid():
        for_user, home = None, own_home(environment)  # root prepares for root
    return Caller(
        uid=os.geteuid(),
        gid=os.getegid(),
        environment=environment,
        here=working_directory(),
        home=PurePosixPath(home),
        directories=directories,
        file=file,
        overrides=overrides,
        facts=facts,
        for_user=for_user,
        command=command,
        line=shlex.join(("kvmlaunch", *sys.argv[1:])),
        standard_input=standard_input,
    )


def own_home(environment: Mapping[str, str]) -> str:
    """Give the caller's home directory: HOME, and that of the user database where it is not set, as for cron."""
    home = environment.get("HOME", "")
    if home.startswith("/"):
        return home
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return "/nonexistent"


def home_of(user: str) -> str:
    """Give a user's home directory; raises PreflightFailed `host.user.unknown`."""
    try:
        capture_user(user)
    except HostFailed as error:
        raise PreflightFailed(error.report._replace(where="--user")) from error
    return pwd.getpwnam(user).pw_dir
