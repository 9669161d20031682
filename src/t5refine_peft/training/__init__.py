"""Training an adapter for a domain."""
