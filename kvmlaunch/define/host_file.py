"""The text of host.toml becomes the wishes for the host, with every mistake at once."""

from pathlib import PurePosixPath

from kvmlaunch.define.mistake import Misplaced, Mistake, Placed
from kvmlaunch.define.report import findings_of
from kvmlaunch.define.structure import structure
from kvmlaunch.define.syntax import parse_toml
from kvmlaunch.define.tree import join_path
from kvmlaunch.model.choice import Origin
from kvmlaunch.model.definition import AUTO
from kvmlaunch.model.finding import Finding, error
from kvmlaunch.model.wishes import PAGE_SIZES, HostWishes


def load_wishes(path: PurePosixPath, text: bytes) -> tuple[HostWishes | None, tuple[Finding, ...]]:
    """Give the wishes of a text, and every mistake with its place; None when there is one."""
    parsed = parse_toml(text)
    if parsed.fault:
        fault = parsed.fault
        where = f"{path}:{fault.line}:{fault.column}"
        return None, (error(code=fault.code, message=fault.message, where=where, why=fault.why, hint=fault.hint),)
    table = {key: value for key, value in parsed.table.items() if not key.startswith("x-")}
    wishes, wrong = structure(table, HostWishes)
    if wishes is not None:
        wrong += broken_rules(wishes)
    if wrong or wishes is None:
        return None, findings_of([placed(each, path) for each in wrong], {str(path): text}, path)
    return wishes, ()


def broken_rules(wishes: HostWishes) -> list[Misplaced]:
    """Give what no single key shows: the old word beside today's, a mount point that is none."""
    found = []
    if wishes.elevator is not None and wishes.scheduler is not AUTO:
        message = "`elevator` and `scheduler` say the same thing twice"
        mistake = Mistake(code="def.value.choice", message=message, hint="keep `scheduler`")
        found.append(Misplaced(path=("elevator",), mistake=mistake, on_key=True))
    place = wishes.hugetlbfs
    odd = not place.startswith("/") or not place.isprintable() or "\\" in place  # which a mount unit takes amiss
    if place and (odd or any(each in {"", ".", ".."} for each in place[1:].split("/"))):
        mistake = Mistake(
            code="def.path", message=f"{place!r} is no mount point", hint='write an absolute path, such as "/mnt/huge"'
        )
        found.append(Misplaced(path=("hugetlbfs",), mistake=mistake))
    for word, pages in wishes.hugepage_pools.items():
        if word not in PAGE_SIZES or pages < 0:
            message = f"there are no {pages} huge pages of {word}"
            hint = f'a number, 0 or more, for {" or ".join(PAGE_SIZES)}, such as {{ "2MiB" = 512 }}'
            mistake = Mistake(code="def.value.choice", message=message, hint=hint)
            found.append(Misplaced(path=("hugepage_pools", word), mistake=mistake))
    return found


def placed(misplaced: Misplaced, path: PurePosixPath) -> Placed:
    """Give a mistake the place where its key was written."""
    key = join_path(misplaced.path)
    origin = Origin(kind="file", place=str(path), key=key)
    return Placed(mistake=misplaced.mistake, origin=origin, key=key, on_key=misplaced.on_key)
