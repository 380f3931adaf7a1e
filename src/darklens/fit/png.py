"""PNG files of figures."""

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110
_REPORT_DPI, _REPORT_COLOURS = 90, 256


def to_png(figure: "Figure", *, compact: bool = False) -> bytes:
    """Return a figure as PNG, equal bytes for equal data; `compact` for a report: 90 dpi, 256 colours, 30 to 50 kB."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_REPORT_DPI if compact else _DPI, metadata={"Software": None})
    if not compact:
        return stream.getvalue()
    from PIL import Image  # matplotlib needs it too

    picture, stream = Image.open(stream).convert("RGB"), io.BytesIO()
    indexed = picture.quantize(_REPORT_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    indexed.save(stream, format="png", optimize=True)
    return stream.getvalue()
