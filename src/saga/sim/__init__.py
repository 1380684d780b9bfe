"""The cluster simulator: a host that drives the scheduler in virtual time."""
