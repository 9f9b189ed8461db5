"""Check an installation, and published weights."""
