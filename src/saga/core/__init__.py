"""The pure scheduling core: state, events, actions, mechanics. No clock, no I/O."""
