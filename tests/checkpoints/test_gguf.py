"""A Llama GGUF file is a checkpoint like any other: SmolLM2 of the demo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mmframe
from components.backbones.llama import SmolLM2
from components.routers.modality import SharedRouter
from mmframe.batch import Sample
from mmframe.errors import UserError
from mmframe.loading import LoadedModel, load
from mmframe.model import MultimodalLM
from mmframe.paths import smollm2_gguf
from mmframe.processing import SmolLM2Tokenizer
from tests.checkpoints.support import run
from tests.helpers import all_logits

TEXT = "<|im_start|>user\nWhat colour is the sky?<|im_end|>\n<|im_start|>assistant\n"


def gguf() -> Path:
    try:
        return smollm2_gguf()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        assert run("import", gguf(), folder / "ours") == 0
    return load(folder / "ours")


def test_logits_are_those_of_the_backbone_that_reads_the_file(imported: LoadedModel) -> None:
    ids = SmolLM2Tokenizer().encode(TEXT, special=True)
    direct = MultimodalLM(SmolLM2(), None, SharedRouter()).eval()
    assert torch.equal(all_logits(imported.net, Sample.from_ids(ids)), all_logits(direct, Sample.from_ids(ids)))


def test_its_tokenizer_and_template_come_with_it(imported: LoadedModel) -> None:
    processor, known = imported.processor, SmolLM2Tokenizer()
    assert processor.spec["init_args"]["template"] == "smollm2"
    assert processor.tokenizer.encode(TEXT, special=True) == known.encode(TEXT, special=True)
    assert processor.tokenizer.eos_id == known.eos_id


def test_it_exports_as_a_llama(imported: LoadedModel, tmp_path: Path) -> None:
    folder = Path(imported.processor.tokenizer.spec["init_args"]["path"])
    assert run("export", folder, tmp_path / "out", "--max-shard-size", "200MB", "--dtype", "bf16") == 0
    back = mmframe.from_pretrained(tmp_path / "out")
    expected = imported.net.state_dict()
    assert all(torch.equal(tensor, expected[name].bfloat16()) for name, tensor in back.net.state_dict().items())
    assert back.metadata["source"]["config"]["model_type"] == "llama"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"hello" * 100])
def test_a_damaged_file_is_one_line(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    assert run("import", tmp_path / "x.gguf", tmp_path / "out") == 2
    assert "x.gguf is damaged or no GGUF file" in capsys.readouterr().err


def test_a_truncated_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = gguf().read_bytes()
    (tmp_path / "x.gguf").write_bytes(whole[: len(whole) // 2])
    assert run("import", tmp_path / "x.gguf", tmp_path / "out") == 2
    assert "x.gguf is damaged or no GGUF file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
