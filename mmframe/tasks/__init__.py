"""Benchmarks: what is asked, how, and by which metric; a YAML file each, in recipes/tasks. No torch here."""

from mmframe.tasks.load import load_task
from mmframe.tasks.spec import task_names
from mmframe.tasks.task import Decoding, Example, Task

__all__ = ["Decoding", "Example", "Task", "load_task", "task_names"]
