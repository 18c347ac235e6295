"""mmframe: a research framework for monolithic multimodal LLMs on Lightning.

Importing the package is free: torch is loaded by the sub-modules that need it.
"""

__version__ = "0.1.0"
