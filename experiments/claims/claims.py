"""What the papers claim, in which grid it is asked, and which differences decide it: written down before any run.

Numbers are those of Mono-InternVL (arXiv 2410.08202) and Mono-InternVL-1.5 (arXiv 2507.12566), partly as others quote
their tables: 1.8 B parameters and a billion pairs. Here it is 135 M parameters and thousands of pictures, so signs are
compared, not sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
LOSS = "held_out.nll"


@dataclass(frozen=True)
class Comparison:
    """One difference, in the direction that the claim gives it.

    Args:
        says: What it says, one line.
        better: Variant that the claim says is better.
        than: Variant that it is compared with; of several the one with the best mean, which favours them.
        metric: Of the grid.
    """

    says: str
    better: str
    than: tuple[str, ...]
    metric: str = LOSS


@dataclass(frozen=True)
class Claim:
    """A claim of the papers.

    Args:
        name: For `--only`.
        grid: YAML, from this folder.
        statement: What is claimed.
        paper: Its number there, and where it stands.
        comparisons: The first `deciding` ones decide the verdict; the others stand beside them.
        limits: What this grid does not settle.
        deciding: As many as the statement has parts.
    """

    name: str
    grid: str
    statement: str
    paper: str
    comparisons: tuple[Comparison, ...]
    limits: str = ""
    deciding: int = 1

    @property
    def file(self) -> Path:
        return (HERE / self.grid).resolve()


CLAIMS = (
    Claim(
        "visual_experts",
        "grids/visual_experts.yaml",
        "Visual experts help: a model with them beats the same LLM without them.",
        "full tuning, LLM / + experts: MME-P 753 / 948, SQA-I 36.7 / 37.7, AI2D 27.7 / 26.6 (Mono-InternVL, Table 5)",
        (
            Comparison("experts against none, everything trained", "experts_full", ("none_full", "none_full_4e-4")),
            Comparison("experts against none, LLM frozen", "delta", ("embedder_only",)),
            Comparison(
                "open questions, everything trained",
                "experts_full",
                ("none_full", "none_full_4e-4"),
                "questions.open",
            ),
        ),
        "Experts add parameters; that is part of the claim. Without them one rate trains text and pictures alike: 1e-4 "
        "and 4e-4 were tried, and the better one of each metric counts.",
    ),
    Claim(
        "delta_tuning",
        "grids/delta_tuning.yaml",
        "Delta tuning of the visual experts sees better than full tuning of the same model, and forgets no language.",
        "+ experts, full / delta: MME-P 948 / 995, SQA-I 37.7 / 56.5, AI2D 26.6 / 42.7 (Table 5); MMLU of the LLM and "
        "after all stages 47.1 / 45.1 (Table 4)",
        (
            Comparison("held-out answers", "delta", ("full_3e-5", "full_1e-4", "full_3e-4")),
            Comparison("text loss after training", "delta", ("full_3e-5", "full_1e-4", "full_3e-4"), "text.nll"),
            Comparison("WordNet score", "delta", ("full_3e-5", "full_1e-4", "full_3e-4"), "words.accuracy"),
            Comparison("WordNet margin", "delta", ("full_3e-5", "full_1e-4", "full_3e-4"), "words.margin"),
        ),
        "Each comparison takes the text rate that is best in its own metric, after the fact: kind to full tuning.",
        deciding=2,
    ),
    Claim(
        "attention_experts",
        "grids/attention_experts.yaml",
        "EViP++ (experts in attention and FFN) is better than EViP (FFN) at equal data, and as good with half of it.",
        "similar quality with 42 % of the pre-training data, 0.55 against 1.32 billion (Mono-InternVL-1.5); its "
        "ablation was not found",
        (
            Comparison("equal data", "qkv_ffn", ("ffn",)),
            Comparison("EViP++ with half of the data against EViP with all", "qkv_ffn_half", ("ffn",)),
            Comparison("both with half of the data", "qkv_ffn_half", ("ffn_half",)),
        ),
        "EViP++ has a fifth more new parameters. That half the data is no worse cannot be shown by a difference: it "
        "counts as reproduced only if it is better. In h100 a run sees the same pictures several times.",
        deciding=2,
    ),
    Claim(
        "stages",
        "grids/stages.yaml",
        "Stages in EViP's order (concept, semantic, alignment, instruction) beat one stage of the same data mixed.",
        "every stage adds: VQA average 38.4, 41.8, 53.2 after S1.1, S1.2, S1.3 (Mono-InternVL, Figure 4)",
        (
            Comparison("order against mixed stage", "progressive", ("mixed_delta", "mixed_full")),
            Comparison("S1.1 concept adds", "progressive", ("without_concept",)),
            Comparison("S1.2 semantic adds", "progressive", ("without_semantic",)),
            Comparison("S1.3 alignment adds", "progressive", ("without_alignment",)),
            Comparison("S2 instruction adds", "progressive", ("without_instruction",)),
            Comparison("text loss: order against mixed", "progressive", ("mixed_full",), "text.nll"),
        ),
        "A stage that is left out gives its pictures to the others, so what is asked is whether they are better spent "
        "there; the questions that are asked at the end are the data of the last two stages.",
    ),
    Claim(
        "scaling",
        "grids/scaling.yaml",
        "More visual pre-training gives a better model, over the whole range.",
        "captions 64.5 to 96, VQA 35.3 to 53.2 (averages) from 0.12 to 1.32 billion pairs (Mono-InternVL, Figure 4)",
        (
            Comparison("twice against once", "x2", ("x1",)),
            Comparison("once against a half", "x1", ("x0.5",)),
            Comparison("a half against a quarter", "x0.5", ("x0.25",)),
        ),
        "In h100 a run sees the same pictures several times: there it is steps that grow, not pictures.",
        deciding=3,
    ),
    Claim(
        "attention_unfrozen",
        "grids/attention_unfrozen.yaml",
        "Training the pretrained attention in the alignment stage helps.",
        "frozen / trained: DocVQA 39.5 / 49.3, InfoVQA 19.7 / 22.7, SQA-I 56.5 / 61.8 (Mono-InternVL, Table 9)",
        (
            Comparison("held-out answers", "unfrozen", ("frozen",)),
            Comparison("answers to open questions", "unfrozen", ("frozen",), "questions.open"),
            Comparison("its cost, text loss: frozen is claimed to be better", "frozen", ("unfrozen",), "text.nll"),
        ),
    ),
    Claim(
        "modular",
        "../modular_vs_monolithic/pair.yaml",
        "A monolithic model is as good as a modular one of the same LLM, at equal data.",
        "Mono-InternVL-2B / InternVL-1.5-2B: general average 55.2 / 54.4, VQA average 70.1 / 71.7 (Tables 2 and 3)",
        (
            Comparison("equal data and parameters", "monolithic", ("modular",)),
            Comparison("equal training FLOPs and parameters", "monolithic", ("modular_equal_flops",)),
        ),
        '"As good" counts as reproduced only if it is better. The modular encoder starts from random weights, as none '
        "can be had pretrained offline, while experts start as copies of the LLM: this compares what can be had "
        "without vision pre-training, not the papers' models.",
    ),
    Claim(
        "tiling",
        "grids/tiling.yaml",
        "Dynamic tiling helps where resolution matters.",
        "asked in Mono-InternVL#3; the papers give no number",
        (
            Comparison("numbers and screenshots", "six", ("one",)),
            Comparison("numbers alone", "six", ("one",), "held_out.numbers_nll"),
            Comparison("screenshots alone", "six", ("one",), "held_out.gimp_figures_nll"),
            Comparison("numbers read exactly", "six", ("one",), "questions.open"),
            Comparison("numbers alone, at equal FLOPs", "six", ("one_equal_flops",), "held_out.numbers_nll"),
            Comparison("numbers and screenshots, at equal FLOPs", "six", ("one_equal_flops",)),
        ),
        "The verdict is at equal pictures, where tiles cost tokens; the last two comparisons give one tile the same "
        "FLOPs, in more steps.",
    ),
)
