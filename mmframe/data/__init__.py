"""Data components: rows of tokens and tiles for training, in an order that resumes exactly.

The names are imported at first use, so that `python -m mmframe.data.demo` starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmframe.data.base import MultimodalData, Rows
    from mmframe.data.conversation import ConversationData
    from mmframe.data.instruction import InstructionData
    from mmframe.data.mixture import MixtureData
    from mmframe.data.task_data import TaskData
    from mmframe.data.toy import ToyData

__all__ = ["ConversationData", "InstructionData", "MixtureData", "MultimodalData", "Rows", "TaskData", "ToyData"]

_MODULES = {
    "ConversationData": "conversation",
    "InstructionData": "instruction",
    "MixtureData": "mixture",
    "MultimodalData": "base",
    "Rows": "base",
    "TaskData": "task_data",
    "ToyData": "toy",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
