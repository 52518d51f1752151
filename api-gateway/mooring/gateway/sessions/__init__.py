"""Open-ended answers that outlive this process.

A client's socket is kept by whoever started us (FDSTORE), with a record of how far we are in memory
that is kept the same way. A gateway that is started again goes on at the byte: see `wire`.
"""
