"""Loss of the answers to held-out records with pictures: the figure with the least noise that a small run gives."""

from __future__ import annotations

from components.evaluators.common import losses, rate
from components.evaluators.held_out import files_of, spread, tiles_of
from mmframe.batch import Sample
from mmframe.contracts import Evaluator
from mmframe.data.encoding import Encoder
from mmframe.data.prompt_sets import prompts_named
from mmframe.data.records import Record
from mmframe.errors import UserError
from mmframe.images import TileBuffer
from mmframe.loading import LoadedModel
from mmframe.processing.row import packed
from mmframe.registry import register


@register("evaluator")
class AnswerLoss(Evaluator):
    """Negative log-likelihood of an answer token on held-out records with pictures, for each source and for all.

    Questions that share a picture do not see one another, as in training. Gives `nll` over all answer tokens (nats),
    its standard error `nll_se` (over records), `tokens`, `records`, and of each source NAME `NAME_nll` and
    `NAME_nll_se`.

    Args:
        sources: Name -> files of held-out records; their kind is known by their ending, `demo:` and `offline:` are
            known.
        records: At most so many records of each source, evenly spread over it.
        max_tiles: Most tiles of a record's pictures; null: as many as the model was trained with.
        prompts: What is asked where a record has a caption alone: texts, or the name of a set (none, describe, read);
            the first is taken.
        max_tokens: Longer records are an error: choose others, or fewer tiles.
        rows: Records of a forward pass.
    """

    toy_args = {"sources": {"questions": "held_out.jsonl"}}

    def __init__(
        self,
        sources: dict[str, str],
        records: int = 100,
        max_tiles: int | None = 1,
        prompts: str | list[str] = "describe",
        max_tokens: int = 4096,
        rows: int = 8,
    ) -> None:
        if not sources:
            raise UserError("AnswerLoss: sources is empty; name at least one")
        if min(records, max_tiles or 1, max_tokens, rows) < 1:
            raise UserError(
                f"AnswerLoss: records={records}, max_tiles={max_tiles}, max_tokens={max_tokens} and rows={rows} must "
                "be at least 1"
            )
        self.sources, self.records, self.max_tiles, self.prompts = sources, records, max_tiles, prompts
        self.max_tokens, self.rows = max_tokens, rows

    def metrics(self) -> list[str]:
        losses = [f"{name}_nll" for name in self.sources]
        return ["nll", "nll_se", "tokens", "records", *losses, *(f"{name}_se" for name in losses)]

    def files(self) -> list[str]:
        return [file for path in self.sources.values() for file in files_of(path)]

    def evaluate(self, model: LoadedModel) -> dict[str, float]:
        figures: dict[str, float] = {}
        sums: list[float] = []
        counts: list[float] = []
        for name, path in self.sources.items():
            rows = [self._row(model, record) for record in spread(path, self.records, "AnswerLoss")]
            found = losses(model, rows, self.rows)
            own_sums, own_counts = [float(each.sum()) for each in found], [float(each.numel()) for each in found]
            figures |= rate(f"{name}_nll", own_sums, own_counts)
            sums, counts = sums + own_sums, counts + own_counts
        return {**rate("nll", sums, counts), "tokens": sum(counts), "records": len(counts), **figures}

    def _row(self, model: LoadedModel, record: Record) -> Sample:
        embedder, processor = model.net.patch_embedder, model.processor
        if embedder is None:
            raise UserError("AnswerLoss: the model has no patch embedder; measure text with TextLoss")
        tiles = tiles_of(model, self.max_tiles, "AnswerLoss")
        buffer = TileBuffer(tiles, embedder.image_size, processor.thumbnail)
        row = Encoder(processor, embedder).encode(record, tiles, buffer, prompts_named(self.prompts)[0])
        if len(row.ids) > self.max_tokens:
            raise UserError(
                f"AnswerLoss: record {record.key!r} has {len(row.ids):,} tokens, more than max_tokens={self.max_tokens}"
            )
        return packed([row], processor.normalize(buffer.tiles(), row.image_tiles))
