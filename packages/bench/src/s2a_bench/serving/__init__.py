"""One backbone and many adapters behind an HTTP address: ``s2a-bench serve``, on Ray Serve."""
