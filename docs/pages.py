"""Read the Markdown pages of this folder for the tests: Python blocks, tables, code spans and text."""

import re
from types import SimpleNamespace


def read_page(path):
    """Take a page apart.

    Parameters
    ----------
    path : pathlib.Path

    Returns
    -------
    blocks : list of namespace
        The Python blocks: ``code``, the ``line`` where it begins, and the ``section``'s heading.
    rows : list of namespace
        The rows of tables but for their heads: ``cells``, ``line`` and ``section``.
    spans : list of namespace
        Code spans outside tables' and blocks' code: ``code``, ``line`` and ``section``.
    sections : dict of str to str
        The text under each heading, without blocks and tables.
    """
    blocks, rows, spans, sections, section, block = [], [], [], {"": ""}, "", None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        here = {"path": path, "section": section, "line": number}
        if line.startswith("```"):
            if block is None:
                block = SimpleNamespace(**here | {"line": number + 1}, language=line[3:], code="")
            else:
                blocks.append(block)
                block = None
        elif block is not None:
            block.code += line + "\n"
        else:
            if line.startswith("#"):
                section = line.lstrip("# ")
                sections[section] = ""
            elif line.startswith("|---"):
                rows.pop()  # the table's head
            elif line.startswith("|"):
                rows.append(SimpleNamespace(**here, cells=line[2:].split(" | "), text=line))
            else:
                sections[section] += line + "\n"
            spans += [SimpleNamespace(**here, code=code) for code in re.findall(r"`([^`]+)`", line)]
    if block is not None:
        raise ValueError(f"{path}: the block at line {block.line} is not closed")
    return [block for block in blocks if block.language == "python"], rows, spans, sections


def place(item):
    """Say where a block, row or span stands."""
    return f"line {item.line}: {item.section}"


def run(block, namespace):
    """Execute a block; blank lines before it make a traceback show the page's line."""
    exec(compile("\n" * (block.line - 1) + block.code, str(block.path), "exec"), namespace)


def numbers_in(text):
    """Return the numbers in a text, as they are written, but for those of code, links, papers and names."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|LeNet-5|^ {4}.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"(?<!\d)(1968|1980|1998|2010|2012)(?!\d)", "", text)
    return re.findall(r"(?<![A-Za-z\d.,])\d+(?:,\d{3})*(?:\.\d+)?", text)
