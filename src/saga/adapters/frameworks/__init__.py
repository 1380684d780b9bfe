"""One hook for each framework; imported when the framework is."""
