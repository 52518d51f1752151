"""Images of a host: content store, layers, load and import. See service.py for the way in."""
