"""The cupy backend against the torch backend, through whole models: the kernels run in the emulator."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components.adapters.lora import LoRA
from components.backbones.internlm2 import InternLM2
from components.backbones.qwen import Qwen2, Qwen3
from components.freezing.delta_tuning import Everything, VisualParameters
from components.routers.modality import ModalityRouter, SharedRouter
from cupy_kernels import launch, selection
from mmframe import expert_backends
from mmframe.batch import Batch, Sample
from mmframe.cli.main import main
from mmframe.contracts import Backbone
from mmframe.cupy_backend import CupyBackend
from mmframe.errors import UserError
from mmframe.expert_backends import TORCH, ExpertBackend, use_backend
from mmframe.freezing import freeze
from mmframe.generation import Step, next_logits, run_prompts, text_plan
from mmframe.kinds import TokenKind
from mmframe.layout import Layout
from mmframe.model import MultimodalLM
from mmframe.weights import load_weights, read_weights, save_weights
from tests.cupy_kernels.emulated import Emulator
from tests.helpers import (
    ALL_SITES,
    HIDDEN,
    QKV_FFN,
    VOCAB,
    all_hidden,
    loss_and_gradients,
    mixed_batch,
    roughen,
    row,
    tiny_internlm2,
    tiny_llama,
    tiny_net,
)

SIZES: dict[str, Any] = dict(
    hidden_size=HIDDEN, num_layers=3, num_heads=4, kv_heads=2, intermediate_size=48, vocab_size=VOCAB
)
MODELS: dict[str, tuple[Any, dict[str, str]]] = {
    "mono_internvl": (tiny_internlm2, {"ffn": "all"}),
    "mono_internvl_1_5": (tiny_internlm2, QKV_FFN),
    "every_site": (tiny_llama, ALL_SITES),
    "some_layers": (tiny_llama, {"ffn": "0-2/2", "q": "-1", "o": "1"}),
    "biases": (lambda: Qwen2(**SIZES), QKV_FFN),
    "norms_of_heads": (lambda: Qwen3(**SIZES, head_dim=8), QKV_FFN | {"q_norm": "all", "k_norm": "all"}),
    "dense": (tiny_llama, {}),
}
models = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(params=["sm_80", "sm_90a"])
def emulator(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    emulator = Emulator((8, 0) if request.param == "sm_80" else (9, 0))
    with launch.on_host(emulator):
        yield emulator


def use(net: MultimodalLM, backend: ExpertBackend) -> MultimodalLM:
    """The same weights under another backend."""
    net = copy.deepcopy(net)
    for _, _, experts in net.backbone.sites():
        experts.backend = backend
    return net


def three(name: str) -> tuple[MultimodalLM, MultimodalLM, MultimodalLM]:
    """One model: in fp32, in bf16 by torch, in bf16 by the kernels."""
    make, sites = MODELS[name]
    backbone: Backbone = make()
    net = tiny_net(sites, backbone=backbone, distinct=bool(sites)).bfloat16()
    return use(net, TORCH).float(), net, use(net, CupyBackend())


def error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def as_close(got: Tensor, torchs: Tensor, exact: Tensor) -> bool:
    """No further from fp32 than 1.2 times what torch's own bf16 is; the kernels round less often."""
    return error(got, exact) <= 1.2 * error(torchs, exact) + 1e-3


@models
def test_a_prefill_is_as_close_to_fp32_as_the_torch_backend(name: str, emulator: Emulator) -> None:
    exact, by_torch, by_kernels = three(name)
    given = mixed_batch()
    assert as_close(*(all_hidden(net, given) for net in (by_kernels, by_torch, exact)))
    sites = MODELS[name][1]
    expected = {"project" for site in "qkvo" if site in sites} | ({"gate_up", "project"} if "ffn" in sites else set())
    assert {kernel.partition("_sm")[0] for kernel in emulator.launched} == expected


@models
def test_decoding_is_as_close_to_fp32_as_the_torch_backend(name: str, emulator: Emulator) -> None:
    exact, by_torch, by_kernels = three(name)
    prompts = [row("tt[i]tt"), row("[i]t"), row("ttt")]
    steps = {}
    for key, net in (("exact", exact), ("torch", by_torch), ("kernels", by_kernels)):
        cache = net.backbone.new_cache(len(prompts), 32)
        logits = [run_prompts(net, prompts, cache)]
        step = Step(net, cache)
        emulator.launched.clear()
        logits += [step([7 + n, 9, 11]) for n in range(4)]
        steps[key] = torch.stack(logits)
    assert as_close(steps["kernels"], steps["torch"], steps["exact"])
    layers = by_kernels.backbone.num_layers
    assert emulator.launched.count("decode_gate_up_few") == emulator.launched.count("decode_down_few") == 4 * layers


@pytest.mark.parametrize("policy", ["visual", "everything"])
@pytest.mark.parametrize("name", ["mono_internvl", "mono_internvl_1_5", "every_site", "biases"])
def test_a_training_step_is_as_close_to_fp32_as_the_torch_backend(name: str, policy: str, emulator: Emulator) -> None:
    freezing = VisualParameters(1e-3, 1e-3) if policy == "visual" else Everything(1e-3, 1e-3, 1e-3)
    losses, gradients = [], []
    for net in three(name):
        freeze(net, freezing.groups(net.router.experts))
        loss, grads = loss_and_gradients(net, mixed_batch())
        losses.append(loss)
        gradients.append(grads)
    exact, by_torch, by_kernels = gradients
    assert abs(losses[2] - losses[0]) <= abs(losses[1] - losses[0]) + 1e-2 * abs(losses[0])
    assert exact.keys() == by_kernels.keys()
    for key, want in exact.items():
        got, torchs = by_kernels[key], by_torch[key]
        assert want is not None and got is not None and torchs is not None, key
        if want.any():
            assert error(got, want) <= 1.5 * error(torchs, want) + 2e-2, key
        else:  # nothing behind the last layer's visual expert is supervised
            assert not got.any(), key
    assert any(kernel.startswith("swiglu_backward") for kernel in emulator.launched)


def test_ranks_without_images_or_without_text_have_zero_gradients_not_none(emulator: Emulator) -> None:
    _, _, net = three("mono_internvl_1_5")
    freeze(net, Everything(1e-3, 1e-3, 1e-3).groups(net.router.experts))
    _, grads = loss_and_gradients(net, Batch.collate([row("ttTTT")]))
    visual = {key: grad for key, grad in grads.items() if ".visual." in key}
    assert visual and all(grad is not None and not grad.any() for grad in visual.values())


def test_text_logits_do_not_depend_on_the_visual_experts(emulator: Emulator) -> None:
    """P13 under the kernels: the weights of another kind are NaN, and text does not notice."""
    _, _, net = three("mono_internvl_1_5")
    given = Batch.collate([row("ttttt"), row("tttt")])
    before = all_hidden(net, given)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".visual." in name:
                parameter.fill_(float("nan"))
    assert torch.equal(all_hidden(net, given), before)


def test_a_checkpoint_of_one_backend_is_that_of_the_other_byte_by_byte(tmp_path: Path, emulator: Emulator) -> None:
    _, by_torch, by_kernels = three("mono_internvl_1_5")
    files = []
    for name, net in (("torch", by_torch), ("cupy", by_kernels)):
        files.append(tmp_path / f"{name}.safetensors")
        save_weights(net, files[-1])
    assert files[0].read_bytes() == files[1].read_bytes()
    fresh = use(tiny_net(QKV_FFN, backbone=tiny_internlm2()).bfloat16(), CupyBackend())
    assert load_weights(fresh, read_weights(files[0])[0]) == []
    assert torch.equal(all_hidden(fresh, mixed_batch()), all_hidden(by_kernels, mixed_batch()))


def check_wide(layers: int, emulator: Emulator) -> None:
    """InternLM2-1.8B's layers with FFN and q, k, v experts, random, bf16: by the kernels and by torch."""
    with torch.device("meta"):
        backbone = InternLM2(num_layers=layers, vocab_size=64)
        net = MultimodalLM(backbone, None, ModalityRouter(QKV_FFN), expert_backend="torch")
    net = net.to(torch.bfloat16).to_empty(device="cpu").eval()
    roughen(net, std=0.02)
    kinds = [int(TokenKind.IMAGE)] * 100 + [int(TokenKind.TEXT)] * 28
    x = torch.randn(128, 2048).bfloat16()
    given = Batch.collate([Sample.from_ids([1] * 128, kinds=[int(TokenKind.TEXT)] * 128)])
    plan = net.router.plan(torch.tensor(kinds, dtype=torch.int8))
    outputs = []
    for backend in (CupyBackend(), TORCH):
        for _, _, experts in net.backbone.sites():
            experts.backend = backend
        layout = Layout.build(given, plan, net.backbone, x.dtype)
        with torch.no_grad():
            outputs.append(net.backbone.head(net.backbone(plan.sort(x), plan, layout)))
    assert error(*outputs) < 1e-2 * layers**0.5
    assert len(emulator.launched) == 5 * layers


def test_a_layer_of_the_2b_model_agrees() -> None:
    emulator = Emulator((9, 0))
    with launch.on_host(emulator):
        check_wide(1, emulator)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 24 layers in the emulator: five minutes and more of two cores
def test_the_2b_model_agrees(emulator: Emulator) -> None:
    check_wide(24, emulator)


def test_a_decoding_step_compiles_as_one_graph(emulator: Emulator) -> None:
    _, _, net = three("mono_internvl_1_5")
    prompts = [row("tt[i]tt"), row("ttt")]
    caches = [net.backbone.new_cache(2, 32) for _ in range(2)]
    plan = text_plan(net, 2)
    compiled = torch.compile(next_logits, backend="aot_eager", fullgraph=True, dynamic=False)
    results = []
    with torch.no_grad():
        for cache, step in zip(caches, (next_logits, compiled), strict=True):
            run_prompts(net, prompts, cache)
            results.append([step(net, plan, cache, torch.tensor([5, 6]), 32) for _ in range(2)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_what_the_kernels_cannot_take_runs_on_torch_and_is_said_once(
    emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    expert_backends.say_once.cache_clear()
    exact, _, net = three("mono_internvl")
    wide = use(exact, CupyBackend())
    assert torch.equal(all_hidden(wide, mixed_batch()), all_hidden(exact, mixed_batch()))
    LoRA(rank=2, match=["backbone.layers.*.ffn.visual.up"]).install(net)
    all_hidden(net, mixed_batch())
    all_hidden(net, mixed_batch())
    assert emulator.launched == []
    assert capsys.readouterr().err.splitlines() == [
        "expert backend cupy: float32 runs on torch; the kernels are bf16",
        "expert backend cupy: LoRALinear runs on torch",
    ]


@pytest.mark.parametrize("where", ["ffn", "ffn.visual", "ffn.visual.up", "ffn_norm.text"])
def test_hooks_are_called(where: str, emulator: Emulator) -> None:
    _, _, net = three("mono_internvl")
    called: list[str] = []
    net.get_submodule(f"backbone.layers.1.{where}").register_forward_hook(lambda *_: called.append(where))
    all_hidden(net, mixed_batch())
    assert called == [where]


def test_a_module_that_changes_the_forward_is_not_taken_for_what_it_inherits() -> None:
    from components.backbones.decoder import FFN
    from mmframe.cupy_backend import _is_swiglu

    class Other(FFN):
        def forward(self, x_TD: Tensor) -> Tensor:
            return super().forward(x_TD) + 1

    assert _is_swiglu(FFN(8, 8)) and not _is_swiglu(Other(8, 8))


def test_a_width_that_the_kernels_cannot_take_is_one_line(emulator: Emulator) -> None:
    backbone = tiny_llama(intermediate_size=44)
    net = use(tiny_net({"ffn": "all"}, backbone=backbone).bfloat16(), CupyBackend())
    with pytest.raises(UserError, match="expert_backend=cupy: .* 44 .*multiples of 8; or use torch"):
        all_hidden(net, mixed_batch())


# ---- the choice ------------------------------------------------------------------------------------------------------


def test_cupy_where_it_cannot_run_is_an_error_that_says_why() -> None:
    if launch.why_not() is None:
        pytest.skip("it can run here")
    with pytest.raises(UserError, match="expert_backend=cupy cannot run here: .*(CuPy|CUDA).*; use auto or torch"):
        use_backend("cupy")
    with pytest.raises(UserError, match="'cpy' is not known; did you mean 'cupy'?"):
        use_backend("cpy")


def test_one_key_switches_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if launch.why_not() is None:
        pytest.skip("it can run here")
    assert main(["fit", "--config", "toy/dense", "--run-dir", str(tmp_path), "--model.expert_backend=cupy"]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "expert_backend=cupy cannot run here: " in line and "use auto or torch" in line


def test_auto_takes_what_was_measured_and_says_once(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def table(points: dict[str, Any]) -> None:
        selection.worth.cache_clear()
        expert_backends.say_once.cache_clear()
        monkeypatch.setattr(selection, "table", lambda: {selection.device_name(): points} if points else {})

    table({})
    assert use_backend("auto") is TORCH and use_backend("auto") is TORCH
    assert capsys.readouterr().err.count("expert backend: torch (cupy: nothing is measured on") == 1
    table({"ffn": [[64, 0.9], [1024, 1.2]], "decode_ffn": [[1, 1.5]]})
    backend = use_backend("auto")
    assert isinstance(backend, CupyBackend) and not backend.always
    assert capsys.readouterr().err == "expert backend: cupy\n"
    device = selection.device_name()
    assert [selection.worth("ffn", rows, device) for rows in (1, 64, 200, 300, 5000)] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert selection.worth("decode_ffn", 4, device) and not selection.worth("project", 1024, device)
    _, by_torch, _ = three("mono_internvl")
    net = use(by_torch, backend)
    assert torch.equal(all_hidden(net, mixed_batch()), all_hidden(by_torch, mixed_batch()))
    assert emulator.launched == []  # few rows: measured to be slower


def test_the_model_hands_its_backend_to_every_site(emulator: Emulator) -> None:
    net = MultimodalLM(tiny_llama(), None, SharedRouter(), expert_backend="cupy")
    backends = {experts.backend for _, _, experts in net.backbone.sites()}
    assert backends == {net.expert_backend} and net.expert_backend.name == "cupy"
    assert all(not isinstance(module, CupyBackend) for module in nn.ModuleList([net]).modules())
