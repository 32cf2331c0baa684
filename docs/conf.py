"""How Sphinx builds the documentation: ``make docs``.

Its source folder is the repository's root, so that links between the Markdown pages are the same here as
where the repository is browsed.
"""

import logging
import pkgutil
import re
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The package as it lies here, whatever else is installed.
sys.path.insert(0, str(ROOT))
# Sphinx would pass on what PyTensor notes while it is imported.
logging.getLogger("pytensor").setLevel(logging.WARNING)

project = "deeplearning_tutorial"
copyright = "the authors of deeplearning_tutorial"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "README"
include_patterns = ["*.md", "data/README.md", "docs/*.md", "docs/api/*.rst"]
exclude_patterns = ["build", ".venv*"]

html_theme = "furo"
html_title = "Deep learning tutorial"
html_additional_pages = {"index": "index.html"}
templates_path = ["templates"]

# A name in single backticks is that of something documented; if nothing has it, the build fails.
default_role = "py:obj"
nitpicky = True
# The types of parameters are prose, such as "tuple of int".
nitpick_ignore_regex = [("py:class", ".*")]

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_inherit_docstrings = False
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_rtype = False

myst_heading_anchors = 3

CONTENTS = """
```{toctree}
:hidden:
:caption: Learn
docs/walkthrough
docs/walkthrough.zh
docs/poolings
docs/porting-from-theano
```

```{toctree}
:hidden:
:caption: API
docs/api/scripts
docs/api/nnet
docs/api/data
docs/api/shared
docs/api/ops
docs/api/kernels
```

```{toctree}
:hidden:
:caption: Project
docs/benchmarks
docs/README
data/README
CONTRIBUTING
CHANGELOG
```
"""


# The pages that document the modules which no page names, by the beginning of a module's name, longest first.
PAGES = {
    f"{project}.nnet.dispatch.": "docs/api/kernels",
    f"{project}.nnet.": "docs/api/ops",
    f"{project}.": "docs/api/shared",
}
# Their imports come with an extra, which the documentation is built without.
OF_EXTRAS = {f"{project}.nnet.dispatch.{name}" for name in ("jax", "pytorch")}


def modules_without_a_page(page):
    """List the package's modules that no page of the reference names and that belong on this one."""
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.rst"))
    named = OF_EXTRAS.union(re.findall(r"automodule:: (\S+)", pages))
    found = pkgutil.walk_packages([str(ROOT / project)], f"{project}.")
    names = [module.name for module in found if not module.ispkg and module.name not in named]
    return [
        name
        for name in names
        if page == next(PAGES[start] for start in PAGES if name.startswith(start))
        and not name.endswith(".__main__")
        and not is_a_function_of_its_package(name)
    ]


def is_a_function_of_its_package(name):
    """Tell whether a package's function has a module's name, and so its place in the reference."""
    package, _, attribute = name.rpartition(".")
    return callable(getattr(import_module(package), attribute, None))


def complete(app, docname, source):
    """Give the README the table of contents, which only Sphinx needs, and each module a page."""
    if docname == root_doc:
        source[0] += CONTENTS
    for name in modules_without_a_page(docname):
        source[0] += f"\n{name}\n{'-' * len(name)}\n\n.. automodule:: {name}\n"


def find_name(app, env, node, contnode):
    """Look for a bare name in all modules: docstrings need not say where it is at home."""
    target = node["reftarget"]
    if node["reftype"] != "obj":
        return None
    python = env.domains.python_domain
    found = [name for name in python.objects if name.endswith(f".{target}")]
    if found:
        home = min(found, key=len)
        return python.resolve_xref(env, node["refdoc"], app.builder, "obj", home, node, contnode)
    # Sphinx lists neither constants without a docstring nor Numba's intrinsics.
    module = node.get("py:module")
    return contnode if module and hasattr(import_module(module), target) else None


def setup(app):
    """Connect the above."""
    app.connect("source-read", complete)
    app.connect("missing-reference", find_name)
