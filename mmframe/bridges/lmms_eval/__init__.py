"""`--model mmframe` of lmms-eval; see docs/lmms_eval.md. Nothing but lmms-eval imports these modules."""

from typing import Any


def manifest() -> Any:
    """What lmms-eval's entry-point group "lmms_eval.models" asks for: the name and the two classes behind it."""
    from lmms_eval.models.registry_v2 import ModelManifest  # type: ignore

    place = f"{__name__}.model"
    return ModelManifest("mmframe", f"{place}.MMFrameSimple", f"{place}.MMFrame")
