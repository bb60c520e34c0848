"""Serve a bundle over HTTP, and to people as one page; the extra [serve]."""
