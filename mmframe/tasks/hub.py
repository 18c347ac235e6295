"""Where a task's files lie: in the user's folder, or downloaded from the hub."""

from __future__ import annotations

from pathlib import Path

from mmframe.errors import UserError
from mmframe.tasks.spec import Spec


def folder_of(spec: Spec, data: Path | None) -> Path | None:
    """The folder that paths of a task start in.

    DATA/FOLDER where that exists, else what is downloaded of the task's hub id: into DATA/FOLDER, or without DATA into
    the hub's own cache. None: there is neither; tasks of the offline corpus need none.

    Raises:
        UserError: DATA is no folder, or the download failed.
    """
    name, hub = spec.data.get("folder", ""), spec.data.get("hub")
    if data is not None and not Path(data).is_dir():
        raise UserError(f"--data {data} is no folder")
    here = Path(data) / name if data is not None else None
    if here is not None and (here.is_dir() or not hub):
        return here
    return _downloaded(spec, here) if hub else None


def _downloaded(spec: Spec, here: Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository = str(spec.data["hub"])
    patterns = spec.reader[1].get("file")
    try:
        found = snapshot_download(
            repository,
            repo_type="dataset",
            revision=spec.data.get("revision"),
            allow_patterns=patterns,
            local_dir=here,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        said = str(error).strip().split("\n")[0]
        raise UserError(
            f"the data set {repository} cannot be downloaded ({said}); get its files {patterns} on another machine and "
            f"put them into {here or 'DIR/' + str(spec.data.get('folder', ''))}, then --data DIR"
        ) from error
    return Path(found)
