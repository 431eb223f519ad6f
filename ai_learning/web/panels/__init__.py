"""One file a panel of the page: what it asks of the server."""
