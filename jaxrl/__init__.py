"""jaxrl."""
