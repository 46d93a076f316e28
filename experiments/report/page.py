"""Puts a run on one page: everything in it, nothing fetched, no script but its own."""

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import SpecError
from ...core.files import write_bytes
from .closing import describe_reproduction, list_failures
from .conclusion import conclude
from .figures import Figure
from .kernels import compare_kernels
from .progress import draw_progress, measure_progress
from .promises import compare_promises
from .reading import Reading, Stage, read_run
from .reasons import find_reasons
from .trade_off import draw_trade_off, list_front, list_trials
from .treatment_map import map_treatments

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = "trimtab.experiments.report.templates"


@dataclass(frozen=True)
class Body:
    """The part of a page that changes while a search goes on."""

    html: str
    #: id → what plotly.js draws
    figures: dict[str, Any]
    title: str
    stage: Stage


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a run, finished or not: one HTML file that works offline.

    Args:
        run: the run's folder.
        out: the file; None: ``report.html`` in the run's folder.

    Returns:
        The file.

    Raises:
        SpecError: (or RunError) there is no run, it is damaged, or jinja2 or plotly is not installed.
    """
    reading = read_run(Path(run))
    path = reading.folder.path / "report.html" if out is None else Path(out)
    if path.is_dir():
        raise SpecError(f"{path} is a folder; name the HTML file that is to be written")
    try:
        write_bytes(path, render_page(render_body(reading)).encode())
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error}; choose another file with --out") from error
    return path


def render_body(reading: Reading, *, most_explained: int | None = None) -> Body:
    """Renders the sections of a run as it is now.

    Args:
        reading: the run.
        most_explained: trials up to which the reasons are worked out; see `find_reasons`.
    """
    sections: dict[str, Any] = {
        "conclusion": conclude(reading),
        "trade_off": draw_trade_off(reading),
        "front": list_front(reading),
        "trials": list_trials(reading),
        "map": map_treatments(reading),
        "reasons": find_reasons(reading, most_trials=most_explained),
        "kernels": compare_kernels(reading),
        "promises": compare_promises(reading),
        "progress": measure_progress(reading),
        "progress_figure": draw_progress(reading),
        "failures": list_failures(reading),
        "reproduction": describe_reproduction(reading),
    }
    html = _environment().get_template("body.html.j2").render(
        reading=reading, spec=reading.spec, target=reading.spec.target.to_target().name, written=_now(), **sections
    )  # fmt: skip
    figures = {figure.id: figure.to_json() for figure in _find_figures(sections)}
    return Body(html, figures, f"{reading.folder.path.name} · Trimtab", reading.stage)


def render_page(body: Body, *, is_live: bool = False) -> str:
    """Renders the whole page.

    Args:
        body: see `render_body`.
        is_live: whether the page asks the server that it came from for what is new.
    """
    plotly, script = _plotly_script(), _read("page.js")
    return _environment().get_template("page.html.j2").render(
        body=body, plotly=plotly, script=script, style=_read("page.css"), is_live=is_live,
        figures=embed_json(body.figures), policy=content_policy(is_live=is_live),
    )  # fmt: skip


def content_policy(*, is_live: bool) -> str:
    """Returns the page's content security policy: its own two scripts by their digests, and nothing from elsewhere.

    What a run's files say is escaped; should some of it get through as a script all the same, it does not run.
    """
    digests = " ".join(f"'sha256-{_digest(text)}'" for text in (_plotly_script(), _read("page.js")))
    connect = "'self'" if is_live else "'none'"
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def embed_json(value: Any) -> str:
    """Returns JSON that may stand inside a script element: nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _find_figures(sections: dict[str, Any]) -> Iterator[Figure]:
    for section in sections.values():
        figure = section if isinstance(section, Figure) else getattr(section, "figure", None)
        if isinstance(figure, Figure):
            yield figure


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M %Z")


@cache
def _environment() -> "Environment":
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise SpecError("jinja2 is not installed; pip install 'trimtab[report]'") from error
    return Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


@cache
def _read(name: str) -> str:
    return resources.files(_TEMPLATES).joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly_script() -> str:
    """Returns plotly.js whole (4.8 MB): the package has no smaller build."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise SpecError("plotly is not installed; pip install 'trimtab[report]'") from error
    # a digest is of exactly what stands in the element, and HTML knows one kind of line end
    text: str = get_plotlyjs()
    return text.replace("\r\n", "\n").replace("\r", "\n")


@cache
def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
