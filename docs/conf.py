"""Sphinx configuration. Nothing is fetched: the documentation builds without a network."""

import json
import re
import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx

project = "tensorage"
copyright = "2026, the tensorage developers"
version = release = installed_version("tensorage")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design"]
exclude_patterns = ["_build"]

# The notebooks are shown as they were executed, with the outputs that are stored in them.
nb_execution_mode = "off"
# Sphinx reads what is below this folder alone.
shutil.copytree(
    Path(__file__).parents[1] / "examples",
    Path(__file__).parent / "examples",
    ignore=lambda _folder, names: [name for name in names if not name.endswith(".ipynb")],
    dirs_exist_ok=True,
)

# The landing page shows what some cells of a notebook show, as the notebook has it.
SHOWN_CELLS = {"handle": "terrain", "preview": "terrain.preview()", "store": "store"}


def write_shown_cells(folder: Path) -> None:
    """Write the HTML of those outputs to files of their own, for the landing page to include."""
    notebook = json.loads((folder / "store-and-slice.ipynb").read_text("utf-8"))
    outputs = {
        "".join(cell["source"]).splitlines()[-1]: cell["outputs"]
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    }
    for name, last_line in SHOWN_CELLS.items():
        (output,) = outputs[last_line]
        (folder / f"{name}.html").write_text("".join(output["data"]["text/html"]), "utf-8")


write_shown_cells(Path(__file__).parent / "examples")

html_theme = "furo"
html_title = f"tensorage {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Docstrings are numpydoc.
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = True
napoleon_attr_annotations = False
# Classes that have a page and are not exported: methods of those that are give them.
napoleon_type_aliases = {"Batches": "tensorage.training.batches.Batches"}

# The pages below api/ name what they show. Names are short: a reader of `Sequence[int]` needs no module.
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autoclass_content = "class"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    "npt.ArrayLike": "numpy.typing.ArrayLike",
    "npt.DTypeLike": "numpy.typing.DTypeLike",
}
add_module_names = False
python_use_unqualified_type_names = True
# One parameter a line where a signature is longer.
python_maximum_signature_line_length = 80

# Names of other packages are no links: that would need their inventories, from the network.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(numpy|np|npt|httpx|urllib3|supabase|supabase_auth|gotrue|postgrest|zarr|numcodecs|tqdm|dask|xarray|xr)(\..+)?",
    ),
    (r"py:.*", r"(collections|pathlib|types|os|concurrent|threading|queue|datetime|abc)\..+"),
    # Annotations as the code writes them: the standard library, the SDK, and our aliases and type variables.
    (
        r"py:.*",
        r"(Path|datetime|TracebackType|AuthResponse|CachedReader|Engine|EngineChoice|SampleSource|Selection)",
    ),
    (r"py:.*", r"tensorage\..+\.(C|Annotate|Readable|Writable|Backend|OpenArray)"),
]


def keep_colons(
    _app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Begin the description of a property with an empty comment.

    Napoleon takes the words before a colon in the first line for the type of the property.
    """
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]


def name_every_error(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Repeat the text of an entry such as ``KeyExistsError, DTypeError`` for each error that it names.

    Napoleon keeps only the first name of such an entry.
    """
    section, names, made = "", [], []
    for position, line in enumerate(lines):
        if position + 1 < len(lines) and re.fullmatch("-{3,}", lines[position + 1]):
            section = line
        if section == "Raises" and re.fullmatch(r"\w+(, \w+)+", line):
            names, text = line.split(", "), []
            for following in lines[position + 1 :]:
                if following and not following.startswith(" "):
                    break
                text.append(following)
            for name in names:
                made.extend([name, *(each for each in text if each)])
        elif not (section == "Raises" and names and line.startswith(" ")):
            names = []
            made.append(line)
    lines[:] = made


def name_aliases(
    _app: Sphinx,
    _what: str,
    _name: str,
    _object: object,
    _options: object,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Write an alias within a union by its name, which autodoc does for an alias that stands alone."""
    alias = re.compile(r"TypeAliasForwardRef\('([\w.]+)'\)")
    return signature and alias.sub(r"\1", signature), returned and alias.sub(r"\1", returned)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-signature", name_aliases)
    # Before napoleon, whose priority is the default, 500.
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("autodoc-process-docstring", name_every_error, priority=400)
