"""Weights of a Llama GGUF file -> Decoder, dequantised to fp32."""

from pathlib import Path

import torch

from components.backbones.decoder import Decoder
from mmframe.gguf_file import GgufFile
from mmframe.weights import check_fit


def load_llama_gguf(decoder: Decoder, path: Path) -> None:
    """Fills the text experts, embedding, norms and head.

    Raises:
        UserError: a damaged file, or tensors that are missing, unexpected or of another shape than the decoder's.
    """
    file = GgufFile(path)
    links = decoder.tensor_map()
    parameters = dict(decoder.named_parameters())
    expected = {link.theirs: parameters[link.ours[0]] for link in links}
    check_fit(expected, file.entries, set(), f"{path.name}: tensors do not fit the backbone")
    with torch.no_grad():
        for link in links:
            parameters[link.ours[0]].copy_(file.read(link.theirs))
