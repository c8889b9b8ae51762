"""All pages in one, and how the server is started: safe unless somebody insists."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pages.concepts_page import Concepts
from pages.files import MOST_BYTES, uploads
from pages.fuse import Fuse
from pages.gate import LOOPBACK, Gate
from pages.generate import Generate
from pages.look import CSS, KEYS, theme
from pages.said import connect
from pages.settings import Settings
from pages.studio import Studio
from pages.table import Table
from pages.teach import Teach

MOST_WAITING = 40  # events in the queue; more are told to come back later
MOST_FILE = "256mb"
_HOUR, _DAY = 3600, 86400


def build(studio: Studio) -> gr.Blocks:
    """The page with its tabs; nothing is loaded or launched yet."""
    generate, teach, concepts = Generate(studio), Teach(studio), Concepts(studio)
    fuse, table, settings = Fuse(studio), Table(studio), Settings(studio)
    with gr.Blocks(
        title="spectral-diffusion", analytics_enabled=False, delete_cache=(_HOUR, _DAY), fill_width=True
    ) as page:
        gr.Markdown("# spectral-diffusion")
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("Generate", id="generate") as first:
                generate.build(page)
            with gr.Tab("Teach", id="teach"):
                teach.build(page)
            with gr.Tab("Concepts", id="concepts") as third:
                concepts.build(page)
            with gr.Tab("Fuse", id="fuse") as fourth:
                fuse.build(page)
            with gr.Tab("Tables", id="tables") as fifth:
                table.build(page)
            with gr.Tab("Settings", id="settings"):
                settings.build(page)
        # what another page made is there when one comes back
        quiet = {"show_progress": "hidden"}
        connect(first.select, generate.refresh, generate.file, generate.loaded, generate.note, **quiet)
        connect(third.select, concepts.refresh, concepts.chosen, concepts.shown, concepts.place, **quiet)
        connect(fourth.select, fuse.refresh, fuse.lists, fuse.shown, fuse.said, **quiet)
        connect(fifth.select, table.refresh, table.file, table.file, table.how, **quiet)
    return page.queue(max_size=MOST_WAITING, default_concurrency_limit=8, api_open=False)


def launched(
    page: gr.Blocks, host: str, port: int | None, auth: tuple[str, str] | None, wait: bool = True
) -> Any:
    """Serves the page; with `wait` until it is stopped. Returns what `Blocks.launch` does."""
    loopback = host.strip("[]") in LOOPBACK
    gate = (Gate, (), {"uploads": uploads(), "most": MOST_BYTES, "loopback": loopback})
    return page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=False,
        inbrowser=False,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        pwa=False,
        num_workers=0,
        root_path="",
        show_error=False,
        max_file_size=MOST_FILE,
        state_session_capacity=200,
        footer_links=["settings"],
        app_kwargs={"middleware": [gate], "docs_url": None, "redoc_url": None, "openapi_url": None},
        theme=theme(),
        css=CSS,
        head=KEYS,
        quiet=True,
        prevent_thread_lock=not wait,
        _frontend=False,  # else it asks its own page, and gives up after 3 s where the machine is busy
    )
