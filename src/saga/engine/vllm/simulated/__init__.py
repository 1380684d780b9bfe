"""Engines of the simulator that vLLM's real scheduler schedules, in virtual time.

Without a server, a model or a device; the plugin for servers is in the package above.
"""
