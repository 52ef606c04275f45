"""What the pages share: one file each, without network or script, readable when printed."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image

STYLE = """
:root{--ink:#1c2326;--soft:#5a666b;--line:#dde3e5;--good:#0b6b3a;--bad:#a3122a;--warn:#8a5a00}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif;color:var(--ink);
background:#f6f8f8;margin:0}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 4rem}
section{background:#fff;border:1px solid var(--line);border-radius:8px;padding:1.1rem 1.3rem;
margin:1rem 0}
h1{font-size:1.6rem;margin:.2rem 0}h2{font-size:1.15rem;margin:.1rem 0 .7rem}
h3{font-size:1rem;margin:.9rem 0 .2rem}
p{margin:.4rem 0}.soft{color:var(--soft)}.small{font-size:.88rem}
.verdict{border-left:8px solid var(--good)}.verdict.bad{border-left-color:var(--bad)}
.verdict strong{font-size:1.2rem;color:var(--good)}.verdict.bad strong{color:var(--bad)}
.meter{height:1.5rem;background:#e8eeee;border-radius:4px;overflow:hidden;display:flex;
margin:.9rem 0 .3rem}
.meter span{height:100%}
.numbers{display:flex;flex-wrap:wrap;gap:.3rem 2.2rem;margin:.5rem 0}
.numbers b{display:block;font-size:1.35rem}
.finding{border-left:5px solid var(--bad);padding:.1rem 0 .1rem .9rem;margin:1rem 0}
.finding.notice{border-left-color:#9aa7ab}
.finding p{margin:.15rem 0}.where{font-size:.85rem;color:var(--soft)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%}
td,th{padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--line);text-align:left;
vertical-align:top}
th{font-weight:600;color:var(--soft);font-size:.85rem}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.when{white-space:nowrap;color:var(--soft);font-size:.88rem}
.yes,.no,.skip{font-weight:600;white-space:nowrap}
.yes{color:var(--good)}.no{color:var(--bad)}.skip{color:var(--warn)}
.bar{position:relative;height:1rem;min-width:12rem;background:#e8eeee;border-radius:3px}
.bar span{position:absolute;left:0;top:0;height:100%;background:#0072b2;border-radius:3px}
.bar i{position:absolute;top:-3px;bottom:-3px;width:2px;background:var(--ink)}
.key{display:inline-block;width:.8rem;height:.8rem;border-radius:2px;margin-right:.4rem}
.plot{width:100%;min-width:34rem;height:auto;font:12px system-ui,sans-serif}
pre{background:#f2f5f5;padding:.7rem .9rem;overflow-x:auto;font-size:.82rem;border-radius:4px;
line-height:1.4}
code{font-size:.88em;overflow-wrap:anywhere}
details summary{cursor:pointer}
img{max-width:100%;height:auto;border-radius:4px}
.sheets{display:flex;flex-wrap:wrap;gap:1rem}.sheets figure{margin:0;flex:1 1 22rem}
figcaption{font-size:.88rem;color:var(--soft)}
ol.said{margin:.3rem 0;padding-left:1.2rem}ol.said li{margin:.45rem 0}
@media print{body{background:#fff}section{border:0;padding:.3rem 0;break-inside:avoid}
details>*{display:block}}
"""


def whole_page(title: str, body: str) -> str:
    """Put the body of a page into a document.

    Args:
        title: Of the document, as HTML.
        body: HTML.
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body><main>"
        f"{body}</main></body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text; all columns but the first are numbers."""
    head = "".join(
        f'<th class="{"n" if place else ""}">{escape(cell)}</th>'
        for place, cell in enumerate(header)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"n" if place else ""}">{escape(cell)}</td>'
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def wide(content: str) -> str:
    """What may be wider than a small screen, to be pushed aside there by itself."""
    return f'<div class="wide">{content}</div>'


def picture(image: Image.Image, alt: str) -> str:
    """A picture that is part of the page."""
    content = BytesIO()
    image.save(content, format="PNG")
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
