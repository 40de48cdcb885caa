"""The embedded mini tasks."""
