"""Every metric, defined once, for simulated and live runs."""
