"""Static routing by token kind: the multimodal mixture of experts of Mono-InternVL."""

from typing import Literal

import torch
from torch import Tensor, nn

from components.routers.low_rank import low_rank_expert
from mmframe.contracts import SITE_GROUPS, SITES, Backbone, ExpertRouter
from mmframe.errors import UserError, nearest
from mmframe.experts import Experts, new_expert
from mmframe.kinds import TokenKind
from mmframe.layers import parse_layers
from mmframe.plan import Plan
from mmframe.registry import register


@register("router")
class ModalityRouter(ExpertRouter):
    """Every token goes to the expert of its kind; nothing is learned, no auxiliary loss.

    Mono-InternVL (arXiv 2410.08202): FFN experts; boundary tokens count as text. Mono-InternVL-1.5 (arXiv 2507.12566):
    FFN and q, k, v experts; o and the norms stay shared (both are switches here: add them to `experts_at`). A low-rank
    expert is LoRA's addition (Hu et al., arXiv 2106.09685) for visual tokens alone, as in InternLM-XComposer2 ("Partial
    LoRA", arXiv 2401.16420).

    Args:
        experts_at: Site -> layers that have a visual expert there. Sites: q, k, v, o, ffn, attn_norm, ffn_norm, and
            q_norm, k_norm (both: qk_norm) of backbones with norms of q and k (Qwen3). Layers: all, 5, 12-23, 0-22/2,
            -8--1, 0-3,8-11; all: those that have the site.
        init: New experts start as a ``copy`` of the text expert (the paper), ``zero`` or ``random``.
        visual_kinds: Token kinds that go to the visual expert; all others go to the text expert.
        form: ``full``: weights of their own. ``low_rank``: the text expert's linear layers, shared, plus B A x with B
            zero at first; the vectors of norms are copied.
        rank: Of A and B in the low-rank form.
    """

    experts = ("text", "visual")

    def __init__(
        self,
        experts_at: dict[str, str] | None = None,
        init: str = "copy",
        visual_kinds: list[str] | None = None,
        form: Literal["full", "low_rank"] = "full",
        rank: int = 16,
    ) -> None:
        self.experts_at = _sites({"ffn": "all"} if experts_at is None else experts_at)
        if form not in ("full", "low_rank") or rank < 1:
            raise UserError(f"router: form={form!r} must be full or low_rank, rank={rank} at least 1")
        if form == "low_rank" and init != "copy":
            raise UserError(f"router: form low_rank starts as the text expert that it shares, init={init!r} cannot be")
        self.init, self.form, self.rank = init, form, rank
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
        sites = list(backbone.sites())
        there = list(dict.fromkeys(site for _, site, _ in sites))
        chosen: dict[str, tuple[int, ...]] = {}
        for site, which in self.experts_at.items():
            if site not in there:
                raise UserError(
                    f"router: {type(backbone).__name__} has no site {site!r}; "
                    f"{nearest(site, there)} its sites: {', '.join(there)}"
                )
            chosen[site] = parse_layers(which, backbone.num_layers)
            lacking = set(chosen[site]) - {index for index, name, _ in sites if name == site}
            if lacking and which != "all":
                raise UserError(
                    f"router: layers {', '.join(map(str, sorted(lacking)))} of {type(backbone).__name__} have no site "
                    f"{site!r}; leave them out of {which!r}, or write all for those that have it"
                )
        for index, site, experts in sites:
            if index in chosen.get(site, ()):
                experts["visual"] = self.visual_expert(site, experts)

    def visual_expert(self, site: str, experts: Experts) -> nn.Module:
        """The new expert of one site."""
        if self.form == "low_rank":
            return low_rank_expert(experts, self.rank)
        return new_expert(experts["text"], self.init)


def _sites(given: dict[str, str]) -> dict[str, str]:
    """Site -> layers, with the short names written out."""
    names = (*SITES, *SITE_GROUPS)
    out: dict[str, str] = {}
    for name, layers in given.items():
        if name not in names:
            raise UserError(f"router: no site {name!r}; {nearest(name, names)} sites: {', '.join(names)}")
        for site in SITE_GROUPS.get(name, (name,)):
            if site in out:
                raise UserError(f"router: layers of site {site} are given twice, as {site} and as {name}")
            out[site] = layers
    return out


@register("router")
class SharedRouter(ExpertRouter):
    """No experts: one set of weights for every token. The dense baseline.

    Source: the modular models, InternVL-1.5 (arXiv 2404.16821), and "no visual experts" of Mono-InternVL's Table 5
    (arXiv 2410.08202).
    """

    experts = ("text",)

    def __init__(self) -> None:
        pass

    def plan(self, kinds_T: Tensor) -> Plan:
        return Plan.from_experts(torch.zeros(len(kinds_T), dtype=torch.int64), 1)

    def install(self, backbone: Backbone) -> None:
        """Nothing to put in."""
