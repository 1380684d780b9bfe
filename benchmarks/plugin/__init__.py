"""What the vLLM plugin costs: ``.venv-e2e/bin/python -m benchmarks.plugin``."""
