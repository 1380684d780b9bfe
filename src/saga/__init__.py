"""SAGA: workflow-atomic scheduling for AI-agent inference."""

__version__ = "0.1.0"
