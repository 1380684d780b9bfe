"""Run by every interpreter whose ``PYTHONPATH`` begins with this folder: see ``saga run``.

The interpreter may be one in whose environment SAGA is not installed: the package is taken from
where this file lies. Whatever goes wrong here, the application begins.
"""

import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

FOLDER = Path(__file__).parent
PACKAGE = FOLDER.parents[1]


def run_next() -> None:
    """The ``sitecustomize`` that this one stands before, if there is one."""
    elsewhere = [path for path in sys.path if not path or Path(path).resolve() != FOLDER.resolve()]
    sys.path[:] = elsewhere
    spec = PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        module = module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


def instrument() -> None:
    if "saga" not in sys.modules:
        locations = [str(PACKAGE)]
        path = PACKAGE / "__init__.py"
        spec = spec_from_file_location("saga", path, submodule_search_locations=locations)
        if spec is None or spec.loader is None:
            return
        sys.modules["saga"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["saga"])
    from saga.adapters import install

    install()


with suppress(Exception):
    instrument()
run_next()
