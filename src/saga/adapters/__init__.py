"""The client's side: agents that use a gateway."""
