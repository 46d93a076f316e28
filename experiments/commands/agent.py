"""``trimtab agent`` and ``agent-token``: this machine's runtime for searches elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from .outcome import named_errors, open_console

app = typer.Typer()


@app.command()
def agent(
    tokens: Annotated[Path, typer.Option(help="Who may come in; trimtab agent-token makes the file.")],
    runtime: Annotated[str, typer.Option(help="The runtime on offer, as a target names it.")] = "onnxruntime",
    device: Annotated[str, typer.Option(help="The device on offer, as a target names it.")] = "cpu",
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    tls_cert: Annotated[Path | None, typer.Option(help="The certificate, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    cache_mb: Annotated[int, typer.Option(min=1, help="Models are kept up to so many megabytes.")] = 512,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let tokens travel unencrypted between machines.")
    ] = False,
) -> None:
    """Offer a runtime of this machine to searches elsewhere, over HTTP."""
    with named_errors():
        from ...evaluators.remote.address import Address
        from ...evaluators.remote.agent_bench import AgentBench
        from ...evaluators.remote.serving import serve
        from ...evaluators.remote.tokens import TokenKeeper

        console = open_console()
        address = Address(host, port, tls_cert, tls_key, allows_plain=insecure)
        keeper = TokenKeeper(tokens)
        bench = AgentBench(runtime, device, cache_bytes=cache_mb * 2**20)
        if address.is_exposed:
            console.print("WARNING: no TLS: everybody on the way can read the tokens and use them", markup=False)

        def announce(url: str) -> None:
            console.print(f"{runtime} on {device} is offered at {url}", soft_wrap=True, markup=False)
            console.file.flush()

        serve(bench, keeper, address, announce=announce)


@app.command(name="agent-token")
def agent_token(
    tokens: Annotated[Path, typer.Option(help="The file that keeps the token's digest and end.")],
    valid_for: Annotated[str, typer.Option("--for", help="How long it is valid, such as 24h or 30m.")] = "24h",
) -> None:
    """Make a token for an agent; it is shown once, and only its sha256 is kept."""
    with named_errors():
        from ...core.errors import SpecError
        from ...evaluators.remote.tokens import issue_token
        from ..quantities import parse_duration

        try:
            valid_s = parse_duration(valid_for)
        except ValueError as error:
            raise SpecError(f"--for {error}") from error
        typer.echo(issue_token(tokens, valid_s=valid_s))
