"""``trimtab apply``, ``verify`` and ``transfer``."""

from pathlib import Path
from typing import Annotated

import typer

from .outcome import EXIT_BROKEN, JsonFlag, complain, named_errors, open_console, print_json

app = typer.Typer()


@app.command()
def apply(
    policy: Annotated[Path, typer.Argument(help="The policy.json of a run.")],
    model: Annotated[str, typer.Option(help="module:callable or a path to an .onnx file.")],
    out: Annotated[Path, typer.Option(help="The artifact's folder.")],
    data: Annotated[
        str | None, typer.Option(help="module:callable; calibrates anew and scores the test split.")
    ] = None,
    openvino_ir: Annotated[bool, typer.Option("--openvino-ir", help="Write model.xml and model.bin too.")] = False,
    teacher: Annotated[
        list[str] | None, typer.Option(help="module:callable of a teacher that the policy may learn from.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Apply a found policy to the same or to retrained weights, without a search."""
    with named_errors():
        from ..apply import ApplyOptions
        from ..apply import apply as make

        options = ApplyOptions(openvino_ir=openvino_ir, teachers=tuple(teacher or ()))
        applied = make(policy, model, out=out, data=data, options=options)
        promise = applied.promise
        if as_json:
            print_json({"artifact": str(applied.folder), "promise": promise.to_json()})
            return
        latency = promise.latency
        speed = (
            f"{latency.median_s * 1e3:.3f} ms ({latency.ratio:.2f}x of the original), "
            if latency and latency.ratio
            else ""
        )
        open_console().print(f"artifact: {applied.folder}   {speed}{(promise.size_bytes or 0) / 1e6:.3f} MB")
        if data is None:
            open_console().print(
                "activation ranges are those of the search; --data calibrates anew and checks the accuracy"
            )


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="The artifact's folder.")],
    data: Annotated[
        str | None, typer.Option(help="module:callable; checks the accuracy on the test split too.")
    ] = None,
    tolerance: Annotated[float, typer.Option(min=0.0, max=10.0, help="How much slower still counts as kept.")] = 0.25,
    as_json: JsonFlag = False,
) -> None:
    """Re-measure an artifact on this machine against its promise; exit 1 if it is broken."""
    from ...core.errors import ArtifactError

    with named_errors():
        from ..terminal import print_verification
        from ..verify import verify as check

        try:
            verification = check(artifact, data=data, tolerance=tolerance)
        except ArtifactError as error:
            complain(error)
            raise typer.Exit(EXIT_BROKEN) from error
        if as_json:
            checks = [{"name": c.name, "promised": c.promised, "achieved": c.achieved, "kept": c.is_kept}
                      for c in verification.checks]  # fmt: skip
            print_json({"kept": verification.is_kept, "checks": checks})
        else:
            print_verification(open_console(), verification)
        if not verification.is_kept:
            raise typer.Exit(EXIT_BROKEN)


@app.command()
def transfer(
    policy: Annotated[Path, typer.Argument(help="The policy.json of a run.")],
    target: Annotated[str, typer.Option(help="A runtime, or a spec or recipe for the other device.")],
    out: Annotated[Path, typer.Option(help="The file that receives the policy solved for it.")],
    model: Annotated[str | None, typer.Option(help="module:callable; the policy's own when omitted.")] = None,
    data: Annotated[str | None, typer.Option(help="module:callable; the policy's own when omitted.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Price a policy anew for another device and solve for one that suits it; nothing is run there."""
    with named_errors():
        from ..terminal_transfer import print_transfer
        from ..transfer import transfer as move

        found = move(policy, target, model=model, data=data)
        found.solved.policy.save(out)
        if as_json:
            print_json(found.to_json())
        else:
            print_transfer(open_console(), found, out)
