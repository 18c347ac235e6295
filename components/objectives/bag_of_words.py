"""A warm start for the patch embedder: a picture's mean visual token should look like the words of its answers.

N visual tokens, R documents of the batch, T tokens, S supervised tokens, D hidden size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmframe.batch import Batch
from mmframe.contracts import Objective
from mmframe.errors import UserError
from mmframe.registry import register


@register("objective")
class BagOfWords(Objective):
    """Cosine of a document's mean visual token with every token embedding -> softmax -> its supervised words.

    No LLM layer runs and nothing is added to the model, so a step costs next to nothing, and the embedder starts out
    speaking in the directions of words that the frozen LLM already understands. This is not part of EViP: it stands
    in, at demo scale, for the hundreds of millions of pairs with which the paper's embedder learns to see. Source of
    the idea: visual features from the words of captions (Joulin et al., arXiv 1511.02251).

    Args:
        temperature: Divides the cosine.
        ignore_ids: Supervised ids that say nothing of a picture, such as the end of a turn.
    """

    whole_model = False

    def __init__(self, temperature: float = 0.04, ignore_ids: list[int] | None = None) -> None:
        self.temperature = temperature
        self.ignore_ids = list(ignore_ids or [])
        self._words_VD: Tensor | None = None

    def __call__(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.num_tokens and not batch.tiles.shape[0]:
            raise UserError(
                f"objective BagOfWords: the batch of {batch.keys[0]!r} has no image; give it image data only"
            )
        visual_ND = net.patch_embedder(batch.tiles).float()  # type: ignore[operator]
        num_documents = len(batch.doc_lengths)
        document_T = torch.arange(num_documents).repeat_interleave(batch.doc_lengths).to(visual_ND.device)
        mean_RD = visual_ND.new_zeros(num_documents, visual_ND.shape[1])
        # the sum: a cosine does not see the length
        mean_RD = mean_RD.index_add(0, document_T[batch.image_slots], visual_ND)
        cosine_RV = F.normalize(mean_RD, dim=-1) @ self._words(net).T
        logp_RV = F.log_softmax(cosine_RV / self.temperature, dim=-1)
        labels_S, weights_S = batch.labels[batch.supervised], self.weights(batch)
        ce_S = -logp_RV[document_T[batch.supervised], labels_S]
        self.per_token = ce_S.detach(), weights_S
        return (weights_S * ce_S).sum(), weights_S.sum()

    def weights(self, batch: Batch) -> Tensor:
        labels_S = batch.labels[batch.supervised]
        weights_S = super().weights(batch)
        for ignored in self.ignore_ids:
            weights_S = weights_S * (labels_S != ignored)
        return weights_S

    def _words(self, net: nn.Module) -> Tensor:
        """Token embeddings of length one, fp32 [V, D]; computed once, so they must be frozen."""
        if self._words_VD is None:
            ids_V = torch.arange(net.backbone.vocab_size, device=next(net.parameters()).device)  # type: ignore
            with torch.enable_grad():  # a validation may come first: what trains must show there too
                words = net.backbone.embed(ids_V)  # type: ignore
            if words.requires_grad:
                raise UserError(
                    "objective BagOfWords: the token embedding trains; freeze it, e.g. freezing EmbedderOnly"
                )
            self._words_VD = F.normalize(words.detach().float(), dim=-1)
        return self._words_VD
