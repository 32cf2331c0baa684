"""A self-contained HTML page of text, tables and pictures, without scripts or external resources."""

import base64
from dataclasses import dataclass
from html import escape

# Forbid everything but what the page contains itself.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
# Light or dark, as the reader's system; pictures keep a white background.
_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
figure { margin: 0; max-width: 100%; }
figcaption { font-size: 0.9rem; max-width: 40rem; }
img { display: block; max-width: 100%; height: auto; background: white; }
.side-by-side { display: grid; gap: 1.5rem; align-items: start; }
@media (min-width: 40rem) { .side-by-side { grid-template-columns: 1fr 1fr; } }
.side-by-side img { image-rendering: pixelated; }
table { border-collapse: collapse; }
th, td { padding: 0.15rem 1.5rem 0.15rem 0; text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: normal; white-space: nowrap; opacity: 0.75; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes
    ----------
    name : str
        File name without suffix.
    png : bytes
        Contents of the file.
    alt : str
        Alternative text, for readers who cannot see the picture.
    caption : str
        Text below the picture.
    """

    name: str
    png: bytes
    alt: str
    caption: str

    def html(self):
        """Return an HTML element that contains the picture."""
        data = base64.b64encode(self.png).decode("ascii")
        return (
            f'<figure>\n<img alt="{escape(self.alt)}" src="data:image/png;base64,{data}">\n'
            f"<figcaption>{escape(self.caption)}</figcaption>\n</figure>"
        )


@dataclass(frozen=True)
class Table:
    """A table of two columns: names and values."""

    rows: dict

    def html(self):
        """Return an HTML element."""
        rows = (
            f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(str(value))}</td></tr>'
            for name, value in self.rows.items()
        )
        return "\n".join(["<table>", *rows, "</table>"])


@dataclass(frozen=True)
class Section:
    """A heading, text, and pictures or tables.

    Attributes
    ----------
    heading, text : str
    contents : tuple of Picture or Table
        Two or more are placed side by side if there is room.
    """

    heading: str
    text: str
    contents: tuple

    def html(self):
        """Return an HTML element."""
        inner = "\n".join(each.html() for each in self.contents)
        if len(self.contents) > 1:
            inner = f'<div class="side-by-side">\n{inner}\n</div>'
        text = f"<p>{escape(self.text)}</p>\n" if self.text else ""
        return f"<section>\n<h2>{escape(self.heading)}</h2>\n{text}{inner}\n</section>"


def html_page(title, summary, sections):
    """Return a complete page.

    Parameters
    ----------
    title, summary : str
    sections : list of Section

    Returns
    -------
    str
        HTML.
    """
    body = "\n".join(section.html() for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(summary)}</p>
{body}
</body>
</html>
"""
