"""Fully sharded training (FSDP2): which parameters are gathered together, and whole tensors out of shards.

A unit is what one all-gather brings and one reduce-scatter sends. Units are made of what trains alike: a layer's frozen
weights, its trained ones, and the experts that are not the pretrained one are units of their own. No unit mixes frozen
and trained tensors, so a frozen unit has no gradients to hold or send, and a trained one is as small as it can be.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mmframe.errors import UserError
from mmframe.experts import Experts
from mmframe.recompute import recompute_layers


@dataclass
class Units:
    """The parameters of a module, parted.

    Attributes:
        modules: Key -> modules that are wholly of this key, as large as possible; each list is one unit.
        rest: Keys of tensors that lie directly in a module whose other tensors have other keys.
    """

    modules: dict[Hashable, list[nn.Module]] = field(default_factory=dict)
    rest: set[Hashable] = field(default_factory=set)


def part(module: nn.Module, names: Mapping[int, str], by_expert: bool = True, expert: str = "text") -> Units:
    """Parts a module by what trains, and inside of a layer by expert.

    Args:
        module: Is walked through.
        names: Parameter (its id) -> name; those that are missing are left out, because they are in a unit already.
        by_expert: The key is (expert, trains); else (trains,).
        expert: Whose the module is.
    """
    units = Units()
    mine = [p for p in module.parameters() if id(p) in names]
    if not mine:
        return units
    keys = {(expert, p.requires_grad) if by_expert else (p.requires_grad,) for p in mine}
    parts_experts = by_expert and any(isinstance(m, Experts) and len(m) > 1 for m in module.modules())
    is_container = type(module).forward is nn.Module.forward or isinstance(module, Experts)
    if len(keys) == 1 and not parts_experts and not is_container:
        units.modules[next(iter(keys))] = [module]
        return units
    for p in module.parameters(recurse=False):
        if id(p) in names:
            units.rest.add((expert, p.requires_grad) if by_expert else (p.requires_grad,))
    for name, child in module.named_children():
        of = name if isinstance(module, Experts) and name != "text" else expert
        inner = part(child, names, by_expert, of)
        units.rest |= inner.rest
        for key, modules in inner.modules.items():
            units.modules.setdefault(key, []).extend(modules)
    return units


def shard(net: nn.Module, mesh: Any, recompute: bool = False) -> None:
    """Shards a MultimodalLM in place: its layers, its patch embedder, and what is left with the model itself.

    Args:
        net: On the CPU or on its device; frozen by its policy already, because units follow it.
        mesh: Device mesh of the ranks that share the parameters.
        recompute: Activation checkpointing of each layer.

    Raises:
        UserError: frozen and trained tensors that cannot be parted, or a backend that reads weights past the modules.
    """
    from torch.distributed.fsdp import fully_shard

    backbone: Any = net.backbone
    names = {id(p): name for name, p in net.named_parameters()}
    if recompute:
        recompute_layers(backbone.stack(), to_the_end=True)

    def unit(modules: list[nn.Module]) -> None:
        for m in modules:
            for p in m.parameters():
                names.pop(id(p), None)
        fully_shard(modules if len(modules) > 1 else modules[0], mesh=mesh)  # type: ignore[call-overload]

    def shard_parts(module: nn.Module, by_expert: bool, name: str) -> None:
        """Units for all of a module's keys; one of them, of what lies directly in it, is the module's own."""
        units = part(module, names, by_expert)
        if len(units.rest) > 1:
            raise UserError(f"trainer.strategy: {name} holds frozen and trained tensors side by side; use ddp")
        own = next(iter(units.rest), None) or _own_key(units.modules)
        for key, modules in units.modules.items():
            if key != own:
                unit(modules)
        unit([module])

    for index, layer in enumerate(backbone.stack()):
        shares = any(getattr(m, "shares_text", False) for m in layer.modules())
        shard_parts(layer, not shares, f"layer {index}")
    if net.patch_embedder is not None:
        embedder: Any = net.patch_embedder
        blocks = [block for m in embedder.modules() if isinstance(m, nn.ModuleList) for block in m]
        for block in blocks if len(blocks) > 2 else ():  # a whole vision encoder, not a few projections
            shard_parts(block, False, "a block of the patch embedder")
        if any(id(p) in names for p in embedder.parameters()):
            shard_parts(embedder, False, "the patch embedder")
    # the rest is gathered once a step and kept: a tied embedding is used at both ends
    shard_parts(net, False, "the model")


def _own_key(modules: Mapping[Hashable, list[nn.Module]]) -> Hashable:
    """The largest part is the module's own unit, whose weights are there as long as the module runs."""
    return max(modules, key=lambda key: sum(p.numel() for m in modules[key] for p in m.parameters()))


def is_sharded(net: nn.Module) -> bool:
    """Whether parameters are spread over ranks."""
    return any(is_shard(p) for p in net.parameters())


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; asked without importing its class, which takes long and which few need."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory; a plain tensor as it is."""
    return tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[operator]


def whole(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors put together from their shards, one at a time. Every rank must walk through it: it communicates."""
    for name, tensor in tensors:
        yield name, tensor.full_tensor() if is_shard(tensor) else tensor  # type: ignore[operator]
