"""The checkpoints of a run on the disk: which is the newest that is whole, and which of them stay. No torch here.

    checkpoints/step-00000200.ckpt      of every n steps, and of the step at which the run was stopped
    checkpoints/last.ckpt               a link to the newest of them
    checkpoints/best-00000150.ckpt      those with the best metric, where one is named
    checkpoints/step-00000400.ckpt.damaged    was found damaged when the run was continued; nothing is deleted for that

A checkpoint takes its name when it is whole and on the disk. A file of torch.save is a zip archive: its end lists what
is in it, with a CRC-32 of every part, so a file that is cut off or changed is known without a second file beside it. A
folder of shards has these sums in a file of its own, written last.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

LAST = "last.ckpt"
SUMS = "checksums.json"
"""In a folder of shards: name -> [bytes, CRC-32] of each file."""
_CHUNK = 1 << 22


def step_name(step: int, kind: str = "step") -> str:
    """File name of a checkpoint; names sort as steps do."""
    return f"{kind}-{step:08d}.ckpt"


def step_of(path: Path, kind: str = "step") -> int | None:
    """The step in a file name; None: it is none of ours."""
    name = path.name
    digits = name.removeprefix(f"{kind}-").removesuffix(".ckpt")
    return int(digits) if name == f"{kind}-{digits}.ckpt" and digits.isdigit() else None


def numbered(folder: Path, kind: str = "step") -> list[Path]:
    """Checkpoints of a folder, oldest first."""
    found = [(step, path) for path in folder.glob(f"{kind}-*.ckpt") if (step := step_of(path, kind)) is not None]
    return [path for _, path in sorted(found)]


def damage(path: Path) -> str:
    """What is wrong with a checkpoint; "": every byte that it will be read from is as it was written."""
    try:
        return _folder_damage(path) if path.is_dir() else _file_damage(path)
    except OSError as error:
        return error.strerror or str(error)


def _file_damage(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        return f"cut off or changed after {path.stat().st_size:,} bytes ({error})"
    return f"{bad} in it has another checksum than was written" if bad else ""


def _folder_damage(path: Path) -> str:
    sums = path / SUMS
    if not sums.is_file():
        return f"{SUMS} is missing, so it was not finished"
    try:
        wanted = json.loads(sums.read_text(encoding="utf-8"))
    except ValueError:
        return f"{SUMS} is no JSON"
    for name, (size, crc) in wanted.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} in it is missing or has another size than was written"
        if _crc(file) != crc:
            return f"{name} in it has another checksum than was written"
    return ""


def seal(folder: Path) -> None:
    """Writes the sums of a folder of shards; to be called when all files are there, before it takes its name."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != SUMS]
    sums = {file.relative_to(folder).as_posix(): [file.stat().st_size, _crc(file)] for file in files}
    with open(folder / SUMS, "w", encoding="utf-8") as stream:
        json.dump(sums, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _crc(file: Path) -> int:
    crc = 0
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def any_checkpoint(folder: Path) -> bool:
    """Whether a run left something here that it may be continued from; nothing is read."""
    return bool(numbered(folder)) or (folder / LAST).exists()


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from. Damaged ones, newer than that, are renamed to NAME.damaged.

    Every rank finds the same: a file that another rank has renamed in the meantime is a damaged one.

    Returns:
        Its path (None: there is none), and a line for each damaged one.
    """
    damaged: list[Path] = []
    told: list[str] = []
    candidates = numbered(folder)[::-1]
    last = folder / LAST
    if last.exists() and not last.is_symlink():  # of an earlier version, or copied here: the newest there is
        candidates.insert(0, last)
    for path in candidates:
        wrong = damage(path)
        if not wrong:
            for other in damaged:
                with suppress(OSError):  # another rank was first, or the folder cannot be written to
                    other.rename(other.with_name(f"{other.name}.damaged"))
            return path, told
        damaged.append(path)
        told.append(f"{path} is damaged: {wrong}")
    return None, told  # all keep their names: the next try must not take this for a run that never began


def publish(path: Path) -> None:
    """Makes last.ckpt a link to a checkpoint; there is no moment without one."""
    last, made = path.with_name(LAST), path.with_name(f".{LAST}.{os.getpid()}")
    made.unlink(missing_ok=True)
    if last.is_dir() and not last.is_symlink():  # shards of a run before there were numbers
        last.rename(last.with_name("earlier.ckpt"))
    try:
        made.symlink_to(path.name)
    except OSError:  # a file system without links: the numbered files are enough
        return
    os.replace(made, last)
    sync_folder(path.parent)


def surplus(paths: list[Path], keep_last: int, keep_every: int) -> list[Path]:
    """Of numbered checkpoints, oldest first, those that need not stay.

    Args:
        paths: All of them.
        keep_last: So many of the newest stay.
        keep_every: Those of every so many steps stay; 0: none for that.
    """
    steps = {path: step_of(path) or 0 for path in paths}
    return [path for path in paths[: max(0, len(paths) - keep_last)] if not keep_every or steps[path] % keep_every]


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder onto the disk: a rename is only then sure to outlive a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems know no such thing
        pass
    finally:
        os.close(handle)
