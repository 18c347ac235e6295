"""Tar shards in the layout of WebDataset: KEY.png and KEY.json side by side. The same samples give the same bytes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

MOST_SAMPLES = 2000
MOST_BYTES = 256 * 2**20


class ShardWriter:
    """Writes `PREFIX-00000.tar`, `PREFIX-00001.tar`, ...; close it, or use it in a `with`.

    Args:
        prefix: Path of the shards without number and ending.
        most_samples: Samples of a shard.
        most_bytes: A shard that has reached this size is the last sample's; single samples may be larger.
    """

    def __init__(self, prefix: Path, most_samples: int = MOST_SAMPLES, most_bytes: int = MOST_BYTES) -> None:
        self.prefix, self.most_samples, self.most_bytes = prefix, most_samples, most_bytes
        self.samples = 0  # in all shards
        self.shards = 0
        self._in_shard = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, key: str, picture: bytes, suffix: str, record: dict[str, Any]) -> None:
        """Appends a sample.

        Args:
            key: Its name, without a dot.
            picture: Bytes of the picture file.
            suffix: "png" or "jpg".
            record: What KEY.json holds.
        """
        if self._tar is not None and (self._in_shard == self.most_samples or self._tar.offset >= self.most_bytes):
            self.close()
        if self._tar is None:
            name = f"{self.prefix}-{self.shards:05d}.tar"
            self._tar = tarfile.open(name, "w", format=tarfile.USTAR_FORMAT)
            self.shards += 1
            self._in_shard = 0
        self._member(f"{key}.{suffix}", picture)
        self._member(f"{key}.json", json.dumps(record, ensure_ascii=False).encode())
        self._in_shard += 1
        self.samples += 1

    def close(self) -> None:
        """Ends the shard that is being written."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _member(self, name: str, data: bytes) -> None:
        member = tarfile.TarInfo(name)  # no time, owner or group: only the data makes the bytes
        member.size = len(data)
        assert self._tar is not None
        self._tar.addfile(member, io.BytesIO(data))
