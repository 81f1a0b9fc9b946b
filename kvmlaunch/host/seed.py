"""The seed of cloud-init as an ISO 9660 image in the VM's state directory, written only when what it says changes."""

import hashlib
import importlib.util
import io
import os
import sys
from collections.abc import Mapping
from pathlib import PurePosixPath
from shlex import quote

from kvmlaunch.errors import HostFailed, PreflightFailed, Report
from kvmlaunch.host.files import read_text_at, remove_if_there, temporary_name, write_all, write_atomically
from kvmlaunch.host.tree import entered, make_owned
from kvmlaunch.model.host import UserFacts

LABEL = "cidata"
DIGEST = "seed.sha256"
EXTRA = "-m pip install pycdlib PyYAML"  # what the extra `cloud-init` names


def missing_extra(module: str) -> HostFailed:
    """Give the error for an extra that is not installed."""
    return HostFailed(
        Report(
            code="host.tool.missing",
            message=f"cloud_init needs the Python package {module}",
            hint=f"{sys.executable} {EXTRA}",
        )
    )


def need_writer() -> None:
    """Raise HostFailed where the library that makes the image is not installed."""
    if importlib.util.find_spec("pycdlib") is None:
        raise missing_extra("pycdlib")


def read_part(path: PurePosixPath, key: str, most: int) -> bytes:
    """Give a file that goes into a seed; raises PreflightFailed `seed.file`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return os.read(fd, most + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise PreflightFailed(
            Report(
                code="seed.file",
                message=f"{path} cannot be read",
                where=key,
                why=error.strerror or "",
                hint=f"ls -l {quote(str(path))}   # then write the path of a file that can be read",
            )
        ) from error


def render_iso(contents: Mapping[str, bytes]) -> bytes:
    """Give an image that holds these files, as cloud-init looks for it: labelled, with long names."""
    try:
        import pycdlib  # noqa: PLC0415 - an extra, 67 ms
    except ImportError as error:
        raise missing_extra("pycdlib") from error
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for place, (name, content) in enumerate(contents.items()):
        image.add_fp(io.BytesIO(content), len(content), f"/FILE{place}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()


def digest_of(contents: Mapping[str, bytes], user: UserFacts) -> str:
    """Give by what a seed is known again: what it says, and whose it is."""
    return hashlib.sha256(repr((user.uid, sorted(contents.items()))).encode()).hexdigest()


def is_written(directory: PurePosixPath, name: str, contents: Mapping[str, bytes], user: UserFacts) -> bool:
    """Does the seed that lies there say just this; raises HostFailed, PreflightFailed."""
    try:
        with entered(directory, user.uid) as fd:
            return read_text_at(fd, DIGEST) == f"{digest_of(contents, user)}\n" and name in os.listdir(fd)
    except FileNotFoundError:
        return False


def write_seed(directory: PurePosixPath, name: str, contents: Mapping[str, bytes], user: UserFacts) -> bool:
    """Write a seed that belongs to the VM's user alone; tells whether it had to be, as an image holds its time.

    Raises HostFailed, PreflightFailed.
    """
    make_owned(directory, user.uid, user.gid, 0o700)
    if is_written(directory, name, contents, user):
        return False
    with entered(directory, user.uid) as fd:
        image, temporary = render_iso(contents), temporary_name(name)
        remove_if_there(fd, DIGEST)
        remove_if_there(fd, temporary)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            write_all(file, image)
            if os.geteuid() == 0:
                os.fchown(file, user.uid, user.gid)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
        write_atomically(fd, DIGEST, f"{digest_of(contents, user)}\n")
    return True
