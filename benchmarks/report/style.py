"""Look of the plots.

The background is opaque and light, so that they look the same on a dark page. The colours are mostly those of Okabe and
Ito, which colour-blind readers can distinguish; a system has the same colour and marker in every plot.
"""

from __future__ import annotations

from benchmarks import scenarios
from benchmarks.processes import CLIENT, ENGINE, FRONT_END, FRONT_END_AND_TRITON, TRITON

BACKGROUND, INK, FAINT, GRID = "#ffffff", "#24292f", "#656d76", "#e4e7eb"
STYLES = {
    scenarios.HTTP.name: ("#0072b2", "o"),
    scenarios.http_system(4).name: ("#56b4e9", "o"),
    scenarios.http_system(8).name: ("#00406b", "o"),
    scenarios.HTTP_NO_CHANNELS.name: ("#cc79a7", "P"),
    scenarios.http_system(4, has_channels=False).name: ("#e3b6cf", "P"),
    scenarios.http_system(8, has_channels=False).name: ("#8a3f68", "P"),
    scenarios.GRPC.name: ("#009e73", "s"),
    scenarios.HTTP_OFF.name: ("#e69f00", "^"),
    scenarios.NVIDIA.name: ("#76b900", "X"),
    scenarios.ENGINE_ONLY.name: ("#4d4d4d", "D"),
    scenarios.LLAMA_CPP.name: ("#d55e00", "v"),
}
OTHER_STYLES = (("#a6761d", "p"), ("#666666", "X"), ("#8c6bb1", "*"))
ROLE_COLOURS = {
    CLIENT: "#b9c0c8",
    FRONT_END: "#0072b2",
    TRITON: "#76b900",
    FRONT_END_AND_TRITON: "#4f7d00",
    "preprocess stub": "#f0e442",
    "decode stub": "#e69f00",
    "postprocess stub": "#cc79a7",
    ENGINE: "#4d4d4d",
}
LOOK = {
    "figure.facecolor": BACKGROUND,
    "savefig.facecolor": BACKGROUND,
    "axes.facecolor": BACKGROUND,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "svg.hashsalt": "triton-completions",  # equal results give equal files
}
DPI = 160


def style_of(system: str) -> tuple[str, str]:
    """Returns colour and marker of a system; the other source tree's systems have those of this one."""
    system = system.removesuffix(scenarios.BEFORE)
    return STYLES.get(system) or OTHER_STYLES[sum(system.encode()) % len(OTHER_STYLES)]


def line_of(system: str) -> dict[str, str]:
    """Returns the line of a system as options of matplotlib. The other source tree has this one's colour, dashed."""
    colour, mark = style_of(system)
    if system.endswith(scenarios.BEFORE):
        return {"color": colour, "marker": mark, "linestyle": "--", "markerfacecolor": BACKGROUND}
    return {"color": colour, "marker": mark}
