"""The built-in OCI runtime. Standard library only: it runs inside every shim."""
