"""Engine side: the emulated engine."""
