"""What every Mooring process shares: the bus, records, configuration. Imports no service."""
