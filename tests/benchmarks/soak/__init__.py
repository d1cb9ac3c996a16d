"""What the service does under ten times the load that it can carry, and over half an hour."""
