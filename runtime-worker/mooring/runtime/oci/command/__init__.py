"""`mooring-oci`: the built-in runtime as a command that other engines can use in place of runc."""
