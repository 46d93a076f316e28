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
    match: Annotated[
        str, typer.Option(help="How far the model may differ: exact, renamed (its layers), or changed (layers too).")
    ] = "exact",
    strict: Annotated[
        bool, typer.Option("--strict", help="Write nothing and exit 1 where the policy no longer suits.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Apply a found policy to the same, to retrained weights, or to a changed model, without a search."""
    with named_errors():
        from ..apply import ApplyOptions
        from ..apply import apply as make
        from ..terminal_apply import print_applied

        options = ApplyOptions(openvino_ir=openvino_ir, teachers=tuple(teacher or ()), match=match, strict=strict)
        applied = make(policy, model, out=out, data=data, options=options)
        if as_json:
            print_json(applied.to_json())
        else:
            print_applied(open_console(), applied)
        if not applied.is_written:
            raise typer.Exit(EXIT_BROKEN)


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
