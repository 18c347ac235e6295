"""mmframe: a research framework for monolithic multimodal LLMs on Lightning.

Importing the package is free: torch is loaded by the sub-modules that need it, and by the first use of
`mmframe.from_pretrained`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmframe.loading import from_pretrained

__all__ = ["__version__", "from_pretrained"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "from_pretrained":
        raise AttributeError(f"module 'mmframe' has no attribute {name!r}")
    from mmframe.loading import from_pretrained

    return from_pretrained
