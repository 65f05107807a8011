"""Sphinx configuration. Nothing is fetched: the documentation builds without a network."""

from importlib.metadata import version as installed_version

from sphinx.application import Sphinx

project = "tensorage"
copyright = "2026, the tensorage developers"
version = release = installed_version("tensorage")

extensions = ["autoapi.extension", "myst_parser", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"tensorage {version}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Docstrings are numpydoc.
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_preprocess_types = True
napoleon_type_aliases = {
    "BackendSession": "tensorage.session.BackendSession",
    "TensorStore": "tensorage.store.TensorStore",
    "Dataset": "tensorage.types.Dataset",
    "Path": "pathlib.Path",
}

autoapi_dirs = ["../tensorage"]
autoapi_add_toctree_entry = False
autoapi_member_order = "bysource"
autoapi_python_class_content = "both"
# `__all__` decides what is public where a module has one; names with an underscore never show. Names that
# a module only imports are documented where they are defined.
autoapi_options = ["members", "undoc-members", "show-inheritance", "show-module-summary"]
# The embedded backend is a server whose interface is Supabase's protocol, and the command line explains
# itself: both have their page.
autoapi_ignore = ["*/tensorage/embedded/*", "*/tensorage/cli.py"]

# Names of other packages are no links: that would need their inventories, from the network.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(numpy|np|npt|httpx|urllib3|supabase|supabase_auth|gotrue|postgrest|zarr|numcodecs|tqdm|dask|xarray|xr)(\..+)?",
    ),
    (r"py:.*", r"(collections|pathlib|types|os|concurrent|threading|queue|datetime|abc)\..+"),
    # Type variables and aliases, and the SDK's types under their two names.
    (r"py:.*", r"(C|T|Positions|Buffer|Bytes|ReadBox|AuthResponse|tensorage\._.+)"),
]


def keep_colons(
    _app: Sphinx, what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Begin what is said of a property with an empty comment.

    Napoleon takes the words before a colon in the first line for the type of the property.
    """
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]


def drop_inherited_init(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]
) -> None:
    """Leave out what Python's own classes say of how they are made: in a section, it would be taken for a name."""
    lines[:] = [line for line in lines if "See help(type" not in line]


def setup(app: Sphinx) -> None:
    # Before napoleon, whose priority is the default, 500.
    app.connect("autodoc-process-docstring", keep_colons, priority=400)
    app.connect("autodoc-process-docstring", drop_inherited_init, priority=400)
