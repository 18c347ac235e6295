"""Fine-tuning: start_from, the user's own records, an epoch of unknown length, and the way from import to chat."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers as hf
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from components.backbones.llama import Llama
from components.freezing.delta_tuning import Everything
from components.patch_embedders.mono import MonoPatchEmbedder
from components.routers.modality import ModalityRouter, SharedRouter
from mmframe.callbacks.jsonl import read_metrics
from mmframe.cli.recipe import load_recipe
from mmframe.cli.start_from import fingerprint
from mmframe.data import InstructionData
from mmframe.data.lengths import longest_row
from mmframe.data.records import read_records
from mmframe.errors import UserError
from mmframe.model import MultimodalLM
from mmframe.module import MultimodalModule
from mmframe.optim import AdamWSchedule
from mmframe.processing import ByteTokenizer, ChatProcessor
from mmframe.weights import save_weights

from .test_run import stop_at

REFERENCE = Path(__file__).parents[1] / "fixtures" / "reference"
PICTURES = sorted((REFERENCE / "preprocess").glob("*.png"))
QUICK = ["--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true",
         "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]  # fmt: skip
EXPERTS = ["--model.freezing=VisualParameters", "--model.freezing.embedder_lr=3e-3", "--model.freezing.experts_lr=3e-3"]
LORA = ["--model.adapter=LoRA", "--model.adapter.rank=4", "--model.freezing=LoRAParameters", "--model.freezing.lr=1e-2"]
ALL = [f"--model.freezing.{part}_lr=3e-3" for part in ("text", "embedder", "experts")]


# ---- checkpoints: a header that describes a model is enough for everything that happens before torch is loaded

BACKBONE = {"class_path": "components.backbones.llama.Llama", "init_args": {"hidden_size": 64, "vocab_size": 320}}
EMBEDDER = {"class_path": "components.patch_embedders.mono.MonoPatchEmbedder",
            "init_args": {"hidden_size": 64, "image_size": 32, "patch_size": 4, "channels": 16}}  # fmt: skip
ROUTER = {"class_path": "components.routers.modality.ModalityRouter", "init_args": {"experts_at": {"ffn": "all"}}}
TOKENIZER = {"class_path": "mmframe.processing.tokenizer.HFTokenizer", "init_args": {"path": "."}}
PROCESSOR = {"class_path": "mmframe.processing.chat.ChatProcessor",
             "init_args": {"tokenizer": TOKENIZER, "template": "chatml"}}  # fmt: skip
MODEL = {"backbone": BACKBONE, "patch_embedder": EMBEDDER, "router": ROUTER, "processor": PROCESSOR, "freezing": {}}


def header_only(folder, model=MODEL):
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | ({} if model is None else {"model": json.dumps(model)})
    text = json.dumps({"__metadata__": metadata}).encode()
    (folder / "weights.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return folder


def resolved(*overrides, recipe="finetune", stage=None):
    pairs = [tuple(word.split("=", 1)) for word in overrides]
    return load_recipe([recipe]).with_overrides(pairs).resolve(stage)


def test_the_checkpoint_describes_the_model_and_the_recipe_the_rest(elsewhere):
    header_only(elsewhere / "mono")
    model = resolved("start_from=mono")["model"]
    assert model["backbone"] == BACKBONE and model["router"] == ROUTER
    assert model["init_from"] == "mono/weights.safetensors"
    assert "hidden_size" not in model["patch_embedder"]["init_args"], "linked to the backbone's by the command line"
    assert model["processor"]["init_args"]["tokenizer"]["init_args"]["path"] == "mono", "beside the weights"
    assert model["freezing"]["class_path"] == "Everything", "the recipe's, not what the checkpoint was trained with"
    assert "start_from" not in resolved("start_from=mono"), "what it resolves to is a plain configuration"
    assert resolved("start_from=mono/weights.safetensors") == resolved("start_from=mono")


def test_what_recipe_and_command_line_say_of_the_model_wins(elsewhere):
    header_only(elsewhere / "mono")
    (elsewhere / "mine.yaml").write_text(
        "base: finetune\nstart_from: mono\n"
        "model: {router: {init_args: {init: zero}}, patch_embedder: LinearPatchEmbedder}\n"
    )
    model = resolved("model.processor.template=plain", recipe="mine.yaml")["model"]
    assert model["router"] == {**ROUTER, "init_args": {**ROUTER["init_args"], "init": "zero"}}
    assert model["patch_embedder"] == {"class_path": "LinearPatchEmbedder"}, "another class brings its own arguments"
    assert model["processor"]["init_args"]["template"] == "plain"
    assert model["processor"]["init_args"]["tokenizer"]["class_path"] == TOKENIZER["class_path"]
    assert resolved("model.init_from=null", recipe="mine.yaml")["model"]["init_from"] is None
    header_only(elsewhere / "other", {**MODEL, "router": {"class_path": "components.routers.modality.SharedRouter"}})
    assert "SharedRouter" in resolved("start_from=other")["model"]["router"]["class_path"]


def test_show_dry_run_and_validate_understand_it(cli, elsewhere):
    header_only(elsewhere / "mono")
    words = ["--start_from=mono", "--data.annotations=my.jsonl"]
    code, out, _ = cli("recipes", "show", "finetune", *words)
    assert code == 0
    (elsewhere / "shown.yaml").write_text(out)
    assert resolved(recipe="shown.yaml") == resolved("start_from=mono", "data.annotations=my.jsonl")
    code, out, _ = cli("fit", "--config", "finetune", *words, "--dry-run")
    assert code == 0 and "1 epoch, from mono/weights.safetensors" in out and "backbone Llama" in out
    assert cli("recipes", "validate", "finetune", *words)[0] == 0
    code, out, _ = cli("recipes", "show", "finetune")
    assert code == 0 and "the model comes from --start_from=CHECKPOINT" in out
    assert cli("recipes", "validate", "finetune")[0] == 0


def test_nothing_of_it_loads_torch(elsewhere):
    header_only(elsewhere / "mono")
    program = (
        "import sys; from mmframe.cli.main import main; "
        "code = main(['fit', 'finetune', '--start_from=mono', '--dry-run']); sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_mistakes_are_one_line_before_anything_loads(fails, elsewhere):
    header_only(elsewhere / "text", {**MODEL, "patch_embedder": None, "router": None})
    header_only(elsewhere / "bare", None)
    header_only(elsewhere / "silent", {**MODEL, "processor": None})
    (elsewhere / "official").mkdir()
    (elsewhere / "official" / "config.json").write_text("{}")
    (elsewhere / "damaged.safetensors").write_bytes(b"no header at all, whatever it is")
    (elsewhere / "short.safetensors").write_bytes(b"")
    for start, message in [
        ("nowhere", "start_from: nowhere does not exist; give a folder that `mmframe import` wrote"),
        ("official", "official is an official checkpoint; run `mmframe import official DST`"),
        ("bare", "bare/weights.safetensors does not describe its model; run `mmframe import"),
        ("damaged.safetensors", "damaged.safetensors is damaged or no safetensors file"),
        ("short.safetensors", "short.safetensors is damaged or no safetensors file"),
        ("text", "text is a text LLM, so it has no patch_embedder; name one: --model.patch_embedder=CLASS"),
        ("silent", "silent was imported without a tokenizer, so it has no processor"),
        ("null", "its model comes from a checkpoint; name one: --start_from=FOLDER"),
    ]:
        assert message in fails("fit", "--config", "finetune", f"--start_from={start}"), start
    assert "recipe finetune: its model comes from a checkpoint" in fails("fit", "--config", "finetune")
    assert "did you mean 'start_from'" in fails("fit", "--config", "finetune", "--startfrom=text")
    header_only(elsewhere / "mono")
    assert "has no argument 'bakcbone'" in fails("fit", "finetune", "--start_from=mono", "--model.bakcbone=X")


def test_a_text_llm_takes_the_parts_that_the_recipe_names(cli, elsewhere):
    header_only(elsewhere / "text", {**MODEL, "patch_embedder": None, "router": None})
    words = ["--start_from=text", "--model.patch_embedder=MonoPatchEmbedder", "--model.router=ModalityRouter"]
    code, out, err = cli("fit", "--config", "finetune", *words, "--dry-run")
    assert code == 0, err
    assert "patch_embedder MonoPatchEmbedder" in out


def test_the_first_stage_starts_from_it_and_the_others_from_the_stage_before(cli, elsewhere):
    header_only(elsewhere / "mono")
    code, out, err = cli("fit", "toy/evip", "--start_from=mono", "--dry-run")
    assert code == 0, err
    lines = out.splitlines()[1:]
    assert ["from mono/weights.safetensors" in line for line in lines] == [True, False, False, False]
    code, out, _ = cli("fit", "toy/evip", "--start_from=mono", "--stage=s1_3_alignment", "--dry-run")
    assert code == 0 and "s1_3_alignment] would run: 20 steps, from mono/weights.safetensors" in out
    code, out, _ = cli("fit", "toy/evip", "--stages.s1_2_semantic.start_from=mono", "--dry-run")
    assert ["from mono" in line for line in out.splitlines()[1:]] == [False, True, False, False]


def test_another_checkpoint_under_the_same_name_is_noticed(tmp_path):
    file = header_only(tmp_path / "mono") / "weights.safetensors"
    with file.open("ab") as stream:
        stream.write(bytes(10_000_000))
    before = fingerprint(file)
    assert before == fingerprint(shutil.copy(file, tmp_path / "copy")) != fingerprint(header_only(tmp_path / "o"))
    content = bytearray(file.read_bytes())
    content[:200_000] = content[:200_000].replace(b"zero", b"copy").replace(b"64", b"32")
    file.write_bytes(content)
    assert fingerprint(file) != before and fingerprint(tmp_path / "nothing") is None


# ---- the user's own records


def tiny_processor():
    return ChatProcessor(ByteTokenizer(), "plain", image_start="<img>", image_end="</img>")


def tiny_embedder():
    return MonoPatchEmbedder(64, image_size=32, patch_size=4, channels=16)


def talk(question, answer, image=None, **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": answer, "conversations": turns, **({} if image is None else {"image": image}), **more}


def own_records(folder):
    """LLaVA-style records over the fixtures' pictures: one, none, several pictures, keys of other programs."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        shutil.copy(picture, folder / "pictures")
    names = [picture.name for picture in PICTURES]
    records = [talk("<image>\nWhat is it?", f"picture {i}", name, width=3) for i, name in enumerate(names)]
    records.append(talk("Say hello.", "hello", model="text"))
    records.append(talk("<image>\n<image>\nWhich is wide?", "the second", names[:2]))
    (folder / "my.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def connected(path, **options):
    return InstructionData(str(path), **options).connect(tiny_processor(), tiny_embedder())


def test_jsonl_and_a_json_list_are_the_same_and_image_folder_is_where_pictures_lie(tmp_path):
    records = own_records(tmp_path)
    (tmp_path / "list.json").write_text(json.dumps(records, indent=1))
    for name in ("my.jsonl", "list.json"):
        rows = connected(tmp_path / name, image_folder=str(tmp_path / "pictures")).val_rows
        assert rows is None
        data = connected(tmp_path / name, image_folder=str(tmp_path / "pictures"), max_tiles=2)
        assert data.train_rows is not None and len(data.train_rows) == len(records)
        tiles = [len(data.train_rows.sample(0, i).tiles) for i in range(len(records))]
        assert tiles.count(0) == 1 and max(tiles) == 3  # two tiles and the thumbnail


def test_bad_records_and_missing_pictures_are_named(tmp_path):
    own_records(tmp_path)
    with pytest.raises(UserError, match=r"picture .*gray_L_300x400\.png: there is no such file; .*data\.image_folder"):
        connected(tmp_path / "my.jsonl")
    file = tmp_path / "bad.json"
    for content, message in [
        ("[3]", "bad.json record 1 is not a record but a int"),
        ('[{"conversations": "hello"}]', 'record 1: "conversations" must be a list'),
        ('[{"conversations": [{"from": "human"}]}]', 'record 1: "conversations" must be a list'),
        ('[{"conversations": [], "image": 3}]', '"image" must be a path or a list of paths, got 3'),
        ('[{"conversations": []', "bad.json is not JSON"),
    ]:
        file.write_text(content)
        with pytest.raises(UserError, match=message):
            connected(file)


def test_lengths_are_those_of_the_rows_without_decoding_a_picture(tmp_path):
    own_records(tmp_path)
    turned = Image.new("RGB", (90, 30), (3, 200, 90))
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by a quarter
    turned.save(tmp_path / "pictures" / "turned.jpg", exif=exif)
    asked = {"id": "q", "image": "turned.jpg", "questions": [["what?", "a"], ["which one is it?", "b"], ["who?", "c"]]}
    with (tmp_path / "my.jsonl").open("a") as lines:
        lines.write(json.dumps(talk("<image>\nTurned?", "yes", "turned.jpg")) + "\n" + json.dumps(asked) + "\n")
    records = read_records(tmp_path / "my.jsonl", image_folder=tmp_path / "pictures")
    processor, embedder = tiny_processor(), tiny_embedder()
    rows = connected(tmp_path / "my.jsonl", image_folder=str(tmp_path / "pictures"), max_tiles=4).train_rows
    assert rows is not None
    found = {sample.key: len(sample.ids) for sample in (rows.sample(0, i) for i in range(len(rows)))}
    counted = {record.key: longest_row(record, processor, embedder, 4) for record in records}
    assert counted == found
    questions = records[-1]
    assert longest_row(questions, processor, embedder, 4, per_row=3) == counted[questions.key]
    one = processor.encode_branches([questions.questions[1]], [torch.zeros(1, 3, 32, 32, dtype=torch.uint8)], embedder)
    assert longest_row(questions, processor, embedder, 1, per_row=1) == len(one.ids)


def test_what_is_too_long_is_an_error_or_left_out_and_counted_never_cut(tmp_path, capsys):
    records = own_records(tmp_path)
    options = dict(image_folder=str(tmp_path / "pictures"), max_tiles=1)
    longer = talk("Tell me more.", "word " * 100) | {"id": "long"}
    with (tmp_path / "my.jsonl").open("a") as lines:
        lines.write(json.dumps(longer) + "\n")
    with pytest.raises(UserError, match=r"1 of 10 records .* max_tokens=200, first sample .*:long' with 514; "):
        connected(tmp_path / "my.jsonl", max_tokens=200, **options)
    data = connected(tmp_path / "my.jsonl", max_tokens=200, too_long="skip", **options)
    assert "1 of 10 records" in capsys.readouterr().out
    assert data.train_rows is not None and len(data.train_rows) == len(records)
    with pytest.raises(UserError, match="none is left"):
        connected(tmp_path / "my.jsonl", max_tokens=3, too_long="skip", **options)


# ---- an epoch of unknown length


def test_warm_up_is_a_share_of_the_steps_and_cosine_ends_with_them():
    schedule = AdamWSchedule(warmup_ratio=0.03)
    scales = [schedule.scale(step, 200) for step in range(200)]
    assert scales[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0])  # 200 * 0.03 = 6 steps
    assert scales[-1] < 1e-3 and scales == sorted(scales[:6]) + sorted(scales[6:], reverse=True)
    with pytest.raises(UserError, match="warmup_ratio=1.5"):
        AdamWSchedule(warmup_ratio=1.5)
    with pytest.raises(UserError, match="warmup_ratio needs trainer.max_steps or max_epochs"):
        AdamWSchedule(warmup_ratio=0.1, schedule="constant").configure({}, {}, {}, -1)


# ---- weights


def text_llm(**changes):
    sizes = dict(hidden_size=64, num_layers=2, num_heads=4, kv_heads=2, intermediate_size=96, vocab_size=320)
    return Llama(**(sizes | changes))


@pytest.fixture
def text_checkpoint(tmp_path):
    """As `mmframe import` writes a text LLM."""
    backbone, processor = text_llm(), tiny_processor()
    net = MultimodalLM(backbone, None, SharedRouter(), expert_backend="torch")
    parts = {"backbone": backbone.spec, "patch_embedder": None, "router": SharedRouter().spec,
             "processor": processor.spec}  # fmt: skip
    save_weights(net, tmp_path / "text" / "weights.safetensors", {"model": parts, "source": {"format": "X"}})
    return tmp_path / "text"


def started(path, backbone=None):
    return MultimodalModule(
        backbone=backbone or text_llm(),
        patch_embedder=tiny_embedder(),
        router=ModalityRouter(),
        freezing=Everything(1e-3, 1e-3, 1e-3),
        processor=tiny_processor(),
        init_from=str(path / "weights.safetensors"),
        expert_backend="torch",
    )


def test_beside_a_text_llm_embedder_and_experts_are_new_and_it_is_said(text_checkpoint, capsys, tmp_path):
    module = started(text_checkpoint)
    said = capsys.readouterr().out
    assert "6 expert tensors are new" in said and "tensors of the patch embedder are new" in said
    assert said.count("init_from") == 1
    stored = load_file(text_checkpoint / "weights.safetensors")
    state = module.net.state_dict()
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    for name in (name for name in state if ".visual." in name):
        assert torch.equal(state[name], stored[name.replace(".visual.", ".text.")])
    module.save_weights(tmp_path / "next" / "weights.safetensors")
    again = started(tmp_path / "next")
    assert capsys.readouterr().out == "" and again.source == {"format": "X"}, "the origin goes on with the weights"


def test_anything_else_that_is_missing_is_an_error(text_checkpoint):
    with pytest.raises(UserError, match="weights do not fit the model: .*missing"):
        started(text_checkpoint, text_llm(num_layers=3))


FROM_TEXT = """
start_from: text
model:
  patch_embedder: {class_path: MonoPatchEmbedder, init_args: {image_size: 32, patch_size: 4, channels: 16}}
  router: {class_path: ModalityRouter, init_args: {experts_at: {ffn: all, q: all}}}
  freezing: {class_path: VisualParameters, init_args: {embedder_lr: 1e-3, experts_lr: 1e-3}}
data: {class_path: ToyData, init_args: {size: 16, batch_size: 4, val_size: 0}}
trainer: {max_steps: 3, accelerator: cpu, devices: 1, limit_val_batches: 0, enable_progress_bar: false}
stages:
  one: {}
  two: {trainer: {max_steps: 2}}
"""


def test_visual_pre_training_starts_from_an_imported_text_llm(cli, text_checkpoint, elsewhere):
    (elsewhere / "mine.yaml").write_text(FROM_TEXT)
    code, out, err = cli("fit", "mine.yaml", "--run-dir=r", "--in-process")
    assert code == 0, err
    assert out.count("a text LLM, so the") == 1, "the first stage alone starts from it"
    assert "r/one, from text/weights.safetensors" in err and "r/two, from r/one/weights.safetensors" in err
    text = load_file(text_checkpoint / "weights.safetensors")
    one, two = (load_file(elsewhere / "r" / stage / "weights.safetensors") for stage in ("one", "two"))
    assert all(torch.equal(text[name], state[name]) for name in text for state in (one, two)), "the text path is frozen"
    changed = {name for name in two if not torch.equal(one[name], two[name])}
    assert any(".q.visual." in name for name in changed) and any(".ffn.visual." in name for name in changed)


def test_a_vocabulary_that_the_embedding_lacks_is_told_before_training(cli, text_checkpoint, elsewhere):
    (elsewhere / "mine.yaml").write_text(FROM_TEXT)
    code, _, err = cli("fit", "mine.yaml", "--run-dir=r", "--stage=one", "--model.backbone.vocab_size=200",
                       "--model.init_from=null")  # fmt: skip
    assert code == 2 and "the tokenizer has 264 ids, the backbone's embedding 200 rows" in err


# ---- from import to chat


def official_folder(folder):
    """The official layout of the fixtures with a byte-level tokenizer.json of the same ids."""
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(REFERENCE / "mono_v1" / name, folder)
    specials = {"<s>": 1, "</s>": 2, "<|im_start|>": 496, "<|im_end|>": 497, "<img>": 498, "</img>": 499,
                "<IMG_CONTEXT>": 500}  # fmt: skip
    letters = dict(zip(sorted(hf.pre_tokenizers.ByteLevel.alphabet()), range(16, 272), strict=True))
    known = {number: text for text, number in (specials | letters).items()}
    vocabulary = {known.get(number, f"[{number}]"): number for number in range(512)}
    made = hf.Tokenizer(hf.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = hf.decoders.ByteLevel()
    made.add_special_tokens([hf.AddedToken(text, special=True, normalized=False) for text in specials])
    made.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    return folder


@pytest.fixture
def imported(cli, elsewhere):
    code, _, err = cli("import", official_folder(elsewhere / "official"), "mono")
    assert code == 0, err
    own_records(elsewhere)
    for picture in (elsewhere / "pictures").iterdir():
        shutil.move(picture, elsewhere)  # beside the records, as the recipe expects by default
    return ["fit", "--config", "recipes/finetune.yaml", "--start_from=mono", "--data.annotations=my.jsonl"]


def test_from_an_official_folder_to_an_official_folder_and_a_chat(cli, imported, elsewhere):
    code, out, err = cli(*imported, *QUICK)
    assert code == 0, err
    run = elsewhere / "runs" / "finetune"
    done, meta = (json.loads((run / f"{name}.json").read_text()) for name in ("done", "meta"))
    assert done["steps"] == 1, "9 records by 2, 8 micro-batches a step: one step is the epoch"
    assert meta["started_from"] == fingerprint(elsewhere / "mono" / "weights.safetensors")
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_from"] == "mono/weights.safetensors"
    assert "done, skipped" in cli(*imported, *QUICK)[2]
    code, _, err = cli("validate", *imported[1:], *QUICK, "--data.val=my.jsonl")
    assert code == 0 and "weights: runs/finetune/weights.safetensors" in err

    code, _, err = cli("export", run, "back")
    assert code == 0, err
    before, after = (load_file(elsewhere / name / "model.safetensors") for name in ("official", "back"))
    assert {name: t.shape for name, t in before.items()} == {name: t.shape for name, t in after.items()}
    assert any(not torch.equal(before[name], after[name]) for name in before)
    old, new = (json.loads((elsewhere / name / "config.json").read_text()) for name in ("official", "back"))
    assert {key for key in old if old[key] != new.get(key)} == set(), "the official config goes on with the weights"

    shutil.rmtree(elsewhere / "mono")
    run.rename(elsewhere / "moved")  # its tokenizer goes with it
    code, out, err = cli("chat", "--model", "moved", "--image", PICTURES[0], "--prompt", "What is it?")
    assert code == 0, err


@pytest.mark.parametrize("policy", [ALL, EXPERTS, LORA], ids=["all", "experts", "lora"])
def test_each_way_of_fine_tuning_lowers_the_loss_and_changes_what_it_may(cli, imported, elsewhere, policy):
    words = [*imported, *QUICK, *policy, "--trainer.accumulate_grad_batches=1", "--trainer.max_epochs=6",
             "--data.max_tiles=1", "--data.batch_size=5", "--run-dir=r"]  # fmt: skip
    code, out, err = cli(*words)
    assert code == 0, err
    losses = [row["train/loss"] for row in read_metrics(elsewhere / "r") if "train/loss" in row]
    assert len(losses) == 12 and sum(losses[-2:]) < 0.9 * sum(losses[:2]), losses
    start, end = (load_file(elsewhere / name / "weights.safetensors") for name in ("mono", "r"))
    assert start.keys() == end.keys(), "whatever trained, the layout is the plain one"
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    if policy is EXPERTS:
        assert changed and all(".visual." in name or name.startswith("patch_embedder.") for name in changed)
    if policy is LORA:
        assert changed and all(".text." in name and "norm" not in name for name in changed)
    if policy is ALL:
        assert {name.split(".")[0] for name in changed} == {"backbone", "patch_embedder"}


def test_a_lora_run_that_was_cut_off_goes_on_bit_by_bit(cli, imported, elsewhere):
    words = [*imported, *QUICK, *LORA, "--trainer.accumulate_grad_batches=2", "--data.max_tiles=1",
             "--trainer.max_epochs=2"]  # fmt: skip
    code, _, err = cli(*words, "--run-dir=r", stop_at(3, "SIGTERM"))
    assert code == 143, err
    saved = torch.load(elsewhere / "r" / "checkpoints" / "last.ckpt", weights_only=True)
    assert any(name.endswith("lora_b") for name in saved["state_dict"])
    for _ in range(2):  # it is stopped in the second epoch as well
        code, _, err = cli(*words, "--run-dir=r", stop_at(3, "SIGTERM"))
    assert code == 0, err
    assert cli(*words, "--run-dir=whole")[0] == 0
    one, other = (load_file(elsewhere / name / "weights.safetensors") for name in ("r", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_checkpoint_may_not_change_under_a_run(cli, imported, fails, elsewhere):
    assert cli(*imported, *QUICK, "--run-dir=r")[0] == 0
    weights = elsewhere / "mono" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "r: holds a run (done) that started from older weights" in fails(*imported, *QUICK, "--run-dir=r")
