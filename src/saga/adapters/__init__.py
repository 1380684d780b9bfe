"""The client's side: agents and their frameworks say whose step each request is.

``install`` hooks into what the application imports (``saga run`` calls it); ``identified`` lets the
application say it itself; ``graph_of`` reads a framework's graph.
"""

from saga.adapters.graphs import graph_of
from saga.adapters.identity import Identity, identified
from saga.adapters.instrument import install, uninstall

__all__ = ["Identity", "graph_of", "identified", "install", "uninstall"]
