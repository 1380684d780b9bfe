"""Speed and memory figures. ``python -m benchmarks`` runs them all."""
