"""TaskData: benchmarks as the test data of a stage, for `lightning test`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

from torch.utils.data import DataLoader, IterableDataset

from mmframe.contracts import PatchEmbedder
from mmframe.data.base import MultimodalData, Rows
from mmframe.errors import UserError
from mmframe.processing import ChatProcessor
from mmframe.registry import register
from mmframe.tasks import load_task
from mmframe.tasks.task import Task


@register("data")
class TaskData(MultimodalData):
    """Tasks to test a stage's model with: `lightning test --config R --stage S --data=TaskData --data.tasks=A,B`.

    Answers and records go to `results` in the run directory; they are those of `mmframe evaluate` on its weights.

    Args:
        tasks: Names of shipped tasks or YAML files like them; a list, or one text with commas.
        folder: The official files; see `mmframe evaluate tasks`.
        batch_size: Prompts at once.
        limit: The first so many examples of each.
        max_tiles: Image budget in place of the tasks' own.
        force: Start over; what is there is set aside.
    """

    def __init__(
        self,
        tasks: Union[str, list[str]],
        folder: Optional[str] = None,
        batch_size: int = 8,
        limit: Optional[int] = None,
        max_tiles: Optional[int] = None,
        force: bool = False,
    ) -> None:
        super().__init__(batch_size)
        names = tasks.split(",") if isinstance(tasks, str) else tasks
        self.names = [name.strip() for name in names if name.strip()]
        if not self.names:
            raise UserError("TaskData: tasks is empty; `mmframe evaluate tasks` lists them")
        for name, value in (("limit", limit), ("max_tiles", max_tiles)):
            if value is not None and value < 1:
                raise UserError(f"TaskData: {name}={value} must be at least 1")
        self.folder, self.limit, self.max_tiles, self.force = folder, limit, max_tiles, force
        self.tasks: Sequence[Task] = []

    def build(self, processor: ChatProcessor, embedder: PatchEmbedder) -> tuple[Rows, Optional[Rows]]:
        raise UserError("TaskData: holds benchmarks, which are for `lightning test`; train with another data component")

    def setup(self, stage: str) -> None:
        if stage != "test":
            super().setup(stage)
        folder = None if self.folder is None else Path(self.folder)
        self.tasks = [load_task(name, folder) for name in self.names]

    def test_dataloader(self) -> DataLoader:
        """The tasks themselves, one a batch, all of them on every rank: ranks share the examples of each."""
        return DataLoader(_Tasks(self.tasks), batch_size=None)


class _Tasks(IterableDataset):
    """An iterable, since Lightning would deal a list to the ranks."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks

    def __iter__(self):  # noqa: ANN204
        return iter(self.tasks)
