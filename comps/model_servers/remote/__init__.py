"""Model servers over HTTP: the client, and one file per API."""
