"""One file, one policy, one name in configuration."""
