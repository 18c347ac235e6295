"""The chat page: its layout and its handlers, which run without a browser too."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]  an optional extra
from gradio.themes import Default  # pyright: ignore[reportMissingImports]
from PIL import Image

from mmframe.cli.serving import Served
from mmframe.cli.turn import Turn, TurnFacts
from mmframe.cli.web_panel import CSS, numbers, pictures_seen, welcome
from mmframe.dialogue import Chat
from mmframe.errors import UserError
from mmframe.images import open_image
from mmframe.sampling import SamplingParams

Messages = list[dict[str, Any]]


@dataclass
class Visit:
    """A visitor's conversation, and whether its answer in the making is to stop."""

    chat: Chat
    stopped: bool = False


class Page:
    """The page of one model. Every visitor has a conversation of their own; one answer is made at a time.

    Args:
        served: The model.
        params: How answers are made at first; the page can change some of it.
        system: System message; None takes the template's.
    """

    def __init__(self, served: Served, params: SamplingParams, system: str | None = None) -> None:
        self.served, self.params, self.system = served, params, system

    def build(self) -> gr.Blocks:
        """The page; `launch` serves it."""
        with gr.Blocks(title=f"mmframe - {self.served.name}", analytics_enabled=False, fill_height=True) as page:
            with gr.Row(elem_id="head"):
                gr.HTML(f"<h1>mmframe</h1><p>{html.escape(self.served.describe())}</p>")
                fresh = gr.Button("New conversation", size="sm", scale=0, min_width=160, elem_id="fresh")
            with gr.Row():
                with gr.Column(scale=5):
                    chatbot = gr.Chatbot(
                        show_label=False,
                        height="calc(100vh - 230px)",
                        min_height=320,
                        placeholder="Add a picture and ask about it.",
                        buttons=["copy"],
                        allow_tags=False,
                        elem_id="talk",
                    )
                    entry = gr.MultimodalTextbox(
                        show_label=False,
                        file_types=["image"],
                        file_count="multiple",
                        max_lines=5,
                        placeholder="Ask something; the clip adds pictures",
                        autofocus=True,
                        elem_id="entry",
                    )
                with gr.Column(scale=3, min_width=320):
                    seen = gr.HTML(welcome(), elem_id="seen")
                    counted = gr.HTML(numbers(TurnFacts()), elem_id="numbers")
                    with gr.Accordion("Settings", open=False):
                        temperature = gr.Slider(0, 2, self.params.temperature, step=0.05, label="Temperature")
                        most = max(2048, self.params.max_new_tokens)
                        longest = gr.Slider(1, most, self.params.max_new_tokens, step=1, label="Longest answer, tokens")
            visit = gr.State(None)  # gradio drops it when the tab is closed
            shown = [chatbot, entry, visit, seen, counted]
            given = [entry, chatbot, visit, temperature, longest]
            quiet: dict[str, Any] = dict(show_progress="hidden", api_visibility="private")
            page.load(self.enter, None, visit, **quiet)
            asked = entry.submit(self.answer, given, shown, concurrency_id="model", concurrency_limit=1, **quiet)
            entry.stop(self.stop, visit, None, queue=False, **quiet)
            gr.on([fresh.click, chatbot.clear], self.reset, visit, shown, cancels=[asked], queue=False, **quiet)
        return page

    def enter(self) -> Visit:
        """What a new visitor gets."""
        return Visit(self.served.engine.chat(self.system, self.served.max_tiles))

    def answer(
        self, entry: dict[str, Any], messages: Messages, visit: Visit, temperature: float, longest: float
    ) -> Iterator[tuple[Any, ...]]:
        """Answers what was entered; yields (messages, entry, visit, pictures seen, numbers) as they grow.

        A mistake becomes a notice, and the entry is given back to be corrected.
        """
        text, files = (entry.get("text") or "").strip(), entry.get("files") or []
        asked: Messages = [{"role": "user", "content": {"path": file}} for file in files]
        asked += [{"role": "user", "content": text}] if text else []
        said: dict[str, Any] = {"role": "assistant", "content": ""}
        talk, same = [*messages, *asked, said], gr.skip()
        visit.stopped = False
        try:
            images: list[Image.Image] = [open_image(file) for file in files]
            params = replace(self.params, temperature=temperature, max_new_tokens=int(longest))
            turn = Turn(self.served, visit.chat, text, images, params)
            seen = pictures_seen(self.served, images, turn.facts.pictures) if images else same
            yield talk, gr.MultimodalTextbox(value=None, submit_btn=False, stop_btn=True), visit, seen, same
            for piece in turn:
                said["content"] += piece
                yield talk, same, visit, same, numbers(turn.facts)
                if visit.stopped:
                    break
            yield talk, gr.MultimodalTextbox(submit_btn=True, stop_btn=False), visit, same, numbers(turn.facts)
        except UserError as error:
            gr.Warning(html.escape(str(error)))
            yield messages, gr.MultimodalTextbox(value=entry, submit_btn=True, stop_btn=False), visit, same, same

    def stop(self, visit: Visit) -> None:
        """Ends the answer in the making, between two of its tokens."""
        visit.stopped = True

    def reset(self, visit: Visit) -> tuple[Any, ...]:
        """An empty page."""
        visit.stopped = True
        free = gr.MultimodalTextbox(value=None, submit_btn=True, stop_btn=False)
        return [], free, self.enter(), welcome(), numbers(TurnFacts())


def launch(page: gr.Blocks, host: str, port: int) -> None:
    """Serves the page in the background, to this network alone: no sharing, no statistics.

    Raises:
        OSError: the port is taken.
    """
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        theme=Default(),
        css=CSS,
    )
