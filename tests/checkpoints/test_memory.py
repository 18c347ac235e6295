"""A checkpoint is imported in little more memory than the result takes, and converted in far less."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from components.checkpoints.internvl import InternVLChat
from mmframe.loading import empty_model
from mmframe.safetensors_file import write_safetensors
from tests.checkpoints.support import REFERENCE, config_of
from tests.checkpoints.test_official import released_config

PROGRAM = """
import sys
from pathlib import Path
import mmframe
from mmframe.convert import export_checkpoint, import_checkpoint

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

small, source, work, what = sys.argv[1:]
mmframe.from_pretrained(small)  # whatever is loaded and allocated once
before = peak()
if what == "load":
    model = mmframe.from_pretrained(source)
elif what == "import":
    import_checkpoint(source, Path(work, "ours"))
elif what == "reload":
    model = mmframe.from_pretrained(work + "/ours")
else:
    export_checkpoint(work + "/ours", Path(work, "out"))
print(peak() - before)
"""


def middle_config() -> dict[str, Any]:
    """A Mono-InternVL of 420 MB in bf16."""
    config = config_of(REFERENCE / "mono_v1")
    config["llm_config"] |= dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=6, num_attention_heads=8)
    config["llm_config"] |= dict(num_key_value_heads=4, vocab_size=16384)
    config["vision_config"] |= dict(hidden_size=256)
    return config


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)  # gigabytes; pytest would keep them for three runs


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("config", [middle_config(), released_config()], ids=["420MB", "2B"])
def test_memory_of_import_load_and_export(config: dict[str, Any], folder: Path) -> None:
    (folder / "src").mkdir()
    (folder / "src" / "config.json").write_text(json.dumps(config))
    net = empty_model(InternVLChat().parts(config, folder))
    own = net.state_dict()
    shapes = {link.theirs: link.to_theirs(*(own[n] for n in link.ours)).shape for link in InternVLChat().links(net)}
    entries = {name: (torch.bfloat16, shape) for name, shape in shapes.items()}
    tensors = ((name, torch.full(shape, 0.01, dtype=torch.bfloat16)) for name, shape in shapes.items())
    write_safetensors(folder / "src" / "model.safetensors", entries, tensors)
    size = (folder / "src" / "model.safetensors").stat().st_size

    def peak(what: str) -> float:
        words = [sys.executable, "-c", PROGRAM, str(REFERENCE / "mono_v1"), str(folder / "src"), str(folder), what]
        made = subprocess.run(words, capture_output=True, text=True, check=True)
        return int(made.stdout) / size

    shares = {what: round(peak(what), 3) for what in ("load", "import", "reload", "export")}
    print(f"{size:,} bytes, peak memory as a share of them: {shares}")
    assert shares["load"] <= 1.3 and shares["reload"] <= 1.3
    assert shares["import"] <= 0.4 and shares["export"] <= 0.4
    found = {}
    for file in (folder / "out").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:  # the library alone
            found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    assert found == {name: tuple(shape) for name, shape in shapes.items()}
    if config["llm_config"]["vocab_size"] == 92553:
        assert sum(torch.Size(shape).numel() for shape in found.values()) == 3_111_355_392
        assert len(found) == 253 and len(list((folder / "out").glob("*.safetensors"))) == 2
