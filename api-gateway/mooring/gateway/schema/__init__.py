"""Docker's JSON to models, and records to Docker's JSON."""
