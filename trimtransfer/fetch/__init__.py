"""A repository behind HTTP or HTTPS, read from any static web server."""
