"""Bundles of policies as YAML files."""
