"""Static routing by token kind: the multimodal mixture of experts of Mono-InternVL."""

import re

import torch
from torch import Tensor

from mmframe.contracts import SITES, Backbone, ExpertRouter
from mmframe.errors import UserError, nearest
from mmframe.experts import new_expert
from mmframe.kinds import TokenKind
from mmframe.plan import Plan
from mmframe.registry import register


def parse_layers(selector: str, num_layers: int) -> range:
    """``all``, ``12-23``, ``0-22/2`` (every second), ``-8--1`` (the last eight) -> layer indices.

    Raises:
        UserError: not of that form, or outside the model.
    """
    if selector == "all":
        return range(num_layers)
    match = re.fullmatch(r"(-?\d+)(?:-(-?\d+))?(?:/(\d+))?", selector)
    if not match:
        raise UserError(f"router: layers {selector!r} not understood; use all, 5, 12-23, 0-22/2 or -8--1")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    first, last = (i + num_layers if i < 0 else i for i in (first, last))
    if not 0 <= first <= last < num_layers:
        raise UserError(f"router: layers {selector!r} are outside the backbone's 0..{num_layers - 1}")
    return range(first, last + 1, int(match[3] or 1))


@register("router")
class ModalityRouter(ExpertRouter):
    """Every token goes to the expert of its kind; nothing is learned, no auxiliary loss.

    Mono-InternVL: FFN experts; boundary tokens count as text. Mono-InternVL-1.5: FFN and q, k, v experts; o and
    the norms stay shared (both are switches here: add them to `experts_at`).

    Args:
        experts_at: Site -> layers that have a visual expert there. Sites: q, k, v, o, ffn, attn_norm, ffn_norm, and
            q_norm, k_norm of backbones with norms of q and k (Qwen3). Layers: all, 5, 12-23, 0-22/2, -8--1.
        init: New experts start as a ``copy`` of the text expert (the paper), ``zero`` or ``random``.
        visual_kinds: Token kinds that go to the visual expert; all others go to the text expert.
    """

    experts = ("text", "visual")

    def __init__(
        self,
        experts_at: dict[str, str] | None = None,
        init: str = "copy",
        visual_kinds: list[str] | None = None,
    ) -> None:
        self.experts_at = {"ffn": "all"} if experts_at is None else dict(experts_at)
        self.init = init
        for site in self.experts_at:
            if site not in SITES:
                raise UserError(f"router: no site {site!r}; {nearest(site, SITES)} sites: {', '.join(SITES)}")
        names = [kind.name.lower() for kind in TokenKind]
        table = torch.zeros(len(TokenKind), dtype=torch.int64, device="cpu")  # plans are made on the host
        for kind in ["image", "query"] if visual_kinds is None else visual_kinds:
            if kind not in names:
                raise UserError(f"router: no token kind {kind!r}; {nearest(kind, names)} kinds: {', '.join(names)}")
            table[names.index(kind)] = 1
        self.expert_of_kind = table

    def plan(self, kinds_T: Tensor) -> Plan:
        return Plan.from_experts(self.expert_of_kind[kinds_T.long()], len(self.experts))

    def install(self, backbone: Backbone) -> None:
        """Puts the visual experts in.

        Raises:
            UserError: a site or layer that this backbone does not have; names those that it has.
        """
        there = list(dict.fromkeys(site for _, site, _ in backbone.sites()))
        for site in self.experts_at:
            if site not in there:
                raise UserError(
                    f"router: {type(backbone).__name__} has no site {site!r}; "
                    f"{nearest(site, there)} its sites: {', '.join(there)}"
                )
        layers = {site: parse_layers(which, backbone.num_layers) for site, which in self.experts_at.items()}
        for index, site, experts in backbone.sites():
            if index in layers.get(site, ()):
                experts["visual"] = new_expert(experts["text"], self.init)


@register("router")
class SharedRouter(ExpertRouter):
    """No experts: one set of weights for every token. The dense baseline."""

    experts = ("text",)

    def __init__(self) -> None:
        pass

    def plan(self, kinds_T: Tensor) -> Plan:
        return Plan.from_experts(torch.zeros(len(kinds_T), dtype=torch.int64), 1)

    def install(self, backbone: Backbone) -> None:
        """Nothing to put in."""
