"""Byte streams over the bus, with offsets and credit: nothing dropped, nothing doubled, bounded.

A *download* is opened by its reader, at any offset and again after a crash; an *upload* by its
writer.
"""

from __future__ import annotations

from .downloads import Confirmed, Download, Moved, Source, download, serve_downloads
from .uploads import Upload, Uploader, serve_uploads, upload

__all__ = [
    "Confirmed",
    "Download",
    "Moved",
    "Source",
    "Upload",
    "Uploader",
    "download",
    "serve_downloads",
    "serve_uploads",
    "upload",
]
