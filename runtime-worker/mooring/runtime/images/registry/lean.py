"""aiohttp, imported without the certificates of the host.

While it is imported it makes two TLS contexts, and reading all certificates for them takes 70 ms of
CPU. Each of our requests over TLS brings a context of its own (client.py): those are never used.
"""

from __future__ import annotations

import os
import ssl

_NOWHERE = {
    ssl.get_default_verify_paths().openssl_cafile_env: os.devnull,
    ssl.get_default_verify_paths().openssl_capath_env: os.devnull,
}

_before = {name: os.environ.get(name) for name in _NOWHERE}
os.environ.update(_NOWHERE)
try:
    import aiohttp
finally:
    for _name, _value in _before.items():
        if _value is None:
            del os.environ[_name]
        else:
            os.environ[_name] = _value

__all__ = ["aiohttp"]
