"""`segue serve`: models over HTTP, in OpenAI's form, with regions on the answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segue.cli import options
from segue.cli.console import say
from segue.errors import ConfigError
from segue.reading import at_home

if TYPE_CHECKING:
    from fastapi import FastAPI

    from segue.serve.replicas import Build
    from segue.serve.settings import Settings


@options.expanded
def command(
    *,
    loading: options.ModelOptions,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; one that others reach needs a key.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 8000,
    api_keys: Annotated[
        Path | None,
        typer.Option("--api-keys", help="File with a key on each line; also the variable SEGUE_API_KEYS, by commas."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option("--allowed-host", help="Name by which clients call this server; may be repeated."),
    ] = None,
    media_domain: Annotated[
        list[str] | None,
        typer.Option("--media-domain", help="Host that images and videos may be fetched from; none without it."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Answers that are written at the same time.")] = 8,
    waiting: Annotated[
        int, typer.Option("--waiting", min=1, help="Requests that may wait; more are told to come later.")
    ] = 64,
    deadline: Annotated[
        float, typer.Option("--deadline", min=1, help="Seconds after which an answer is given up.")
    ] = 300.0,
    rate: Annotated[int | None, typer.Option("--rate", min=1, help="Requests a minute for each key.")] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", help="Another model to serve by its name, loaded in the same way; may be repeated."),
    ] = None,
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="Servers of the model behind Ray Serve, each on a GPU of its own.")
    ] = 1,
    idle_unload: Annotated[
        float | None,
        typer.Option("--idle-unload", min=1, help="Seconds without a request after which a model leaves memory."),
    ] = None,
) -> None:
    """Serve a model over HTTP, in OpenAI's form, with regions on the answers.

    Listens on this machine alone, unless told otherwise. Ctrl-C or SIGTERM
    ends it: what runs is answered first.
    """
    from segue.serve.settings import Limits, Settings, read_keys

    settings = Settings(
        host=host,
        port=port,
        keys=read_keys(api_keys),
        hosts=tuple(allowed_host or ()),
        media_domains=tuple(media_domain or ()),
        rows=rows,
        requests_per_minute=rate,
        idle_seconds=idle_unload,
        limits=Limits(waiting=waiting, deadline_seconds=deadline),
    )
    try:
        from segue.serve.replicas import started
        from segue.serve.run import check_address, run
    except ModuleNotFoundError as error:
        raise ConfigError(f"serving needs {error.name}; install it with: pip install 'segue[serve]'") from error

    check_address(settings)
    loading.tell_limits()
    names, build = _builder(loading, also or ())
    with ExitStack() as stack:
        app = build(settings, None) if replicas == 1 else stack.enter_context(started(build, settings, replicas))
        keys = f"{len(settings.keys)} keys" if settings.keys else "no key asked for"
        by = f" by {replicas} replicas" if replicas > 1 else ""
        address = f"[{host}]" if ":" in host else host
        say(f"serving {', '.join(names)} on http://{address}:{port}/{by} ({keys}); Ctrl-C ends it")
        run(app, settings)


def _builder(loading: options.ModelOptions, also: Sequence[str]) -> tuple[list[str], Build]:
    """The names of the models that are served, and what loads them and makes the application.

    Raises: ConfigError, if two are called alike.
    """
    from segue.serve.app import create_app

    known = {served_name(model): replace(loading, model=model) for model in (loading.model, *also)}
    if len(known) <= len(also):
        raise ConfigError(f"two models are called alike ({', '.join(known)}); rename a folder")
    first, *others = known

    def build(settings: Settings, shared: Path | None) -> FastAPI:
        engines = {name: known[name].load() for name in others}
        return create_app(
            known[first].load(),
            settings,
            model=first,
            others=engines,
            load=lambda name: known[name].load(),
            shared=shared,
        )

    return list(known), build


def served_name(model: str) -> str:
    """What clients call a model: its hub id, or the name of its folder, without where it lies."""
    folder = at_home(model)
    return folder.resolve().name if folder.is_dir() else model
