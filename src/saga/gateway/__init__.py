"""The gateway: HTTP in front of real engines, driven by the scheduling core."""
