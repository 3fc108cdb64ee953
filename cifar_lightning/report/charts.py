"""Pictures inside a page: drawn curves as SVG, files as data."""

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
    """A figure as an SVG element whose letters are text, in the page's colours.

    Args:
        figure: to draw; its background is left out.
        name: begins all ids within, which have to differ between the pictures of a page.
        description: for those who do not see it.
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
    # The size is the page's matter; the viewBox keeps the proportions.
    head = re.sub(r' (width|height)="[^"]*"', "", svg[: svg.index(">")])
    return Markup(f'{head} role="img" aria-label="{label}"{svg[svg.index(">") :]}')


def data_uri(picture: Path) -> str:
    """A PNG file's content as an address."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def png_width(picture: Path) -> int:
    """In pixels, of a PNG file's header; 0 if it has none."""
    return int.from_bytes(picture.read_bytes()[16:20], "big")


def target_line(run: Run) -> tuple[float, str] | None:
    """The accuracy to draw as a run's target, and its name; None if it had none.

    The validation accuracy at which it stops, where its metrics tell; else the test accuracy that
    this stands for.
    """
    if run.target is None:
        return None
    threshold = run.metrics.get("target_val_acc")
    if isinstance(threshold, float):
        return threshold, f"target on validation {threshold:.1%}"
    return run.target, f"target {run.target:.1%} on test"
