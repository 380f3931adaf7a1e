"""Formulas as inline SVG, drawn by matplotlib at build time: MathJax would have to be fetched by every reader."""

from functools import cache
from html import escape

from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from sphinx.util import logging

SIZE = 100.0  # units of the drawing to one em
_LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
log = logging.getLogger(__name__)


@cache
def svg(formula: str) -> str:
    """Return a TeX formula as an SVG element that takes the colour of the text around it."""
    text, font = f"${' '.join(formula.split())}$", FontProperties(family="serif", math_fontfamily="stix", size=SIZE)
    width, height, depth, *_ = MathTextParser("path").parse(text, dpi=72, prop=font)
    steps = []
    for points, code in TextPath((0, 0), text, size=SIZE, prop=font).iter_segments(curves=True, simplify=False):
        # Rows of an SVG count downwards.
        numbers = "" if code == Path.CLOSEPOLY else " ".join(f"{v:.1f}" for v in points * _signs(len(points)))
        steps.append(_LETTERS[code] + numbers)
    return (
        f'<svg class="formula" role="img" aria-label="{escape(formula, quote=True)}" '
        f'viewBox="0 {depth - height:.1f} {width:.1f} {height:.1f}" '
        f'style="width:{width / SIZE:.3f}em;height:{height / SIZE:.3f}em;vertical-align:{-depth / SIZE:.3f}em">'
        f'<path fill="currentColor" d="{"".join(steps)}"/></svg>'
    )


def _signs(n):
    return [1, -1] * (n // 2)


def _drawn(node):
    try:
        return svg(node.astext())
    except ValueError as error:
        log.warning("matplotlib cannot draw this formula: %s", error, location=node)
        return escape(node.astext())


def visit_inline(self, node):
    """Write a formula within a line."""
    self.body.append(_drawn(node))
    raise nodes.SkipNode


def visit_block(self, node):
    """Write a formula on its own line, each row of it as one drawing."""
    rows = [row.replace("&", "").strip() for row in node.astext().split(r"\\")]
    drawn = "".join(f'<div class="math">{_drawn(nodes.math("", row))}</div>' for row in rows if row)
    self.body.append(drawn)
    raise nodes.SkipNode


def setup(app):
    """Make it a renderer that `html_math_renderer` can name."""
    app.add_html_math_renderer("mathtext", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
