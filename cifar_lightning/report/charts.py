"""Embeds pictures in a page: figures as SVG, PNG files as data URIs."""

import base64
import html
import io
import re
from pathlib import Path

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from cifar_lightning.tracking.plots.common import INK, RED, draw
from cifar_lightning.tracking.run_folder import Run


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """A figure as an SVG element, with selectable text, in the colours of the page.

    Args:
        figure: drawn without its background.
        name: prefix of all ids in it; it must be unique on the page.
        description: for screen readers.
    """
    for axes in figure.axes:
        axes.set_facecolor("none")
        axes.tick_params(color=INK, labelcolor=INK)
        axes.xaxis.label.set_color(INK)
        axes.yaxis.label.set_color(INK)
        for spine in axes.spines.values():
            spine.set_edgecolor(INK)
    for legend in figure.legends:
        for text in legend.get_texts():
            text.set_color(INK)
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        draw(figure, stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = svg.replace(RED, "var(--target)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    label = html.escape(description, quote=True)
    # The page sets the size; the viewBox keeps the aspect ratio.
    head = re.sub(r' (width|height)="[^"]*"', "", svg[: svg.index(">")])
    return Markup(f'{head} role="img" aria-label="{label}"{svg[svg.index(">") :]}')


def data_uri(picture: Path) -> str:
    """A PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def png_width(picture: Path) -> int:
    """The width of a PNG file in pixels."""
    return int.from_bytes(picture.read_bytes()[16:20], "big")


def target_line(run: Run) -> tuple[float, str] | None:
    """The accuracy of the target line in a run's plot, and its label; None without a target.

    The accuracy is the validation accuracy at which the run stops, if its metrics have that, or
    else the target test accuracy.
    """
    if run.target is None:
        return None
    threshold = run.metrics.get("target_val_acc")
    if isinstance(threshold, float):
        return threshold, f"target on validation {threshold:.1%}"
    return run.target, f"target {run.target:.1%} on test"
