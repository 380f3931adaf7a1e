"""Render formulas as inline SVG with matplotlib at build time, so that readers need not fetch MathJax."""

from functools import cache
from html import escape

from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from sphinx.util import logging

SIZE = 100.0  # SVG units per em
_LETTERS = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
log = logging.getLogger(__name__)


@cache
def svg(formula: str) -> str:
    """Return a TeX formula as an SVG element in the colour of the surrounding text."""
    text, font = f"${' '.join(formula.split())}$", FontProperties(family="serif", math_fontfamily="stix", size=SIZE)
    width, height, depth, *_ = MathTextParser("path").parse(text, dpi=72, prop=font)
    steps = []
    for points, code in TextPath((0, 0), text, size=SIZE, prop=font).iter_segments(curves=True, simplify=False):
        # y points downwards in SVG.
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


def _svg_of(node):
    try:
        return svg(node.astext())
    except ValueError as error:
        log.warning("matplotlib cannot draw this formula: %s", error, location=node)
        return escape(node.astext())


def visit_inline(self, node):
    """Write a formula within a line."""
    self.body.append(_svg_of(node))
    raise nodes.SkipNode


def visit_block(self, node):
    """Write a displayed formula, one SVG per row."""
    rows = [row.replace("&", "").strip() for row in node.astext().split(r"\\")]
    blocks = "".join(f'<div class="math">{_svg_of(nodes.math("", row))}</div>' for row in rows if row)
    self.body.append(blocks)
    raise nodes.SkipNode


def setup(app):
    """Register the renderer under the name that `html_math_renderer` uses."""
    app.add_html_math_renderer("mathtext", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
