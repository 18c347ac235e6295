"""Prompts into a cache, then token by token over it: the two halves of generation.

B rows, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmframe.batch import Batch, Sample
from mmframe.cache import KVCache
from mmframe.errors import UserError
from mmframe.kinds import TokenKind
from mmframe.layout import Layout
from mmframe.model import MultimodalLM
from mmframe.plan import Plan

WARMUP = 3
"""Calls before a CUDA graph is captured, so that libraries have made their handles and workspaces."""


@torch.no_grad()
def run_prompts(net: MultimodalLM, prompts: Sequence[Sample], cache: KVCache, chunk: int | None = None) -> Tensor:
    """Runs prompts of any lengths into a cache, which may hold their past.

    Args:
        net: The model, in eval mode.
        prompts: One for each row of the cache, none empty.
        cache: Is advanced.
        chunk: Most tokens of a row in one pass, which bounds the memory that a long prompt takes; None: all at
            once. Both give the same: visual tokens are made first, so that a pass may end inside an image. What sees
            later tokens stays in one pass, however long: with ``image_bidirectional`` an image, with ``prefix`` the
            prompt in front of the first answer.

    Returns:
        Logits [B, V] after the last token of each prompt.
    """
    device = next(net.parameters()).device
    whole = Batch.collate(prompts).to(device)
    if chunk is None or max(whole.row_lengths) <= chunk:
        return net(whole, logits_at=_last_places(whole), cache=cache).logits
    cache.begin(whole)  # refuse what does not fit before anything is written
    embedded = net.embed(whole, skip_idle=True).split(whole.row_lengths)
    ends = [piece_ends(sample, chunk, net.backbone.attention) for sample in prompts]
    images_before = list(cache.num_images)
    cache.expected = [past + new for past, new in zip(cache.lengths, whole.row_lengths, strict=True)]
    logits: list[Tensor | None] = [None] * len(prompts)
    for number in range(max(len(e) for e in ends)):
        spans = [(e[number - 1] if number else 0, e[number]) if number < len(e) else (e[-1], e[-1]) for e in ends]
        pieces = [part_of(sample, *span) for sample, span in zip(prompts, spans, strict=True)]
        batch = Batch.collate(pieces).to(device)
        x_TD = torch.cat([x[first:end] for x, (first, end) in zip(embedded, spans, strict=True)])
        done = [row for row, (first, end) in enumerate(spans) if first < end == len(prompts[row])]
        cache.num_images = list(images_before)  # a piece numbers its images within the prompt, not from 0
        made = net(batch, logits_at=_last_places(batch)[done], cache=cache, embedded_TD=x_TD).logits
        for row, logits_V in zip(done, made, strict=True):
            logits[row] = logits_V
    cache.num_images = [n + int(s.blocks.max()) + 1 for n, s in zip(images_before, prompts, strict=True)]
    return torch.stack([logits_V for logits_V in logits if logits_V is not None])


def piece_ends(sample: Sample, chunk: int, attention: str) -> list[int]:
    """Where the pieces of a prompt end, each of at most `chunk` tokens.

    Args:
        sample: The prompt.
        chunk: Tokens.
        attention: Mask of the backbone. An end inside of tokens that see later ones moves to before them; more of them
            than `chunk` are a piece of their own.
    """
    together = {"image_bidirectional": sample.blocks, "prefix": torch.where(sample.prefix, sample.docs, -1)}
    units = together.get(attention, torch.full_like(sample.docs, -1)).tolist()
    ends, start = [], 0
    while start < len(sample):
        end = min(start + chunk, len(sample))
        if end < len(sample) and units[end] >= 0 and units[end] == units[end - 1]:
            places = [place for place, unit in enumerate(units) if unit == units[end]]
            end = places[0] if places[0] > start else places[-1] + 1
        ends.append(end)
        start = end
    return ends


def part_of(sample: Sample, first: int, end: int) -> Sample:
    """Tokens first..end of a row, without tiles: their visual tokens are made already."""
    columns = {
        name: value[first:end] for name, value in vars(sample).items() if isinstance(value, Tensor) and name != "tiles"
    }
    return replace(sample, **columns, tiles=sample.tiles[:0])


def _last_places(batch: Batch) -> Tensor:
    lengths = torch.tensor(batch.row_lengths, device=batch.ids.device)
    return lengths.cumsum(0) - 1


def text_plan(net: MultimodalLM, rows: int) -> Plan:
    """The plan of one text token a row: every generated token, whatever its id, is text."""
    plan = net.router.plan(torch.full((rows,), TokenKind.TEXT, dtype=torch.int8)).without_idle()
    assert plan.order is None, "tokens of one kind have one expert and keep their order"
    return plan


def next_logits(net: MultimodalLM, plan: Plan, cache: KVCache, ids_B: Tensor, context: int) -> Tensor:
    """One more text token in each row: logits [B, V] after it.

    Nothing here looks at a value on the host or moves one, so that with `context` = the cache's capacity it compiles
    and is captured as it stands.
    """
    x_BD = net.backbone.embed(ids_B)
    layout = Layout.for_step(net.backbone, cache, x_BD.dtype, context)
    h_BD = net.backbone(x_BD, plan, layout, cache)
    cache.used.add_(1)
    return net.backbone.head(h_BD)


class Step:
    """Decodes over a cache, one token a row and call; looks at no more columns than are in use."""

    def __init__(self, net: MultimodalLM, cache: KVCache) -> None:
        self.net, self.cache = net, cache
        self.plan = text_plan(net, cache.num_rows)

    @torch.no_grad()
    def __call__(self, ids: Sequence[int]) -> Tensor:
        """Appends an id to each row; returns logits [B, V].

        Raises:
            UserError: the cache is full.
        """
        cache = self.cache
        cache.check_room([1] * cache.num_rows)
        logits = self._run(torch.tensor(ids, device=cache.used.device))
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits

    def _run(self, ids_B: Tensor) -> Tensor:
        return next_logits(self.net, self.plan, self.cache, ids_B, max(self.cache.lengths) + 1)

    def select(self, rows: Sequence[int]) -> Step:
        """The step of some of the rows, over a copy of their cache."""
        return Step(self.net, self.cache.select(rows))


class StaticStep(Step):
    """The same over all columns of the cache: no shape ever changes, as torch.compile and CUDA graphs need it.

    Args:
        net: The model, in eval mode.
        cache: Empty; a graph stays tied to its memory.
        compile: Compile the step with torch.compile.
        cuda_graph: Capture the step once and replay it.

    Raises:
        UserError: a graph without a CUDA device.
    """

    def __init__(self, net: MultimodalLM, cache: KVCache, compile: bool = False, cuda_graph: bool = False) -> None:
        super().__init__(net, cache)
        device = cache.used.device
        if cuda_graph and device.type != "cuda":
            raise UserError(
                f"engine: cuda_graph=True needs the model on a CUDA device, it is on {device}; "
                "load it with device='cuda' or leave the option out"
            )
        self.ids_B = torch.zeros(cache.num_rows, dtype=torch.int64, device=device)
        self.next_logits: Callable[..., Tensor] = next_logits
        if compile:
            self.next_logits = torch.compile(next_logits, dynamic=False, fullgraph=True)
        self.graph: torch.cuda.CUDAGraph | None = None
        if cuda_graph:
            self._capture()

    def _eager(self) -> Tensor:
        return self.next_logits(self.net, self.plan, self.cache, self.ids_B, self.cache.capacity)

    @torch.no_grad()
    def _capture(self) -> None:
        assert not any(self.cache.lengths), "the warm-up writes into the cache"
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                self.cache.used.zero_()
                self._eager()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits_BV = self._eager()
        self.cache.truncate([0] * self.cache.num_rows)  # what the warm-up left

    def _run(self, ids_B: Tensor) -> Tensor:
        self.ids_B.copy_(ids_B)
        if self.graph is None:
            return self._eager()
        self.graph.replay()
        return self.logits_BV

    def select(self, rows: Sequence[int]) -> Step:
        """All rows stay: a smaller batch would be another shape."""
        return self


@dataclass(frozen=True)
class Generation:
    """New token ids of each row, without the stop token; scores [steps, B, V] if asked for."""

    ids: list[list[int]]
    scores: Tensor | None = None


@torch.no_grad()
def generate(
    net: MultimodalLM,
    prompts: Sequence[Sample],
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    prefix: KVCache | None = None,
    want_scores: bool = False,
) -> Generation:
    """Continues each prompt with its most likely tokens: the plain loop; mmframe.engine has the rest.

    Args:
        net: The model; put it in eval mode.
        prompts: One row each; with `prefix`, the continuation of its row (positions go on from the past).
        max_new_tokens: At most so many new tokens a row.
        stop_ids: A row ends with one of them; it is not returned.
        prefix: A cache with the rows' past, e.g. an image shared by several questions, forked with `select`.
            It must have room for prompt and new tokens. Without it a cache is made.
        want_scores: Also return the logits of every step.
    """
    capacity = max(len(sample) for sample in prompts) + max_new_tokens
    cache = net.backbone.new_cache(len(prompts), capacity) if prefix is None else prefix
    logits_BV = run_prompts(net, prompts, cache)
    step = Step(net, cache)
    rows = list(range(len(prompts)))  # rows still running, by their number in `prompts`
    out: list[list[int]] = [[] for _ in prompts]
    scores: list[Tensor] = []
    for number in range(max_new_tokens):
        if want_scores:
            scores.append(logits_BV)
        tokens = logits_BV.argmax(-1).tolist()
        running = [i for i, token in enumerate(tokens) if token not in stop_ids]
        for i in running:
            out[rows[i]].append(tokens[i])
        if not running or number + 1 == max_new_tokens:
            break
        if len(running) < len(rows) and not want_scores:  # finished rows leave the batch
            step = step.select(running)
            rows = [rows[i] for i in running]
            tokens = [tokens[i] for i in running]
        logits_BV = step(tokens)
    return Generation(out, torch.stack(scores) if scores else None)


@torch.no_grad()
def prefill(net: MultimodalLM, prompts: Sequence[Sample], capacity: int) -> KVCache:
    """Runs prompts into a new cache of `capacity` tokens a row: the shared past of several questions."""
    batch = Batch.collate(prompts).to(next(net.parameters()).device)
    cache = net.backbone.new_cache(len(prompts), capacity)
    net(batch, logits_at=torch.zeros(0, dtype=torch.int64, device=batch.ids.device), cache=cache)
    return cache
