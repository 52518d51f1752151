"""The torture: everything that clients do, while random processes of the engine are killed."""
