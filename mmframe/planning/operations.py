"""Operations of a step by part, and what a token costs by its kind."""

from __future__ import annotations

import re

from mmframe.freezing import component_of
from mmframe.planning.trace import Product, StepTrace


def by_component(trace: StepTrace) -> dict[str, dict[str, float]]:
    """FLOPs of a step, forward and backward, of each component's weights; `attention scores and rest` is what is
    counted beside: scores and their sums over values, and products that are no layer's."""
    parts: dict[str, dict[str, float]] = {}
    for name, product in trace.products.items():
        part = parts.setdefault(_component(name), {"forward": 0, "backward": 0})
        part["forward"] += product.forward
        part["backward"] += product.backward
    rest = {
        "forward": trace.forward - sum(part["forward"] for part in parts.values()),
        "backward": trace.backward - sum(part["backward"] for part in parts.values()),
    }
    return parts | {"attention scores and rest": rest}


def _component(name: str) -> str:
    """As the freezing report calls it; a tied embedding multiplies as the head."""
    found = component_of(name)
    return "head" if found == "token embedding" else found


def by_kind(trace: StepTrace) -> dict[str, float]:
    """FLOPs of one token, forward and backward.

    image       through the experts of images (shared weights where a site has none) and its share of the patch embedder
    text        through the text experts
    scores      of any token, beside: attention over a row of this length
    supervised  of a token that is learnt, beside: the head
    """
    image = text = head = 0.0
    visual = {_site(name) for name in trace.products if ".visual." in name}
    for name, product in trace.products.items():
        cost = product.forward + product.backward
        if name.startswith("patch_embedder."):
            image += cost / max(1, trace.image_tokens)
        elif _component(name) == "head":
            head += cost / max(1, trace.supervised)
        elif product.rows:
            each = cost / product.rows
            image += each if ".visual." in name or _site(name) not in visual else 0.0
            text += each if ".visual." not in name else 0.0
    rest = by_component(trace)["attention scores and rest"]
    scores = (rest["forward"] + rest["backward"]) / trace.tokens
    return {"image": image, "text": text, "scores": scores, "supervised": head}


def _site(name: str) -> str:
    """`backbone.layers.3.ffn` of a weight in it; other names as they are."""
    found = re.match(r"backbone\.(pre_)?layers\.\d+\.\w+", name)
    return found[0] if found else name


def forward_of_prompt(trace: StepTrace, rows: float) -> float:
    """FLOPs of one row as a prompt: the forward, with the head at one position.

    Args:
        trace: Of a step.
        rows: That it had.
    """
    heads = [p for name, p in trace.products.items() if _component(name) == "head"]
    head = sum(p.forward for p in heads)
    return (trace.forward - head) / rows + sum(_row(p) for p in heads)


def _row(product: Product) -> float:
    return product.forward / max(1, product.rows)
