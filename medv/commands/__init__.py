"""Commands of ``medv-repo`` that need the server."""
